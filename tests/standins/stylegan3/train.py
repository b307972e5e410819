"""A script with the names that the rules for StyleGAN3 rely on."""

import argparse
from pathlib import Path

from training import training_loop


def main():
    parser = argparse.ArgumentParser()
    for name in ("outdir", "cfg", "data", "metrics", "aug", "resume"):
        parser.add_argument(f"--{name}")
    for name in ("gpus", "batch", "batch-gpu", "gamma", "cbase", "cmax", "map-depth", "mbstd-group",
                 "workers", "fp32"):  # fmt: skip
        parser.add_argument(f"--{name}", type=int)
    opts = parser.parse_args()
    number = len([*Path(opts.outdir).glob("*")])
    training_loop.training_loop(
        folder=f"{opts.outdir}/{number:05d}-{opts.cfg}",
        data=opts.data,
        batch_size=opts.batch,
        total_kimg=1,
        batch_gpu=opts.batch_gpu or opts.batch,
        resume=opts.resume,
    )


if __name__ == "__main__":
    main()
