"""What tests of the image trainer share with the processes that they start."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from topk_plugin.reference import fid
from topk_plugin.reference.data import batches
from topk_plugin.reference.data.named import load_images
from topk_plugin.reference.images import Settings, Training, preparation, scoring
from topk_plugin.reference.images import networks as image_networks
from topk_plugin.reference.models import MODELS
from topk_plugin.reference.runs import Job, Member, ranks, train
from topk_plugin.reference.runs import job as jobs

CPU = torch.device("cpu")
TINY = Settings(
    dataset="digits", features="classifier", width=1 / 16, batch=8, gamma=0.8, iterations=6,
    samples=60, measure_every=2, score_every=6,
)  # fmt: skip
SIZE = 16
EPOCH = 2  # batches, in these tests


def changed(settings: Settings = TINY, **changes) -> Settings:
    return Settings(**{**vars(settings), **changes})


def attend_to_small_images(patch) -> None:
    for name, changes in {
        "sagan": {"attention": 8},
        "sagan-128": {"attention": None},  # its maps are too narrow here
        "biggan": {"attention": 8, "latent": 81},
        "icr-biggan": {"attention": 8, "latent": 81},
    }.items():
        patch.setitem(MODELS, name, dataclasses.replace(MODELS[name], **changes))


def shorten_epochs(patch) -> None:
    """So that k decays at once."""

    def of_few(*args, **options):
        found = source(*args, **options)
        found.length = EPOCH
        return found

    source = preparation.source
    patch.setattr(preparation, "source", of_few)


def without_norms(patch):
    """BatchNorm ties the rows of a batch together: without it, how it is divided cannot matter."""

    def pair(*args):
        made = networks(*args)
        for network in made:
            for module in [*network.modules()]:
                for name, part in module.named_children():
                    if isinstance(part, nn.BatchNorm2d):
                        setattr(module, name, nn.Identity())
        return made

    networks = image_networks.networks
    patch.setattr(image_networks, "networks", pair)


def of_thousand_classes(root: Path, images: int = 2) -> Path:
    """A folder in ImageNet's layout: class folders of JPEGs of several sizes."""
    rows = torch.randint(256, (1_000, 4, 3), generator=torch.Generator().manual_seed(0)).byte()
    for number, colours in enumerate(rows.numpy()):
        own = root / f"n{number:08d}"
        own.mkdir(parents=True)
        for i in range(images):
            image = Image.fromarray(colours[i : i + 2].reshape(1, 2, 3))
            image.resize((20 + number % 7, 18 + i)).save(own / f"{i}.JPEG")
    return root


def digest(image: torch.Tensor) -> str:
    return hashlib.sha256(image.contiguous().numpy()).hexdigest()


class Killed(BaseException):
    """What ends a process at once, as far as a test can have it."""


def of_two(rank: int, folder, port: int) -> None:
    """One of two ranks: top-k undisturbed, the same killed and resumed, and plain without norms.

    Undisturbed and resumed also on a thousand classes, from files.
    """
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        attend_to_small_images(patch)
        shorten_epochs(patch)
        settings = changed(iterations=4)
        with ranks.group(CPU):

            def job(name: str, arm: str = "top-k+sngan") -> Job:
                return Job(folder / name, "images", settings, [Member(SIZE, arm, 0)], "cpu")

            told: list[int] = []
            train(job("undisturbed"), lambda done, total: told.append(done))
            (folder / f"told-{rank}").write_text(json.dumps(told))
            step = Training._generator_step
            patch.setattr(jobs, "SAVE_SECONDS", 0)

            def killed(self, *drawn) -> None:
                if self.iteration == 3:  # between two measurements
                    raise Killed
                step(self, *drawn)

            patch.setattr(Training, "_generator_step", killed)
            with pytest.raises(Killed):
                train(job("resumed"))
            patch.setattr(Training, "_generator_step", step)
            train(job("resumed"))
            with patch.context() as streaming:
                streaming.setattr(batches, "CACHED_BYTES", 0)

                def streamed(*args, **options):  # epochs of 250 steps
                    return batches.source(*args, **options | {"workers": 0})

                streaming.setattr(preparation, "source", streamed)
                known = fid.classifier(load_images("digits"), CPU)  # none for what is not in memory
                streaming.setattr(scoring, "features_of", lambda *args: known)
                settings = changed(
                    dataset="folder", data=str(folder / "images"), channels=1, iterations=4
                )
                seen: dict[str, list[str]] = {}
                advance, own = Training._critic_step, "undisturbed"

                def noted(self, real, *others) -> None:
                    name = f"{own} {self.iteration}"
                    seen[name] = [digest(image) for image in real]
                    advance(self, real, *others)

                streaming.setattr(Training, "_critic_step", noted)
                train(job("imagenet-undisturbed", "top-k+sagan-128"))
                own = "resumed"
                streaming.setattr(Training, "_generator_step", killed)
                with pytest.raises(Killed):
                    train(job("imagenet-resumed", "top-k+sagan-128"))
                seen = {name: rows for name, rows in seen.items() if name[:4] != "resu"}
                streaming.setattr(Training, "_generator_step", step)
                train(job("imagenet-resumed", "top-k+sagan-128"))
                (folder / f"seen-{rank}").write_text(json.dumps(seen))
            settings = changed(iterations=4)
            without_norms(patch)
            train(job("plain", "sngan"))
