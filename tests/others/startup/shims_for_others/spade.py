"""NVlabs/SPADE: its batch norm over devices is torch's, and 128 hidden channels are 8."""

import sys
import types

from torch import nn

build = nn.Conv2d.__init__


def thinner(self, into, out, *args, **kwargs):
    build(self, 8 if into == 128 else into, 8 if out == 128 else out, *args, **kwargs)


nn.Conv2d.__init__ = thinner
synced = types.ModuleType("models.networks.sync_batchnorm")
synced.SynchronizedBatchNorm2d = nn.BatchNorm2d
synced.DataParallelWithCallback = nn.DataParallel
sys.modules[synced.__name__] = synced
