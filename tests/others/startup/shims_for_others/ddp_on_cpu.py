"""One process of gloo, and DistributedDataParallel without devices."""

from torch import distributed, nn

begin, build = distributed.init_process_group, nn.parallel.DistributedDataParallel.__init__


def init_process_group(backend=None, **kwargs):
    begin(backend="gloo", **kwargs)


def __init__(self, module, device_ids=None, **kwargs):
    build(self, module, **kwargs)


distributed.init_process_group = init_process_group
nn.parallel.DistributedDataParallel.__init__ = __init__
