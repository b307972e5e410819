"""Networks of images: sizes, labels, plain forms, and how they are used."""

import math

import pytest
import torch
from network_layers import COUNTS, count, layers_of, normal, norms_of
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized

from topk_plugin.errors import ConfigError
from topk_plugin.reference.networks import biggan, resnet
from topk_plugin.reference.networks.biggan import BigGANCritic, BigGANGenerator
from topk_plugin.reference.networks.dcgan import DCGANCritic, DCGANGenerator
from topk_plugin.reference.networks.resnet import ResNetCritic, ResNetGenerator

LATENT = 60
"""Divisible by the parts of BigGAN's latents at all sizes: 3, 4, 5 and 6."""


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


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in ("biggan", "sagan")))
        for name in PAIRS
    ],
)
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
