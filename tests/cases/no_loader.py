"""Batches drawn on the spot: no DataLoader."""

import torch
from small import nets, step

networks = nets()
for _ in range(8):
    step(torch.randn(16, 8) + 1, *networks)
