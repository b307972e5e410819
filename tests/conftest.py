"""One thread a process: the tests run side by side, and their networks are small."""

import os

import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
torch.set_num_threads(1)
