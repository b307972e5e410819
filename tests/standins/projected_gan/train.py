"""A script with the names that the rules for Projected GAN rely on."""

import argparse
from pathlib import Path

from training import training_loop


def main():
    parser = argparse.ArgumentParser()
    for name in ("outdir", "cfg", "data", "metrics", "resume"):
        parser.add_argument(f"--{name}")
    for name in ("gpus", "batch", "batch-gpu", "cbase", "cmax", "workers", "fp32", "restart_every"):
        parser.add_argument(f"--{name}", type=int)
    opts = parser.parse_args()
    number = 0 if opts.restart_every else len([*Path(opts.outdir).glob("*")])
    training_loop.training_loop(
        run_dir=f"{opts.outdir}/{number:05d}-{opts.cfg}",
        data=opts.data,
        batch_size=opts.batch,
        batch_gpu=opts.batch_gpu or opts.batch,
        total_kimg=1,
        resume=opts.resume,
        restart_every=opts.restart_every,
    )


if __name__ == "__main__":
    main()
