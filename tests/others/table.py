"""The table of adapters/README.md: a line for each repository and package."""

from __future__ import annotations

from others import pytorch_gan, trainers
from others.rows import OURS, Origin, Row

ROWS = [*trainers.ROWS, *pytorch_gan.ROWS]
FARTHEST = {
    "pytorch/ignite": 0.0,
    "Lightning-AI/pytorch-lightning": 0.0,
    "accelerate": 0.0,
    "brownvc/R3GAN": 0.0,
    "XPixelGroup/BasicSR": 0.0,
    "xinntao/Real-ESRGAN": 0.0,
    "taesungp/contrastive-unpaired-translation": 0.0,
    "CompVis/taming-transformers": 0.0,
    "NVlabs/denoising-diffusion-gan": 0.0,
    "jik876/hifi-gan": 1e-15,
    "tianweiy/DMD2": 0.0,
    "gemelo-ai/vocos": 0.0,
    "descriptinc/descript-audio-codec": 1e-16,
    "jaywalnut310/vits": 0.0,
    "huggingface/diffusers": 2e-15,
    "ctgan": 0.0,
    "monai": 0.0,
    "pythae": 0.0,
    "clovaai/stargan-v2": 9e-14,
    "facebookresearch/pytorch_GAN_zoo": 0.0,
    "NVIDIA/pix2pixHD": 0.0,
    "NVlabs/SPADE": 0.0,
    "facebookresearch/audiocraft": 0.0,
    "birdx0810/timegan-pytorch": 4e-16,
    "yongqyu/MolGAN-pytorch": 1e-16,
    "deepinv": 0.0,
    "fastai": 0.0,
    "vegans": 7e-16,
    "eriklindernoren/PyTorch-GAN": 1e-10,
}  # of the weights of any of its trainings, to those of top-k by hand, as run.py printed it


def lines() -> list[str]:
    """The rows of the table, in the order of the data."""
    origins = dict.fromkeys(row.origin for row in ROWS)
    return [line(origin, [row for row in ROWS if row.origin == origin]) for origin in origins]


def line(origin: Origin, rows: list[Row]) -> str:
    """One row of it."""
    found = [row for row in rows if not row.asks]
    words = [f"found in {len(found)} of {len(rows)}"] if len(rows) > 1 else ["found"] * len(found)
    told = [row for row in rows if row.asks and row.critic]
    words += [f"{len(told)} is told the flag"] * bool(told)
    refused = [row.asks for row in rows if row.asks and not row.critic]
    words += [f"{len(refused)} refused: {why}" for why in dict.fromkeys(refused)]
    version = origin.version[:7] if "/" in origin.name else origin.version
    far = f"{FARTHEST[origin.name]:.0e}" if FARTHEST[origin.name] else "0"
    return f"| {origin.name} | {version} | {ran(rows)} | {'; '.join(words)} | {far} |"


def ran(rows: list[Row]) -> str:
    """What was run."""
    if rows[0].origin.own_folder:
        return f"its scripts, {len(rows)} runs"
    scripts = " and ".join(
        f"`{'tests/others/' * script.startswith(OURS)}{script}`"
        for script in dict.fromkeys(row.script for row in rows)
    )
    kinds = [row.name.partition("-")[2] for row in rows] if len(rows) > 1 else []
    return f"{scripts}: {', '.join(kinds)}" if kinds else scripts
