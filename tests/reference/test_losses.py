"""Losses and regularisers against naive forms, a sample at a time, in double precision."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import binary_cross_entropy

from topk_plugin.reference.losses import LOSSES
from topk_plugin.reference.regularizers import (
    clip_weights_,
    consistency,
    gradient_penalty,
    latent_insensitivity,
    mode_seeking,
    shifted_and_flipped,
)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- losses -------------------------------------------------------------------------------------


def sigmoid(score):
    return 1 / (1 + math.exp(-score))


NAIVE = {
    "non-saturating": (
        lambda real: -math.log(sigmoid(real)),
        lambda fake: -math.log(1 - sigmoid(fake)),
        lambda fake: -math.log(sigmoid(fake)),
    ),
    "wasserstein": (lambda real: -real, lambda fake: fake, lambda fake: -fake),
    "hinge": (
        lambda real: max(0.0, 1 - real),
        lambda fake: max(0.0, 1 + fake),
        lambda fake: -fake,
    ),
}  # of a real score and of a fake one for the critic, of a fake one for the generator


def mean_of(one, scores):
    return sum(map(one, scores.tolist())) / len(scores)


def slopes_of(one, scores, h=1e-6):
    """Of the mean, by central differences."""
    return [(one(s + h) - one(s - h)) / (2 * h) / len(scores) for s in scores.tolist()]


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_the_naive_means(name):
    of_real, of_fake, of_generator = NAIVE[name]
    real, fake = (2 * normal(n, seed=n) for n in (7, 5))  # on both sides of hinge's margins
    both = [real.requires_grad_(), fake.requires_grad_()]
    loss = LOSSES[name].critic_loss(real, fake)
    assert loss.item() == pytest.approx(mean_of(of_real, real) + mean_of(of_fake, fake))
    by_real, by_fake = torch.autograd.grad(loss, both)
    assert by_real.tolist() == pytest.approx(slopes_of(of_real, real), abs=1e-9)
    assert by_fake.tolist() == pytest.approx(slopes_of(of_fake, fake), abs=1e-9)
    loss = LOSSES[name].generator_loss(fake)
    assert loss.item() == pytest.approx(mean_of(of_generator, fake))
    [by_fake] = torch.autograd.grad(loss, fake)
    assert by_fake.tolist() == pytest.approx(slopes_of(of_generator, fake), abs=1e-9)


def test_non_saturating_is_the_cross_entropy_of_a_sigmoid():
    """As DCGAN's and MSGAN's code has it, whose critics end in one."""
    real, fake = normal(6), normal(6, seed=1)
    ones, zeros = torch.ones_like(real), torch.zeros_like(fake)
    loss = LOSSES["non-saturating"]
    expected = binary_cross_entropy(real.sigmoid(), ones)
    expected = expected + binary_cross_entropy(fake.sigmoid(), zeros)
    torch.testing.assert_close(loss.critic_loss(real, fake), expected)
    torch.testing.assert_close(
        loss.generator_loss(fake), binary_cross_entropy(fake.sigmoid(), ones)
    )


def test_non_saturating_stays_finite_where_a_sigmoid_is_0_or_1():
    scores = torch.tensor([-200.0, 200.0], requires_grad=True)
    loss = LOSSES["non-saturating"]
    for value in (loss.critic_loss(scores, -scores), loss.generator_loss(scores)):
        [slopes] = torch.autograd.grad(value, scores)
        assert value.isfinite()
        assert slopes[0] < -0.4  # and it still pulls a score that is wrong


# --- gradient penalty ---------------------------------------------------------------------------


def test_gradient_penalty_of_a_linear_critic_is_known():
    weight = normal(3, 4, 4).requires_grad_()
    real, fake = normal(5, 3, 4, 4, seed=1), normal(5, 3, 4, 4, seed=2)
    penalty = gradient_penalty(lambda x, y: (x * weight).sum(dim=(1, 2, 3)), real, fake)
    norm = weight.detach().norm()
    torch.testing.assert_close(penalty, (norm - 1) ** 2)
    [slope] = torch.autograd.grad(penalty, weight)
    torch.testing.assert_close(slope, 2 * (norm - 1) * weight.detach() / norm)


class Curved(nn.Module):
    """A critic whose slope depends on where it is, and on the label."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.factor = nn.Embedding(2, 4)
        self.double()

    def forward(self, x, y):
        return (self.conv(x).tanh().sum(dim=(2, 3)) * self.factor(y)).sum(dim=1)


def test_gradient_penalty_is_the_naive_mean():
    torch.manual_seed(0)
    critic = Curved()
    real, fake = normal(5, 3, 6, 6, seed=1), normal(5, 3, 6, 6, seed=2)
    fake.requires_grad_()
    labels = torch.tensor([0, 1, 1, 0, 1])
    shares = torch.linspace(0, 0.9, 5, dtype=torch.float64)
    found = gradient_penalty(critic, real, fake, labels, shares)

    expected = []
    for row in range(5):
        x = (1 - shares[row]) * real[row] + shares[row] * fake[row].detach()
        x = x.requires_grad_()
        score = critic(x[None], labels[row : row + 1]).squeeze()
        [slope] = torch.autograd.grad(score, x, create_graph=True)
        expected.append((slope.square().sum().sqrt() - 1) ** 2)
    expected = torch.stack(expected).mean()
    torch.testing.assert_close(found, expected)
    # the convolution's bias matters too: it says where tanh is steep
    parameters = list(critic.parameters())
    for a, b in zip(
        torch.autograd.grad(found, parameters, retain_graph=True),
        torch.autograd.grad(expected, parameters),
        strict=True,
    ):
        assert b.abs().max() > 1e-4
        torch.testing.assert_close(a, b)
    assert torch.autograd.grad(found, fake, allow_unused=True) == (None,)


def test_gradient_penalty_lies_between_real_and_fake():
    seen = []

    def critic(x, y):
        seen.append(x.detach())
        return x.sum(dim=(1, 2, 3))

    zeros = torch.zeros(200, 1, 2, 2)
    gradient_penalty(critic, zeros, zeros + 1)
    [points] = seen
    share = points[:, 0, 0, 0]
    assert (points == share[:, None, None, None]).all()  # one share an image
    assert ((share > 0) & (share < 1)).all()
    assert abs(share.mean() - 0.5) < 0.1


# --- clipping and mode seeking ------------------------------------------------------------------


def test_clip_weights():
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = [p.detach().clone() for p in critic.parameters()]
    clip_weights_(critic, 0.1)
    for old, new in zip(before, critic.parameters(), strict=True):
        assert new.equal(old.clamp(-0.1, 0.1))
        assert new.requires_grad
    assert critic[1].weight.equal(torch.full((4,), 0.1))
    assert critic[1].running_var.equal(torch.ones(4))  # no weights


def test_mode_seeking_is_the_naive_ratio():
    x1, x2 = (normal(3, 1, 2, 2, seed=s).requires_grad_() for s in (0, 1))
    z1, z2 = normal(3, 4, seed=2), normal(3, 4, seed=3)
    found = mode_seeking(x1, x2, z1, z2, epsilon=0.5)
    pixels = zip(x1.flatten().tolist(), x2.flatten().tolist(), strict=True)
    numbers = zip(z1.flatten().tolist(), z2.flatten().tolist(), strict=True)
    apart = sum(abs(a - b) for a, b in pixels) / 12
    latents = sum(abs(a - b) for a, b in numbers) / 12
    assert found.item() == pytest.approx(1 / (apart / latents + 0.5))
    by_x1, by_x2 = torch.autograd.grad(found, (x1, x2))
    slope = -(found.item() ** 2) / latents / 12
    torch.testing.assert_close(by_x1, slope * (x1 - x2).sign().detach())
    torch.testing.assert_close(by_x2, -by_x1)


def test_mode_seeking_of_equal_images_is_finite():
    x = torch.zeros(2, 1, 4, 4)
    assert mode_seeking(x, x, torch.zeros(2, 3), torch.ones(2, 3)).item() == pytest.approx(1e5)


# --- consistency --------------------------------------------------------------------------------


def naive_augmented(image, draws):
    """Of one channel (H, W) as a list of lists: mirrored, then moved, a pixel at a time."""
    height, width = len(image), len(image[0])
    if draws[0] < 0.5:
        image = [line[::-1] for line in image]
    down, right = (
        int(draw * (2 * (length // 8) + 1)) - length // 8
        for draw, length in zip(draws[1:], (height, width), strict=True)
    )

    def inside(position, length):
        if position < 0:
            return -position
        return position if position < length else 2 * (length - 1) - position

    return [
        [image[inside(h - down, height)][inside(w - right, width)] for w in range(width)]
        for h in range(height)
    ]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_shifted_and_flipped_is_the_naive_form(data):
    def whole(most):
        return data.draw(st.integers(1, most))

    rows, channels, height, width = whole(3), whole(3), whole(20), whole(20)
    dtype = data.draw(
        st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])
    )
    memory = data.draw(st.sampled_from([torch.contiguous_format, torch.channels_last]))
    share = st.floats(0, 1, exclude_max=True)
    draws = data.draw(st.lists(st.tuples(share, share, share), min_size=rows, max_size=rows))
    x = normal(rows, channels, height, width).to(dtype).contiguous(memory_format=memory)
    found = shifted_and_flipped(x, torch.tensor(draws, dtype=torch.float64))
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    expected = [
        [naive_augmented(channel, own) for channel in image]
        for image, own in zip(x.tolist(), draws, strict=True)
    ]
    assert found.tolist() == expected


def test_every_shift_and_flip_is_equally_likely():
    """On draws that fill [0, 1) evenly; the centre's pixel and its right neighbour tell which."""
    height, width = 32, 40  # shifts by up to 4 and 5 pixels
    shares = ((torch.arange(n) + 0.5) / n for n in (2, 2 * 9, 2 * 11))
    draws = torch.cartesian_prod(*shares)
    x = torch.arange(float(height * width)).view(1, 1, height, width)
    centre = shifted_and_flipped(x.expand(len(draws), -1, -1, -1), draws)[:, 0, 16, 20:22]
    counts = {}
    for pair in centre.tolist():
        counts[tuple(pair)] = counts.get(tuple(pair), 0) + 1
    expected = {}
    for down, right in product(range(-4, 5), range(-5, 6)):
        row, column = 16 - down, 20 - right
        expected[width * row + column, width * row + column + 1] = 4
        mirrored = width * row + width - 1 - column
        expected[mirrored, mirrored - 1] = 4
    assert counts == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_border_reflects_and_the_last_draw_shifts_by_no_more(dtype):
    x = torch.arange(8.0).view(1, 1, 1, 8)
    one = torch.ones((), dtype=dtype)
    last = torch.nextafter(one, 0 * one).item()  # the largest draw
    lines = [
        shifted_and_flipped(x, torch.tensor([draws], dtype=dtype)).flatten().tolist()
        for draws in [(0.5, 0, last), (0.5, last, 0), (0.5, 0, 0.5), (0, last, last)]
    ]
    assert lines == [
        [1, 0, 1, 2, 3, 4, 5, 6],
        [1, 2, 3, 4, 5, 6, 7, 6],
        [0, 1, 2, 3, 4, 5, 6, 7],
        [6, 7, 6, 5, 4, 3, 2, 1],
    ]


def test_shifted_and_flipped_has_the_gradient_of_its_images():
    x = normal(3, 2, 8, 9).requires_grad_()
    draws = torch.tensor([[0.2, 0.1, 0.9], [0.7, 0.9, 0.1], [0.3, 0.5, 0.1]])
    assert torch.autograd.gradcheck(lambda x: shifted_and_flipped(x, draws), x)


def test_shifted_and_flipped_needs_no_value_on_the_host():
    """As a CUDA graph must not: nothing can be read from the device that has no memory."""
    x, draws = torch.empty(4, 3, 16, 24, device="meta"), torch.empty(4, 3, device="meta")
    assert shifted_and_flipped(x, draws).shape == x.shape


@given(st.lists(st.tuples(*[st.floats(-1e3, 1e3)] * 2), min_size=1, max_size=8))
def test_consistency_is_the_naive_mean(pairs):
    scores, others = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    scores, others = scores.clone().requires_grad_(), others.clone().requires_grad_()
    found = consistency(scores, others)
    assert found.item() == pytest.approx(sum((a - b) ** 2 for a, b in pairs) / len(pairs))
    assert found.equal(consistency(others, scores))
    assert consistency(scores, scores) == 0
    by_scores, by_others = torch.autograd.grad(found, (scores, others))
    expected = [2 * (a - b) / len(pairs) for a, b in pairs]
    assert by_scores.tolist() == pytest.approx(expected)
    assert by_others.equal(-by_scores)


def test_latent_insensitivity_is_the_naive_mean():
    x, others = (normal(3, 1, 2, 2, seed=s).requires_grad_() for s in (0, 1))
    found = latent_insensitivity(x, others)
    pixels = zip(x.flatten().tolist(), others.flatten().tolist(), strict=True)
    assert found.item() == pytest.approx(-sum((a - b) ** 2 for a, b in pixels) / 12)
    by_x, by_others = torch.autograd.grad(found, (x, others))
    torch.testing.assert_close(by_x, (-(x - others) / 6).detach())  # downhill is apart
    assert by_others.equal(-by_x)
    black, white = -torch.ones(2, 1, 4, 4), torch.ones(2, 1, 4, 4)
    assert (latent_insensitivity(black, white), latent_insensitivity(black, black)) == (-4, 0)
