"""A critic under reentrant checkpointing."""

import torch.nn.functional as F
from small import Judge, loader, nets, step
from torch.utils.checkpoint import checkpoint


class Recomputed(Judge):
    def forward(self, x):
        hidden = checkpoint(lambda t: F.leaky_relu(t, 0.2), self.a(x), use_reentrant=True)
        return self.b(hidden)


parts = nets(Recomputed)
for epoch in range(3):
    for (x,) in loader:
        step(x, *parts)
    print("epoch", epoch, "done", flush=True)
