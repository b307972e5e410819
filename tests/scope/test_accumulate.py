"""Micro-batches whose rows compete, against the big batch."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus
from ways_of_ranks import gradient, kept_alone, loss_of, networks

from topk_plugin import TopK, attach, hookimpl
from topk_plugin.errors import ConfigError

N = 32


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def half(**settings):
    topk = TopK(gamma=0.5, nu=0.5, **settings)
    topk.end_epoch()
    return topk


def of_big_batch(z, outputs=1, sum_=False):
    generator, critic = networks(outputs)
    kept = kept_alone(critic(generator(z)), N // 2)
    (softplus(-kept).sum() if sum_ else loss_of(kept)).backward()
    return gradient(generator)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("how", ["line", "line, sum", "attach", "marked", "frozen", "two heads"])
def test_the_gradient_of_the_big_batch(steps, how):
    z, outputs = torch.randn(N, 3), 2 if how == "two heads" else 1
    generator, critic = networks(outputs)
    critic.requires_grad_(how != "frozen")
    topk = half(reduction="sum" if how == "line, sum" else "mean")
    optimizer = torch.optim.SGD(generator.parameters(), 0.0)
    attached = attach(critic, topk) if "line" not in how else None
    gate = topk if attached is None else lambda output: output
    marks = topk.generator_step() if how == "marked" else contextlib.nullcontext()
    with marks, topk.accumulate(steps=steps):
        scores = [gate(critic(generator(part))) for part in z.chunk(steps)]
        if how == "line, sum":
            losses = [softplus(-one).sum() for one in scores]
        else:
            losses = [loss_of(one) / steps for one in scores]
        sum(losses).backward()
    optimizer.step()
    if attached is not None:
        attached.remove()
    expected = of_big_batch(z, outputs, how == "line, sum")
    assert (gradient(generator) - expected).norm() <= 1e-12 * expected.norm()
    report = topk.report()
    assert (report.steps, report.rows, report.dropped) == (1, N, N // 2)


def test_several_backwards_after_the_last_forward():
    z, topk, (generator, critic) = torch.randn(N, 3), half(), networks()
    with topk.accumulate(steps=4):
        losses = [loss_of(topk(critic(generator(part)))) / 4 for part in z.chunk(4)]
    for loss in losses:
        loss.backward()
    expected = of_big_batch(z)
    assert (gradient(generator) - expected).norm() <= 1e-12 * expected.norm()


def test_without_it_each_micro_batch_is_ranked_by_itself():
    z, topk, (generator, critic) = torch.randn(N, 3), half(), networks()
    for part in z.chunk(4):
        (loss_of(topk(critic(generator(part)))) / 4).backward()
    apart = gradient(generator)
    other, critic = networks()
    for part in z.chunk(4):
        (loss_of(kept_alone(critic(other(part)), N // 8)) / 4).backward()
    assert (apart - gradient(other)).norm() <= 1e-12 * apart.norm()
    assert (apart - of_big_batch(z)).norm() > 1e-2 * apart.norm()


def test_at_k_equal_to_b_nothing_changes():
    z, topk, (generator, critic) = torch.randn(30, 3), TopK(gamma=0.5), networks()
    plain = copy.deepcopy(generator)
    with topk.accumulate(steps=4):  # 8, 8, 8 and 6 rows
        sum(loss_of(topk(critic(generator(part)))) / 4 for part in z.chunk(4)).backward()
    sum(loss_of(critic(plain(part))) / 4 for part in z.chunk(4)).backward()
    assert torch.equal(gradient(generator), gradient(plain))


@pytest.mark.parametrize("epochs", [0, 1])
@pytest.mark.parametrize("attached", [False, True])
def test_a_backward_for_each_micro_batch_is_refused(epochs, attached):
    topk, (generator, critic) = TopK(gamma=0.5), networks()
    for _ in range(epochs):
        topk.end_epoch()
    gate = (lambda output: output) if attached else topk
    attachment = attach(critic, topk) if attached else None

    def loop():
        with topk.accumulate(steps=4):
            for part in torch.randn(N, 3).chunk(4):
                loss_of(gate(critic(generator(part)))).backward()

    with pytest.raises(ConfigError, match="after 1 of 4 micro-batches.* Call backward.. once"):
        loop()
    if attachment is not None:
        attachment.remove()
    scores = topk(critic(generator(torch.randn(8, 3))))  # the next step is one of its own
    loss_of(scores).backward()


@pytest.mark.parametrize(("calls", "words"), [(3, "found 3 calls"), (5, "found another call")])
def test_another_number_of_micro_batches(calls, words):
    topk, (generator, critic) = half(), networks()

    def loop():
        with topk.accumulate(steps=4):
            for part in torch.randn(N, 3).chunk(8)[:calls]:
                topk(critic(generator(part)))

    with pytest.raises(ConfigError, match=words):
        loop()


@pytest.mark.parametrize("steps", [0, -1, True, 2.0, "4"])
def test_steps_that_are_no_number(steps):
    with pytest.raises(ConfigError, match="a whole number >= 1"), TopK().accumulate(steps=steps):
        pass


def test_one_inside_another():
    topk = TopK()
    with topk.accumulate(2), pytest.raises(ConfigError, match="inside another"):  # noqa: SIM117
        with topk.accumulate(2):
            pass


class Random:
    @hookimpl
    def topk_select(self, scores, k):
        return torch.rand_like(scores).argsort().argsort() < k


def test_what_does_not_go_with_it():
    with pytest.raises(ConfigError, match="a plugin that chooses rows"):
        TopK(hooks=[Random()], scope="global")
    with (
        pytest.raises(ConfigError, match="a plugin that chooses rows"),
        TopK(hooks=[Random()]).accumulate(2),
    ):
        pass
    topk = half(direction="high")
    with topk.accumulate(2), pytest.raises(ConfigError, match="gather: .* Use topk"):
        topk.gather(torch.randn(4))


def test_other_outputs_follow():
    z = torch.randn(N, 3)

    class WithFeatures(nn.Module):
        def __init__(self):
            super().__init__()
            self.critic = networks()[1]

        def forward(self, x):
            return {"score": self.critic(x), "class": self.critic.body(x).sum(dim=1, keepdim=True)}

    found = []
    for steps in (1, 4):
        generator, critic = networks()[0], WithFeatures()
        topk = half(companions="follow", heads=("score",))
        with topk.accumulate(steps=steps):
            outputs = [topk(critic(generator(part))) for part in z.chunk(steps)]
        losses = [softplus(-o["score"]).mean() + o["class"].square().mean() for o in outputs]
        (sum(losses) / steps).backward()
        found.append(gradient(generator))
    critic, other = WithFeatures(), networks()[0]
    output = critic(other(z))
    order = output["score"].flatten().argsort(descending=True)[: N // 2]
    (softplus(-output["score"][order]).mean() + output["class"][order].square().mean()).backward()
    for one in found:
        assert (one - gradient(other)).norm() <= 1e-12 * one.norm()


def test_an_output_of_another_call_follows_them():
    z, (generator, critic) = torch.randn(N, 3), networks()
    topk = half(companions="follow", direction="high")
    losses = []
    with topk.accumulate(steps=2):
        for part in z.chunk(2):
            fake = generator(part)
            losses.append(softplus(-topk(critic(fake))).mean() / 2)
            losses.append(topk.follow(critic.body(fake)).square().mean() / 2)
        sum(losses).backward()
    other, critic = networks()
    fake = other(z)
    scores = critic(fake).flatten()
    order = scores.argsort(descending=True)[: N // 2]
    (softplus(-scores[order]).mean() + critic.body(fake)[order].square().mean()).backward()
    expected = gradient(other)
    assert (gradient(generator) - expected).norm() <= 1e-12 * expected.norm()
