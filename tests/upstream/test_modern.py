"""What a package needs to run on today's torch is put into it in memory, with top-k on or off."""

import importlib
from dataclasses import replace

import torch
from toy_upstream import ADAPTER, forget, load, make_seam

from topk_plugin import Replace, Wrap
from topk_plugin.upstream.checkout import Upstream

FILE = "toygan/losses.py"
MODERN = replace(ADAPTER, modern=(Replace(FILE, "scores.mean()", "scores.sum()", "inner_loss"),))


def inner_loss():
    return load()[0].inner_loss(torch.ones(4)).item()


def test_with_top_k_and_after_it(toy):
    before = (toy / FILE).read_bytes()
    seam = make_seam(toy, MODERN)
    seam.apply()
    assert inner_loss() == -4
    seam.undo()
    forget()
    assert inner_loss() == -1
    assert (toy / FILE).read_bytes() == before


def test_without_top_k_where_the_package_is_installed(toy):
    upstream = Upstream(MODERN, [])
    assert upstream.base is None
    upstream.install()
    assert inner_loss() == -4
    upstream.remove()


def test_a_package_that_is_not_here_needs_nothing(toy):
    nowhere = replace(MODERN, wraps=(Wrap("nowhere.losses", "loss", "(scores)"),))
    upstream = Upstream(nowhere, [])
    upstream.install()
    assert inner_loss() == -1
    upstream.remove()


def test_a_wrapper_gates_what_a_critic_returns(toy):
    """Not a loss: what the wrapped function returns is scores."""

    def scored(seam, wrapped, instance, args, kwargs):
        return seam.gated(wrapped(*args, **kwargs))

    wrap = Wrap("toygan.losses", "Losses.own", "(self, scores)", scored)
    (toy / FILE).write_text(
        "class Losses:\n    def own(self, scores):\n        return scores * 2\n"
    )
    seam = make_seam(toy, replace(ADAPTER, wraps=(wrap,)))
    seam.apply()
    scores = torch.tensor([3.0, 1.0, 2.0, 4.0], requires_grad=True)
    heard = []
    with seam.audited(lambda loss, scores: loss(scores), heard.append):
        gated = importlib.import_module("toygan.losses").Losses().own(scores)
    (-gated.mean()).backward()
    assert scores.grad.nonzero().flatten().tolist() == [0, 3]
    assert seam.called == 1
    assert heard[0] is gated
    seam.undo()
