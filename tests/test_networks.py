"""DCGAN's and the residual networks: sizes, plain forms, and the networks they were made after."""

import contextlib
import importlib
import importlib.util
import math
import os
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized

from topk_plugin.errors import ConfigError
from topk_plugin.reference.networks import biggan, resnet
from topk_plugin.reference.networks.biggan import BigGANCritic, BigGANGenerator
from topk_plugin.reference.networks.dcgan import DCGANCritic, DCGANGenerator
from topk_plugin.reference.networks.resnet import ResNetCritic, ResNetGenerator

SAGAN = {"classes": 10, "spectral": True}
LATENT = 60
"""Divisible by the parts of BigGAN's latents at all sizes: 3, 4, 5 and 6."""


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- sizes --------------------------------------------------------------------------------------

COUNTS = {
    # martinarjovsky/WassersteinGAN at f7a01e8, models/dcgan.py: DCGAN_G and DCGAN_D, isize 32
    "DCGAN, WGAN": (
        lambda: DCGANGenerator(32, 3, 100, 64), 1_068_928,
        lambda: DCGANCritic(32, 3, 64), 663_296,
    ),
    # the same file with isize 64; pytorch/examples at 77f55b9, dcgan/main.py
    "DCGAN, WGAN 64": (
        lambda: DCGANGenerator(64, 3, 100, 64), 3_576_704,
        lambda: DCGANCritic(64, 3, 64), 2_765_568,
    ),
    # HelenMao/MSGAN at e386c25, DCGAN-Mode-Seeking/networks.py
    "MSGAN": (
        lambda: DCGANGenerator(32, 3, 100, 128, 10, bias=True), 3_531_395,
        lambda: DCGANCritic(32, 3, 128, 10, bias=True), 2_658_689,
    ),
    # torch-mimicry 0.1.16: WGANGPGenerator32(ngf=128) and WGANGPDiscriminator32
    "WGAN-GP": (
        lambda: ResNetGenerator(32, 3, 128, 128), 1_204_483,
        lambda: ResNetCritic(32, 3, 128), 1_053_825,
    ),
    # torch-mimicry 0.1.16: SNGANGenerator32 and SNGANDiscriminator32. pfnet-research's
    # snresnet_32.py has one less in the critic: no bias at the score
    "SN-GAN": (
        lambda: ResNetGenerator(32, 3, 128, 256), 4_276_739,
        lambda: ResNetCritic(32, 3, 128, spectral=True), 1_053_825,
    ),
    # POSTECH-CVLab/PyTorch-StudioGAN at 947b35e, configs/CIFAR10/SAGAN.yaml
    "SAGAN": (
        lambda: ResNetGenerator(32, 3, 128, 256, attention=16, **SAGAN), 4_386_308,
        lambda: ResNetCritic(32, 3, 128, attention=16, **SAGAN), 1_075_586,
    ),
    # the same, configs/CIFAR10/BigGAN.yaml
    "BigGAN": (
        lambda: BigGANGenerator(32, 3, 80, 96, 10, attention=16), 9_416_196,
        lambda: BigGANCritic(32, 3, 96, 10, attention=16), 2_415_170,
    ),
    # the same at 128 pixels with 1000 classes: models/resnet.py with the original's widths, 64,
    # and attention at 32 in both
    "SAGAN 128": (
        lambda: ResNetGenerator(128, 3, 128, 64, 1000, True, 32), 42_078_852,
        lambda: ResNetCritic(128, 3, 64, 1000, True, 32), 39_463_618,
    ),
    # the same, configs/ImageNet/BigGAN-256.yaml; ajbrock/BigGAN-PyTorch at 9845943 with the
    # arguments of scripts/launch_BigGAN_bs256x8.sh has just as many
    "BigGAN 128": (
        lambda: BigGANGenerator(128, 3, 120, 96, 1000, attention=64), 70_433_988,
        lambda: BigGANCritic(128, 3, 96, 1000, attention=64), 87_982_370,
    ),
}  # fmt: skip


def count(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_as_many_as_upstream(name, monkeypatch):
    for module in (resnet, biggan):  # spectral norms add no parameters, and take time
        monkeypatch.setattr(module, "spectral_norm", lambda layer: layer)
    generator, of_generator, critic, of_critic = COUNTS[name]
    with torch.device("meta"):
        assert (count(generator()), count(critic())) == (of_generator, of_critic)


PAIRS = {
    "dcgan": (
        lambda s, c: DCGANGenerator(s, c, LATENT, 4), lambda s, c: DCGANCritic(s, c, 4)
    ),
    "msgan": (
        lambda s, c: DCGANGenerator(s, c, LATENT, 4, 3, bias=True),
        lambda s, c: DCGANCritic(s, c, 4, 3, bias=True),
    ),
    "wgan-gp": (
        lambda s, c: ResNetGenerator(s, c, LATENT, 4), lambda s, c: ResNetCritic(s, c, 4)
    ),
    "sagan": (
        lambda s, c: ResNetGenerator(s, c, LATENT, 8, 3, spectral=True, attention=16),
        lambda s, c: ResNetCritic(s, c, 8, 3, spectral=True, attention=8),
    ),
    "biggan": (
        lambda s, c: BigGANGenerator(s, c, LATENT, 4, 3, shared=5, attention=8),
        lambda s, c: BigGANCritic(s, c, 4, 3, attention=8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize("name", PAIRS)
def test_every_size_runs_and_uses_all_its_parameters(name, size):
    torch.manual_seed(0)
    channels = 1 if size == 32 else 3
    generator, critic = (make(size, channels) for make in PAIRS[name])
    for module in [*generator.modules(), *critic.modules()]:
        if isinstance(module, resnet.Attention):
            nn.init.ones_(module.weight)  # at 0 nothing behind it learns
    z, y = torch.randn(4, LATENT), torch.tensor([0, 1, 2, 2])
    images = generator(z, y)
    assert images.shape == (4, channels, size, size)
    assert images.abs().max() <= 1
    scores = critic(images, y)
    assert scores.shape == (4,)
    assert scores.std() > 0
    scores.square().sum().backward()
    for part in (generator, critic):
        for parameter_name, parameter in part.named_parameters():
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("make", [make for pair in PAIRS.values() for make in pair])
def test_other_sizes_and_channels_are_refused(make):
    for size in (8, 28, 48, 0, -16):
        with pytest.raises(ConfigError, match=f"{size} pixels.*power of two, at least 16"):
            make(size, 3)
    for channels in (0, 2, 4):
        with pytest.raises(ConfigError, match=f"{channels} channels: expected 1 .* or 3"):
            make(32, channels)


def test_attention_elsewhere_is_refused():
    with pytest.raises(ConfigError, match=r"attention at 12 pixels: expected one of \[8, 16, 32\]"):
        ResNetGenerator(32, 3, 6, 8, attention=12)
    with pytest.raises(ConfigError, match=r"attention at 32 pixels: expected one of \[8, 16\]"):
        ResNetCritic(32, 3, 8, attention=32)
    with pytest.raises(ConfigError, match="attention on 4 channels: expected at least 8"):
        ResNetCritic(32, 3, 4, attention=16)


@pytest.mark.parametrize(("size", "parts"), [(32, 4), (64, 5), (128, 6)])
def test_latents_without_equal_parts_are_refused(size, parts):
    message = f"latent of 121 numbers: expected a multiple of {parts} .* each of {parts - 1} blocks"
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        BigGANGenerator(size, 3, 121, 8, 10)


# --- labels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["msgan", "sagan", "biggan"])
def test_labels_matter_and_are_required(name):
    torch.manual_seed(0)
    generator, critic = (make(16, 3).eval() for make in PAIRS[name])
    z, y = torch.randn(4, LATENT), torch.tensor([0, 1, 2, 2])
    images = generator(z, y)
    for module in generator.modules():
        if isinstance(module, resnet.Norm):  # all classes begin alike
            assert generator(z, y.flip(0)).equal(images)
            nn.init.normal_(module.shift.weight)
            break
    for made, (same, other) in {
        generator: (generator(z, y), generator(z, y.flip(0))),
        critic: (critic(images, y), critic(images, y.flip(0))),
    }.items():
        assert not torch.allclose(same, other), made
    for call in (lambda: generator(z), lambda: critic(images)):
        with pytest.raises(ConfigError, match=r"no labels, expected \(B,\) of 3 classes"):
            call()


@pytest.mark.parametrize("name", ["dcgan", "wgan-gp"])
def test_networks_without_classes_ignore_labels(name):
    generator, critic = (make(16, 3).eval() for make in PAIRS[name])
    z, y = torch.randn(4, LATENT), torch.tensor([0, 1, 2, 2])
    assert generator(z, y).equal(generator(z))
    assert critic(generator(z), y).equal(critic(generator(z)))


def test_msgan_sees_labels_as_one_hot_numbers_and_maps():
    torch.manual_seed(0)
    generator, critic = (make(16, 3).double() for make in PAIRS["msgan"])
    z, y = normal(4, LATENT), torch.tensor([0, 2, 1, 2])
    hot = torch.tensor([[1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    joined = torch.cat([z, hot], dim=1)[:, :, None, None]
    images = generator(z, y)
    torch.testing.assert_close(images, generator.layers(joined))
    maps = hot[:, :, None, None] * torch.ones(16, 16)
    torch.testing.assert_close(
        critic(images, y), critic.layers(torch.cat([images, maps.double()], dim=1))
    )


def test_dcgan_is_a_stack_of_strided_convolutions():
    """Radford et al. (2015), section 3: what lies between them, written out."""
    torch.manual_seed(0)
    generator, critic = (make(32, 3).double() for make in PAIRS["dcgan"])

    def normed(x, norm):
        mean, square = x.mean(dim=(0, 2, 3)), x.square().mean(dim=(0, 2, 3))
        factor = norm.weight / (square - mean**2 + 1e-5).sqrt()
        return (x - mean[:, None, None]) * factor[:, None, None] + norm.bias[:, None, None]

    def of(network, kind):
        return [layer for layer in network.layers if isinstance(layer, kind)]

    up, down = of(generator, nn.ConvTranspose2d), of(critic, nn.Conv2d)
    z = normal(4, LATENT)
    x = functional.conv_transpose2d(z[:, :, None, None], up[0].weight)
    for norm, conv in zip(of(generator, nn.BatchNorm2d), up[1:], strict=True):
        x = functional.conv_transpose2d(normed(x, norm).clamp(min=0), conv.weight, None, 2, 1)
    torch.testing.assert_close(generator(z), x.tanh())

    found = critic(x)
    x = functional.conv2d(x, down[0].weight, None, 2, 1)
    for norm, conv in zip(of(critic, nn.BatchNorm2d), down[1:-1], strict=True):
        x = functional.conv2d(x.where(x > 0, 0.2 * x), conv.weight, None, 2, 1)
        x = normed(x, norm)
    x = x.where(x > 0, 0.2 * x)
    torch.testing.assert_close(found, (x * down[-1].weight).sum(dim=(1, 2, 3)))


def test_the_critic_projects_on_the_class():
    """Miyato & Koyama (2018), equation 3."""
    torch.manual_seed(0)
    critic = ResNetCritic(16, 3, 8, classes=3, spectral=True).double().eval()
    features = []
    critic.score.register_forward_pre_hook(lambda module, args: features.append(args[0]))
    y = torch.tensor([2, 0, 1, 2])
    found = critic(normal(4, 3, 16, 16), y)
    for row in range(4):
        vector = critic.score.weight[0] + critic.projection.weight[y[row]]
        torch.testing.assert_close(
            found[row], vector @ features[0][row] + critic.score.bias.squeeze()
        )


# --- plain forms --------------------------------------------------------------------------------


def agree(found, expected, parameters):
    """Values, slopes, and slopes of slopes."""
    torch.testing.assert_close(found, expected)
    weights = normal(*found.shape, seed=9)
    slopes = [
        torch.autograd.grad((y * weights).sum(), parameters, create_graph=True)
        for y in (found, expected)
    ]
    curves = []
    for of_one in slopes:
        total = sum(s.square().sum() for s in of_one)
        curves.append(torch.autograd.grad(total, parameters))
    for a, b in zip(slopes[0] + curves[0], slopes[1] + curves[1], strict=True):
        torch.testing.assert_close(a, b)


def test_convolution_of_doubled_pixels():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 3, padding=1).double()
    x = normal(2, 3, 6, 4).requires_grad_()
    plain = conv(x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
    agree(resnet.of_doubled(x, conv), plain, [x, conv.weight])


def test_convolution_and_average():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 3, padding=1).double()
    x = normal(2, 3, 6, 4).requires_grad_()
    full = conv(x)
    plain = (full[..., ::2, ::2] + full[..., 1::2, ::2] + full[..., ::2, 1::2]
             + full[..., 1::2, 1::2]) / 4  # fmt: skip
    agree(resnet.then_halved(x, conv), plain, [x, conv.weight])


def test_attention_is_the_naive_sum():
    torch.manual_seed(0)
    attention = resnet.Attention(16, spectral=False).double()
    nn.init.constant_(attention.weight, 0.7)
    x = normal(2, 16, 4, 6)
    query = attention.query(x).flatten(2)
    key = functional.max_pool2d(attention.key(x), 2).flatten(2)
    value = functional.max_pool2d(attention.value(x), 2).flatten(2)
    assert (query.shape, key.shape, value.shape) == ((2, 2, 24), (2, 2, 6), (2, 8, 6))
    found = torch.zeros(2, 8, 24, dtype=torch.float64)
    for row in range(2):
        for pixel in range(24):
            share = [(query[row, :, pixel] @ key[row, :, other]).exp() for other in range(6)]
            for other in range(6):
                found[row, :, pixel] += share[other] / sum(share) * value[row, :, other]
    expected = x + 0.7 * attention.out(found.view(2, 8, 4, 6))
    torch.testing.assert_close(attention(x, None), expected)


def test_conditional_norm_is_of_the_whole_batch_then_of_the_class():
    torch.manual_seed(0)
    norm = resnet.Norm(4, classes=3).double()
    nn.init.normal_(norm.factor.weight)
    nn.init.normal_(norm.shift.weight)
    x, y = 3 * normal(5, 4, 2, 2) + 1, torch.tensor([0, 1, 2, 2, 0])
    plain = (x - x.mean(dim=(0, 2, 3), keepdim=True)) / (
        x.var(dim=(0, 2, 3), keepdim=True, unbiased=False) + 1e-5
    ).sqrt()
    found = norm(x, y)
    for row in range(5):
        factor, shift = (t.weight[y[row]][:, None, None] for t in (norm.factor, norm.shift))
        torch.testing.assert_close(found[row], plain[row] * factor + shift)


def test_norm_conditional_on_features():
    """Brock et al. (2019), appendix B: what linear maps make of the features, beside 1 and 0."""
    torch.manual_seed(0)
    norm = biggan.ConditionalNorm(4, 6).double().eval()
    x, features = normal(5, 4, 2, 2), normal(5, 6, seed=1)
    norm.norm.train()
    plain = (x - x.mean(dim=(0, 2, 3), keepdim=True)) / (
        x.var(dim=(0, 2, 3), keepdim=True, unbiased=False) + 1e-5
    ).sqrt()
    found = norm(x, features)
    for row in range(5):
        factor, shift = (layer.weight @ features[row] for layer in (norm.factor, norm.shift))
        torch.testing.assert_close(
            found[row], plain[row] * (1 + factor[:, None, None]) + shift[:, None, None]
        )


def test_every_block_has_a_part_of_the_latent():
    """Brock et al. (2019), figure 15."""
    torch.manual_seed(0)
    generator = BigGANGenerator(32, 3, 8, 4, 3, shared=5, attention=16)
    seen = []
    for module in generator.modules():
        if isinstance(module, biggan.ConditionalNorm):
            module.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    generator.first.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    z, y = normal(3, 8).float(), torch.tensor([2, 0, 2])
    generator(z, y)
    label = generator.shared.weight[y]
    assert seen[0].equal(z[:, :2])
    parts = [z[:, 2:4], z[:, 2:4], z[:, 4:6], z[:, 4:6], z[:, 6:], z[:, 6:]]
    for found, part in zip(seen[1:], parts, strict=True):
        assert found.equal(torch.cat([label, part], dim=1))


def layers_of(network):
    kinds = nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding
    of_norms = {m for norm in norms_of(network) for m in norm.modules()}
    return [m for m in network.modules() if isinstance(m, kinds) and m not in of_norms]


def norms_of(network):
    kinds = resnet.Norm | biggan.ConditionalNorm
    return [m for m in network.modules() if isinstance(m, kinds)]


def test_spectral_weights_have_norm_1():
    torch.manual_seed(0)
    generator = ResNetGenerator(16, 3, 6, 8, 3, spectral=True, attention=8)
    critic = ResNetCritic(16, 3, 8, 3, spectral=True, attention=8)
    assert (len(layers_of(generator)), len(layers_of(critic))) == (12, 16)
    for layer in layers_of(generator) + layers_of(critic):
        for _ in range(50):  # each use is one step of the power iteration
            weight = layer.weight
        assert torch.linalg.matrix_norm(weight.flatten(1), ord=2).item() == pytest.approx(1, 1e-2)
    for layer in layers_of(ResNetCritic(16, 3, 8, 3, attention=8)):
        assert not is_parametrized(layer)


def test_weights_begin_as_the_papers_say():
    torch.manual_seed(0)
    for layer in DCGANGenerator(32, 3, 100, 64).layers:
        if isinstance(layer, nn.ConvTranspose2d):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert layer.weight.abs().max() > 0.05  # normal, not uniform
        elif isinstance(layer, nn.BatchNorm2d):
            assert layer.weight.mean().item() == pytest.approx(1, abs=0.02)
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.3)
    for network in (ResNetGenerator(32, 3, 128, 32), ResNetCritic(32, 3, 32, 10)):
        for layer in layers_of(network):
            weight = layer.weight
            fans = sum(weight.shape[:2]) * weight[0, 0].numel()
            gain = math.sqrt(2) if weight[0, 0].numel() == 9 and layer.out_channels != 3 else 1
            bound = gain * math.sqrt(6 / fans)
            assert weight.abs().max() <= bound
            if weight.numel() > 90:
                assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)
            if not isinstance(layer, nn.Embedding):
                assert not layer.bias.any()


def test_weights_of_biggan_begin_orthogonal():
    """And normed: spectral norms are 1 from the first, so that they change no weight."""
    torch.manual_seed(0)
    # for evaluation, in which no use is a step of the power iteration
    generator = BigGANGenerator(32, 3, 8, 4, 3, shared=5, attention=16).eval()
    critic = BigGANCritic(32, 3, 4, 3, attention=16).eval()
    inner = [layer for norm in norms_of(generator) for layer in (norm.factor, norm.shift)]
    layers = [*layers_of(generator), *inner, *layers_of(critic)]
    assert len(layers) == 1 + 1 + 3 * 3 + 4 + 1 + 2 * 6 + (3 + 3 + 2 + 2) + 4 + 2
    for layer in layers:
        assert is_parametrized(layer) == (layer is not generator.shared)
        weight = layer.weight.detach().flatten(1)
        short = weight @ weight.T if len(weight) <= weight.shape[1] else weight.T @ weight
        torch.testing.assert_close(short, torch.eye(len(short)))
        if getattr(layer, "bias", None) is not None:
            assert not layer.bias.any()
        if is_parametrized(layer):
            torch.testing.assert_close(layer.weight, layer.parametrizations.weight.original)


def test_scores_of_residual_critics_are_of_one_image_each():
    """Gradient penalties are a sample's own."""
    torch.manual_seed(0)
    critic = ResNetCritic(16, 3, 8).double()
    x = normal(4, 3, 16, 16)
    torch.testing.assert_close(critic(x)[1:3], critic(x[1:3]))


# --- how they are used --------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAIRS)
def test_nothing_depends_on_values(name, monkeypatch):
    """Tensors without values go through, so both can be compiled, or captured as a CUDA graph."""
    monkeypatch.setattr(biggan, "begin_orthogonal", lambda network: None)  # slow, without use here
    with FakeTensorMode():
        generator, critic = (make(16, 3) for make in PAIRS[name])
        z, y = torch.randn(4, LATENT), torch.tensor([0, 1, 2, 2])
        scores = critic(generator(z, y), y)
        scores.sum().backward()
    assert scores.shape == (4,)


@pytest.mark.parametrize("name", PAIRS)
def test_state_is_all_that_a_copy_needs(name, tmp_path):
    """With the vectors of spectral norms, through a file without code."""
    torch.manual_seed(0)
    pair = [make(16, 3) for make in PAIRS[name]]
    z, y = torch.randn(4, LATENT), torch.tensor([0, 1, 2, 2])
    pair[1](pair[0](z, y), y)
    torch.save([network.state_dict() for network in pair], tmp_path / "state.pt")
    again = [make(16, 3) for make in PAIRS[name]]
    for network, state in zip(again, torch.load(tmp_path / "state.pt", weights_only=True),
                              strict=True):  # fmt: skip
        network.load_state_dict(state)
    for _ in range(2):
        scores = [critic(generator(z, y), y) for generator, critic in (pair, again)]
        assert scores[0].equal(scores[1])


# --- the networks they were made after ----------------------------------------------------------


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
