"""What is in no DataParallel, as on a CPU, is asked for what is in it."""

import torch

torch.nn.Module.module = property(lambda self: self._modules.get("module", self))
