"""eriklindernoren/PyTorch-GAN; OTHERS_THIN divides the channels of convolutions of 64 and more."""

import builtins
import os
import sys
import types
import urllib
import weakref

import torch
import torchvision
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook as after_each_step
from torch.optim.optimizer import register_optimizer_step_pre_hook as before_each_step

torch.FloatTensor = torch.cuda.FloatTensor = torch.DoubleTensor
torch.cuda.LongTensor = torch.LongTensor
torch.Tensor.cuda = lambda self, *args, **kwargs: self

# modules that scripts import and do not need here
sys.modules["six"] = types.ModuleType("six")
sys.modules["six.moves"] = types.ModuleType("six.moves")
sys.modules["six.moves"].urllib = urllib

# names that scripts read and never set
builtins.in_channels = 3  # bicyclegan's critic
builtins.weights_init_normal = lambda module: None  # ccgan
build_loader = torch.utils.data.DataLoader.__init__


def build_and_name(self, *args, **kwargs):
    build_loader(self, *args, **kwargs)
    builtins.mnist_loader = weakref.proxy(self)  # bgan, dragan


torch.utils.data.DataLoader.__init__ = build_and_name

read_item = torch.Tensor.__getitem__


def getitem(self, index):
    """``loss.data[0]`` was how a number was read."""
    return self if self.dim() == 0 and index == 0 else read_item(self, index)


torch.Tensor.__getitem__ = getitem

THIN = int(os.environ["OTHERS_THIN"])


def thinner(channels):
    """What is concatenated to 64 channels or more stays."""
    return channels // 64 * (64 // THIN) + channels % 64


def thin(layer, numbers, applies=lambda *args: True):
    """Divide the first ``numbers`` arguments of ``layer``."""
    build = layer.__init__

    def __init__(self, *args, **kwargs):
        some = numbers if applies(*args) else 0
        build(self, *map(thinner, args[:some]), *args[some:], **kwargs)

    layer.__init__ = __init__


if THIN > 1:
    for convolution in (nn.Conv2d, nn.ConvTranspose2d):
        thin(convolution, 2)
    for norm in (nn.BatchNorm2d, nn.InstanceNorm2d):
        thin(norm, 1)
    thin(nn.Linear, 1, lambda into, out, *_: out < 16)  # of averages of channels


def vgg19(**kwargs):
    """Its layers, narrow, and with the weights that it begins with: others are not at hand."""
    layout = [c if c == "M" else max(4, c // 32) for c in torchvision.models.vgg.cfgs["E"]]
    return types.SimpleNamespace(features=torchvision.models.vgg.make_layers(layout))


torchvision.models.vgg19 = vgg19

versions = {}


def remember_versions(optimizer, args, kwargs):
    owned = [p for group in optimizer.param_groups for p in group["params"]]
    versions[optimizer] = owned, [p._version for p in owned]


def restore_versions(optimizer, args, kwargs):
    """Optimizers went by ``p.data`` before torch 1.5, unseen by graphs that are kept."""
    torch._C._autograd._unsafe_set_version_counter(*map(tuple, versions[optimizer]))


before_each_step(remember_versions)
after_each_step(restore_versions)
