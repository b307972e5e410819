"""Code that says "cuda" runs on the CPU."""

import torch


class Devices(type):
    def __call__(cls, kind="cpu", *index):
        return kept("cpu") if str(kind).startswith("cuda") else kept(kind, *index)

    def __instancecheck__(cls, value):
        return isinstance(value, kept)

    def __subclasscheck__(cls, kind):
        return issubclass(kind, kept)


class Device(metaclass=Devices):
    """``torch.device``."""


kept = torch.device
torch.device = Device


def unmoved(self, *args, **kwargs):
    return self


for name in ("manual_seed", "manual_seed_all", "set_device", "empty_cache", "synchronize"):
    setattr(torch.cuda, name, lambda *args: None)
for kind in (torch.Tensor, torch.nn.Module):
    kind.cuda = unmoved
torch.Tensor.pin_memory = unmoved
build_loader = torch.utils.data.DataLoader.__init__


def build(self, *args, **kwargs):
    """In this process: another one has other random numbers."""
    build_loader(self, *args, **kwargs | {"num_workers": 0, "pin_memory": False})


torch.utils.data.DataLoader.__init__ = build
