"""Float64, one thread and seeds, as Python starts.

Put on PYTHONPATH, so that the commands are those that a person types. At the end of the process
all that its optimizers own is written to the file that OTHERS_WEIGHTS names. OTHERS_SHIMS names
modules of ``shims_for_others``, which do what scripts of years ago need on today's torch and on a
CPU.
"""

import atexit
import importlib
import os
import random

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook as before_each_step

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
np.random.seed(0)
random.seed(0)

trained = {}  # by optimizer, in the order of their first steps: what it owns


def remember(optimizer, args, kwargs):
    trained[optimizer] = [p for group in optimizer.param_groups for p in group["params"]]


before_each_step(remember)


@atexit.register
def write_weights():
    owned = [p.detach().numpy() for parameters in trained.values() for p in parameters]
    if owned:  # not in a process that only helps
        np.savez(os.environ["OTHERS_WEIGHTS"], *owned)


for name in os.environ["OTHERS_SHIMS"].split():
    importlib.import_module(f"shims_for_others.{name}")
