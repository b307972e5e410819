"""A critic that is scripted and drawn as a graph, before and after it is trained."""

import copy

import torch
from small import loader, nets, step
from torch import nn
from torch.utils.tensorboard import SummaryWriter

m, j, om, oj = nets()
with SummaryWriter("runs") as board:
    board.add_graph(nn.Sequential(m, j), torch.randn(2, 4))
torch.jit.script(copy.deepcopy(j))
for (x,) in loader:
    step(x, m, j, om, oj)
torch.jit.script(j).save("judge.pt")
print("saved", tuple(torch.jit.load("judge.pt")(torch.ones(2, 8)).shape))
with SummaryWriter("runs") as board:
    board.add_graph(copy.deepcopy(j), torch.randn(2, 8))
