"""Code that says float32 computes in float64."""

import torch

single, tensor = torch.float32, torch.tensor


def doubled(*args, **kwargs):
    """Of an array that says it."""
    made = tensor(*args, **kwargs)
    return made.double() if made.dtype is single else made


torch.tensor = doubled
torch.float32 = torch.float = torch.float64
torch.FloatTensor = torch.cuda.FloatTensor = torch.DoubleTensor
torch.Tensor.float = torch.Tensor.double
