"""Trains for a pass, and saves by torch's helpers for distributed training: ``sharded.py WAY``.

With a second argument it goes on from what it saved.
"""

import sys

import torch
import torch.distributed.checkpoint as dcp
from small import loader, nets, step
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.stateful import Stateful

way, resume = sys.argv[1], bool(sys.argv[2:])
m, j, om, oj = nets()
options = StateDictOptions(full_state_dict=True, cpu_offload=True) if way == "offloaded" else None


class State(Stateful):
    """Both networks and their optimizers."""

    def state_dict(self):
        pairs = get_state_dict(m, om, options=options), get_state_dict(j, oj, options=options)
        return {"nets": [pair[0] for pair in pairs], "optimizers": [pair[1] for pair in pairs]}

    def load_state_dict(self, state):
        for net, opt, a, b in zip(
            (m, j), (om, oj), state["nets"], state["optimizers"], strict=True
        ):
            set_state_dict(net, opt, model_state_dict=a, optim_state_dict=b, options=options)


state = State()
if resume:
    if way == "stateful":
        dcp.load({"state": state}, checkpoint_id="folder")
    elif way == "folder":
        present = state.state_dict()
        dcp.load(present, checkpoint_id="folder")
        state.load_state_dict(present)
    elif way == "model":
        present = get_model_state_dict(j)
        dcp.load(present, storage_reader=dcp.FileSystemReader("folder"))
        j.load_state_dict(present)
    else:
        state.load_state_dict(torch.load("file.pt"))
for (x,) in loader:
    step(x, m, j, om, oj)
if not resume:
    if way == "stateful":
        dcp.save({"state": state}, checkpoint_id="folder")
    elif way == "folder":
        dcp.save(state.state_dict(), checkpoint_id="folder")
    elif way == "model":
        dcp.save(get_model_state_dict(j), storage_writer=dcp.FileSystemWriter("folder"))
    else:
        torch.save(state.state_dict(), "file.pt")
