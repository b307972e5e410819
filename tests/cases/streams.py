"""A script that leaves its streams in some state: ``streams.py HOW [STATUS]``."""

import os
import sys

import torch
from small import loader, nets, step


class Raises:
    """A stream whose reader has gone, or that never was one."""

    def __init__(self, error):
        self.error = error

    def write(self, text):
        raise self.error

    def flush(self):
        pass


how, status = sys.argv[1], int(sys.argv[2]) if sys.argv[2:] else 0
m, j, om, oj = nets()
if how == "closed":
    log = open("log.txt", "w")  # noqa: SIM115
    sys.stdout = sys.stderr = log
elif how == "closed before":
    log = open("log.txt", "w")  # noqa: SIM115
    sys.stdout = sys.stderr = log
    log.close()
    judge = torch.load("judge.pt", weights_only=True)
    j.load_state_dict(judge)  # without a record: a warning in the first step
elif how == "None":
    sys.stdout = sys.stderr = None
elif how == "all None":
    sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = None
elif how == "broken pipe":
    sys.stderr = Raises(BrokenPipeError())
elif how == "no stream":
    sys.stderr = Raises(KeyError("write"))
elif how == "descriptor":
    os.close(2)
elif how == "itself":
    sys.stderr.close()
for (x,) in loader:
    step(x, m, j, om, oj)
if how == "closed":
    print("trained")
    log.close()
if how == "refused":
    sys.stderr = None
    raise SystemExit("a message")
if status:
    raise SystemExit(status)
