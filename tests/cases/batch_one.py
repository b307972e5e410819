"""Batches of one row, but for the first if there is an argument."""

import sys

import torch
from small import nets, step

m, j, om, oj = nets()
for _ in range(3):
    data = torch.randn(9, 8)
    batches = [data[i : i + 1] for i in range(8)]
    if len(sys.argv) > 1:
        batches[0] = data[:2]
    for x in torch.utils.data.DataLoader(batches, batch_size=None):
        step(x, m, j, om, oj)
