"""Networks of images against those that they were made after."""

import contextlib
import importlib.util
import os
import sys
import types
from pathlib import Path

import pytest
import torch
from network_layers import COUNTS, count, layers_of, normal, norms_of
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized

from topk_plugin.reference.networks import resnet
from topk_plugin.reference.networks.biggan import BigGANCritic, BigGANGenerator
from topk_plugin.reference.networks.dcgan import DCGANCritic, DCGANGenerator
from topk_plugin.reference.networks.resnet import ResNetCritic, ResNetGenerator


def transfer(ours, theirs):
    """Weights, biases and, where they have them, vectors of spectral norms, to their layers."""
    for mine, other in zip(ours, theirs, strict=True):
        rows, normed = slice(None), is_parametrized(mine)
        if isinstance(mine, nn.Linear) and mine.bias is not None and mine.out_features > 1:
            # of a generator's first layer; ours has channels last
            rows = torch.arange(mine.out_features).view(16, -1).T.flatten()
        weight = mine.parametrizations.weight.original if normed else mine.weight
        (other.weight_orig if normed else other.weight).data.copy_(weight[rows])
        if normed:
            vectors = mine.parametrizations.weight[0]
            other.weight_u.copy_(vectors._u[rows])
            other.weight_v.copy_(vectors._v)
        if getattr(other, "bias", None) is not None:
            other.bias.data.copy_(mine.bias[rows])


def same_function(ours, theirs, layers, *args):
    """With the same weights; BatchNorm by the batch, spectral norms as they are."""
    ours, theirs = ours.double().eval(), theirs.double().eval()
    transfer(layers_of(ours), layers)
    for module in [*ours.modules(), *theirs.modules()]:
        if isinstance(module, nn.BatchNorm2d):
            module.train().eps = 1e-5
        if isinstance(module, nn.ReLU):
            # in place it changes the shortcut's input too, unlike the papers' own code
            module.inplace = False
    with torch.no_grad():
        found, expected = ours(*args), theirs(*args)
    if isinstance(expected, dict):
        expected = expected["adv_output"]
    torch.testing.assert_close(found, expected.view_as(found), rtol=1e-9, atol=1e-11)


@pytest.fixture(scope="module")
def mimicry():
    """Its networks, without what the package imports besides."""
    spec = importlib.util.find_spec("torch_mimicry")
    if spec is None:
        pytest.skip("torch_mimicry not installed")
    package = types.ModuleType("torch_mimicry")
    package.__path__ = list(spec.submodule_search_locations)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch_mimicry", package)
        yield lambda name: importlib.import_module(f"torch_mimicry.nets.{name}")
    for name in [name for name in sys.modules if name.startswith("torch_mimicry.")]:
        del sys.modules[name]


def of_mimicry(network):
    """Its layers in our order: c1, c2 and c_sc of each block, attention where ours has it."""
    layers = dict(network.named_children())
    last = [layers[name] for name in ("l_y",) if name in layers]
    blocks = [layers[name] for name in layers if name.startswith("block")]
    inner = [[getattr(b, n) for n in ("c1", "c2", "c_sc") if hasattr(b, n)] for b in blocks]
    if "attn_block" in layers:
        inner.insert(2, [getattr(layers["attn_block"], n) for n in ("theta", "phi", "g", "o")])
    flat = [layer for block in inner for layer in block]
    if "c5" in layers:
        return [layers["l1"], *flat, layers["c5"]]
    return [*flat, layers["l5"], *last]


FAMILIES = {
    "wgan_gp.wgan_gp_32": ("WGANGP", {}, False, None),
    "sngan.sngan_32": ("SNGAN", {}, True, None),
    "sagan.sagan_32": ("SAGAN", {"num_classes": 10}, True, 16),
}
"""File, prefix of its classes, their arguments; whether the critic is spectral; attention."""


@pytest.mark.parametrize("file", FAMILIES)
def test_residual_pairs_are_those_of_mimicry(mimicry, file, monkeypatch):
    """But for bilinear upsampling and ReLU in place, in which it differs from the papers' code."""
    prefix, arguments, spectral, attention = FAMILIES[file]
    module = mimicry(file)
    classes, y = arguments.get("num_classes", 0), torch.arange(3)
    args = (y,) if classes else ()
    interpolate = functional.interpolate
    monkeypatch.setattr(
        functional, "interpolate", lambda x, scale_factor, **_: interpolate(x, None, scale_factor)
    )
    torch.manual_seed(0)
    theirs = getattr(module, f"{prefix}Generator32")(nz=6, ngf=16, **arguments)
    ours = ResNetGenerator(32, 3, 6, 16, classes, bool(attention), attention)
    for norm in [m for m in theirs.modules() if type(m).__name__ == "ConditionalBatchNorm2d"]:
        norm.embed.weight.data[:, : norm.num_features] = 1
    assert count(ours) == count(theirs)
    shaken(ours, theirs)
    same_function(ours, theirs, of_mimicry(theirs), normal(3, 6), *args)

    theirs = getattr(module, f"{prefix}Discriminator32")(ndf=16, **arguments)
    # its attention comes after the second block
    ours = ResNetCritic(32, 3, 16, classes, spectral, attention and 8)
    assert count(ours) == count(theirs)
    shaken(ours, theirs)
    same_function(ours, theirs, of_mimicry(theirs), normal(3, 3, 32, 32), *args)


def shaken(ours, theirs):
    """Biases and attention of ours away from 0, of theirs likewise."""
    for layer in layers_of(ours):
        if getattr(layer, "bias", None) is not None:
            nn.init.normal_(layer.bias)
    for module in ours.modules():
        if isinstance(module, resnet.Attention):
            nn.init.constant_(module.weight, 0.8)
    for name, parameter in theirs.named_parameters():
        if name.endswith((".gamma", ".sigma")):
            parameter.data.fill_(0.8)


def outputs_at_first(generator, critic, seed, *args):
    """Standard deviation of images, mean and standard deviation of scores of noise images."""
    z, noise = normal(64, 128, seed=seed).float(), normal(64, 3, 32, 32, seed=seed).float()
    with torch.no_grad():
        for _ in range(15):  # until the norms that begin at random are right
            critic(noise[:1], *(y[:1] for y in args))
        scores = critic(noise.tanh(), *args)
        if isinstance(scores, dict):
            scores = scores["adv_output"]
        return torch.stack([generator(z, *args).std(), scores.mean(), scores.std()])


def begin_alike(found, expected):
    """Rows of `outputs_at_first`, one for each seed."""
    spread = ((found.var(dim=0) + expected.var(dim=0)) / len(found)).sqrt()
    assert ((found.mean(dim=0) - expected.mean(dim=0)).abs() < 4 * spread).all()
    assert (spread[[0, 2]] < 0.2 * expected.mean(dim=0)[[0, 2]]).all()  # so that it says something


def test_residual_pairs_begin_as_in_mimicry(mimicry):
    """Statistics of narrow SN-GANs over seeds; its biases begin at random, the papers' at 0."""
    module = mimicry("sngan.sngan_32")
    rows = []
    for seed in range(6):
        torch.manual_seed(seed)
        theirs = [module.SNGANGenerator32(ngf=16), module.SNGANDiscriminator32(ndf=16)]
        for layer in [m for n in theirs for m in n.modules()]:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.zeros_(layer.bias)
            if isinstance(layer, nn.ReLU):
                layer.inplace = False
        ours = [ResNetGenerator(32, 3, 128, 16), ResNetCritic(32, 3, 16, spectral=True)]
        rows.append(torch.stack([outputs_at_first(*pair, seed) for pair in (ours, theirs)]))
    begin_alike(*torch.stack(rows).unbind(dim=1))


@pytest.fixture
def genuine(monkeypatch):
    """Loads a file of a checkout in the folder that TOPK_UPSTREAMS names."""

    def load(repository, path):
        folder = Path(os.environ.get("TOPK_UPSTREAMS", "/nowhere"), repository)
        if not folder.is_dir():
            pytest.skip(f"no checkout {repository} in the folder TOPK_UPSTREAMS")
        spec = importlib.util.spec_from_file_location("genuine", folder / path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.mark.upstream
@pytest.mark.parametrize("size", [32, 64])
def test_dcgan_is_that_of_wgan(genuine, size):
    networks = genuine("martinarjovsky+WassersteinGAN", "models/dcgan.py")
    torch.manual_seed(0)
    theirs = networks.DCGAN_G(size, 100, 3, 64, 0)
    ours = DCGANGenerator(size, 3, 100, 64)
    assert count(ours) == count(theirs)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    z = torch.randn(4, 100)
    images = ours(z)
    torch.testing.assert_close(images, theirs(z[:, :, None, None]))
    theirs, ours = networks.DCGAN_D(size, 100, 3, 64, 0), DCGANCritic(size, 3, 64)
    assert count(ours) == count(theirs)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    torch.testing.assert_close(ours(images), theirs.main(images).flatten())


@pytest.mark.upstream
def test_dcgan_with_labels_is_that_of_msgan(genuine):
    networks = genuine("HelenMao+MSGAN", "DCGAN-Mode-Seeking/networks.py")
    options = types.SimpleNamespace(nz=100, class_num=10)
    y = torch.tensor([0, 3, 9, 3])
    hot = functional.one_hot(y, 10)[:, :, None, None].float()
    torch.manual_seed(0)
    theirs, ours = networks.generator(options), DCGANGenerator(32, 3, 100, 128, 10, bias=True)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    z = torch.randn(4, 100)
    images = ours(z, y)
    torch.testing.assert_close(images, theirs(z, hot))
    theirs, ours = networks.discriminator(options), DCGANCritic(32, 3, 128, 10, bias=True)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    torch.testing.assert_close(ours(images, y).sigmoid(), theirs(images, hot).flatten())


@pytest.fixture
def studiogan(monkeypatch):
    """A pair of a file of its models, whose weights are normed, without most of its imports."""
    folder = Path(
        os.environ.get("TOPK_UPSTREAMS", "/nowhere"), "POSTECH-CVLab+PyTorch-StudioGAN", "src"
    )
    if not folder.is_dir():
        pytest.skip(f"no checkout {folder.parent.name} in the folder TOPK_UPSTREAMS")
    monkeypatch.syspath_prepend(folder)
    misc = types.ModuleType("utils.misc")
    misc.dummy_context_mgr = contextlib.nullcontext
    utils = types.ModuleType("utils")
    utils.__path__, utils.misc = [str(folder / "utils")], misc
    monkeypatch.setitem(sys.modules, "utils", utils)
    monkeypatch.setitem(sys.modules, "utils.misc", misc)

    def pair(file, size, latent, width, classes, at, shared="N/A", start="ortho"):
        """Attention comes after the blocks ``at``, counted from 1."""
        models = importlib.import_module(f"models.{file}")
        ops = importlib.import_module("utils.ops")
        modules = types.SimpleNamespace(
            g_act_fn=nn.ReLU(), d_act_fn=nn.ReLU(), g_bn=ops.ConditionalBatchNorm2d,
            g_conv2d=ops.snconv2d, g_linear=ops.snlinear,
            d_conv2d=ops.snconv2d, d_linear=ops.snlinear, d_embedding=ops.sn_embedding,
        )  # fmt: skip
        options = types.SimpleNamespace(info_type="N/A", g_info_injection="N/A")
        return models.Generator(
            latent, shared, size, width, True, [at[0]], "cBN", classes, start, "N/A", False,
            modules, options,
        ), models.Discriminator(
            size, width, True, True, [at[1]], "PD", "W/O", "N/A", False, classes, start, "N/A",
            False, modules, options,
        )  # fmt: skip

    yield pair
    for name in [n for n in sys.modules if n.partition(".")[0] in ("models", "utils")]:
        sys.modules.pop(name)


@pytest.mark.upstream
@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
@pytest.mark.parametrize(("size", "at", "attention"), [(32, (2, 1), 16), (128, (3, 2), 32)])
def test_sagan_is_that_of_studiogan(studiogan, monkeypatch, size, at, attention):
    """Of its configuration for CIFAR-10, and of 128 pixels; but for ReLU in place."""
    monkeypatch.setattr(torch, "float32", torch.float64)  # it makes labels single
    width, y = 8, torch.arange(3)
    torch.manual_seed(0)
    theirs, critic = studiogan("resnet", size, 6, width, 10, at)
    flat = 4 if size == 32 else 1  # times its own width
    ours = ResNetGenerator(size, 3, 6, flat * width, 10, True, attention)
    assert count(ours) == count(theirs)
    ours.double(), theirs.double().eval()
    norms = [m for m in theirs.modules() if type(m).__name__ == "ConditionalBatchNorm2d"]
    for norm, other in zip(norms_of(ours), norms, strict=True):
        hot = torch.eye(10, dtype=torch.float64)
        norm.factor.weight.data.copy_(1 + other.gain(hot))
        norm.shift.weight.data.copy_(other.bias(hot))
    shaken(ours, theirs)
    blocks = [layer for group in theirs.blocks for layer in of_studiogan(group[0])]
    layers = [theirs.linear0, *blocks, theirs.conv2d5]
    same_function(ours, theirs, layers, normal(3, 6), y)

    ours = ResNetCritic(size, 3, width * (2 if size == 32 else 1), 10, True, attention)
    same_critic(ours, critic, size, y)


def same_critic(ours, theirs, size, y):
    assert count(ours) == count(theirs)
    shaken(ours, theirs)
    blocks = [layer for group in theirs.blocks for layer in of_studiogan(group[0])]
    layers = [*blocks, theirs.linear1, theirs.embedding]
    same_function(ours, theirs, layers, normal(3, 3, size, size), y)


def of_studiogan(block):
    names = ["conv2d1", "conv2d2", "conv2d0", *(f"conv1x1_{n}" for n in ("theta", "phi", "g"))]
    return [getattr(block, n) for n in (*names, "conv1x1_attn") if hasattr(block, n)]


@pytest.mark.upstream
@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
@pytest.mark.parametrize(
    ("size", "latent", "at", "attention"), [(32, 80, (2, 1), 16), (128, 120, (4, 1), 64)]
)
def test_biggan_is_that_of_studiogan(studiogan, size, latent, at, attention):
    """Of its configurations for CIFAR-10 and ImageNet, narrower; but for ReLU in place."""
    width, y = 8, torch.arange(3)
    torch.manual_seed(0)
    theirs, critic = studiogan("big_resnet", size, latent, width, 10, at, shared=12)
    ours = BigGANGenerator(size, 3, latent, width, 10, 12, attention)
    assert count(ours) == count(theirs)
    ours.double(), theirs.double()
    shaken(ours, theirs)
    norms = [m for m in theirs.modules() if type(m).__name__ == "ConditionalBatchNorm2d"]
    mine = [layer for norm in norms_of(ours) for layer in (norm.factor, norm.shift)]
    transfer(mine, [layer for norm in norms for layer in (norm.gain, norm.bias)])
    blocks = [layer for group in theirs.blocks for layer in of_studiogan(group[0])]
    layers = [theirs.shared, theirs.linear0, *blocks, theirs.conv2d5]
    same_function(ours, theirs, layers, normal(3, latent), y)
    same_critic(BigGANCritic(size, 3, width, 10, attention), critic, size, y)


@pytest.mark.upstream
@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
@pytest.mark.parametrize(
    ("name", "file", "sizes"),
    [
        ("BigGAN", "big_resnet", (32, 80, 96, 10, (2, 1), 128)),
        ("SAGAN 128", "resnet", (128, 128, 64, 1000, (3, 2))),
        ("BigGAN 128", "big_resnet", (128, 120, 96, 1000, (4, 1), 128)),
    ],
)
def test_recorded_numbers_of_parameters_are_those_of_studiogan(studiogan, name, file, sizes):
    """At full width."""
    with torch.device("meta"):
        pair = studiogan(file, *sizes, start="N/A")
    assert tuple(map(count, pair)) == COUNTS[name][1::2]


@pytest.mark.upstream
@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
def test_biggan_begins_as_in_studiogan(studiogan):
    """Statistics over seeds, of its configuration for CIFAR-10 but narrower."""
    rows, y = [], torch.arange(64) % 10
    for seed in range(6):
        torch.manual_seed(seed)
        theirs = studiogan("big_resnet", 32, 128, 16, 10, (2, 1), shared=128)
        ours = [
            BigGANGenerator(32, 3, 128, 16, 10, attention=16),
            BigGANCritic(32, 3, 16, 10, attention=16),
        ]
        rows.append(torch.stack([outputs_at_first(*pair, seed, y) for pair in (ours, theirs)]))
    begin_alike(*torch.stack(rows).unbind(dim=1))


@pytest.mark.upstream
def test_biggan_of_128_pixels_has_as_many_parameters_as_its_authors(monkeypatch):
    """With the arguments of scripts/launch_BigGAN_bs256x8.sh that concern the networks."""
    folder = Path(os.environ.get("TOPK_UPSTREAMS", "/nowhere"), "ajbrock+BigGAN-PyTorch")
    if not folder.is_dir():
        pytest.skip(f"no checkout {folder.name} in the folder TOPK_UPSTREAMS")
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    networks = importlib.import_module("BigGAN")
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(folder):
            del sys.modules[name]
    with torch.device("meta"):
        generator = networks.Generator(
            G_ch=96, dim_z=120, resolution=128, G_attn="64", n_classes=1000, G_shared=True,
            shared_dim=128, hier=True, skip_init=True, no_optim=True,
        )  # fmt: skip
        critic = networks.Discriminator(
            D_ch=96, resolution=128, D_attn="64", n_classes=1000, skip_init=True
        )
    assert (count(generator), count(critic)) == COUNTS["BigGAN 128"][1::2]
