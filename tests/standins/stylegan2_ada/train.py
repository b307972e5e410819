"""A script with the names that the rules for StyleGAN2-ADA rely on."""

import argparse
from pathlib import Path

from training import training_loop


def main():
    parser = argparse.ArgumentParser()
    for name in ("outdir", "data", "metrics", "aug", "resume"):
        parser.add_argument(f"--{name}")
    for name in ("gpus", "batch", "workers", "fp32"):
        parser.add_argument(f"--{name}", type=int)
    opts = parser.parse_args()
    number = len([*Path(opts.outdir).glob("*")])
    training_loop.training_loop(
        folder=f"{opts.outdir}/{number:05d}",
        data=opts.data,
        batch_size=opts.batch,
        total_kimg=1,
        resume=opts.resume,
    )


if __name__ == "__main__":
    main()
