"""What a run of a trial is started with: `python -m topk_plugin.trial.child PARENT SEED run …`.

It ends when the trial's own process does, however that ended, so that nobody writes where the
trial, given again, trains anew; and seeds a script that takes no seed.
"""

import os
import random
import runpy
import sys
import threading
import time


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _seed(seed: int) -> None:
    """What a script draws its random numbers from, before its first line."""
    import torch

    random.seed(seed)
    torch.manual_seed(seed)
    try:
        import numpy
    except ModuleNotFoundError:
        return
    numpy.random.seed(seed % 2**32)


if __name__ == "__main__":
    parent, seed, *arguments = sys.argv[1:]
    threading.Thread(target=_follow, args=(int(parent),), daemon=True).start()
    if seed != "-":
        _seed(int(seed))
    sys.argv = ["topk", *arguments]
    runpy.run_module("topk_plugin", run_name="__main__", alter_sys=True)
