"""The audit itself, in this process: its formulas, its limits; nothing of it stays behind."""

import dataclasses
import gc
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from topk_plugin import TopK, attach
from topk_plugin.check.audit import Audit, Enough
from topk_plugin.check.findings import Findings, _companions, findings
from topk_plugin.check.formula import asked_direction, sorted_rows
from topk_plugin.core import score_gate, shielded_gate
from topk_plugin.core.ranking import kept_rows
from topk_plugin.loop.attach import Attachment
from topk_plugin.seams.critic import CriticSeam, parse_critics
from topk_plugin.seams.source import SourceSeam
from topk_plugin.upstream.known import adapters


def critic_seam(topk):
    return CriticSeam(parse_critics(["gan:Critic"]), topk)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_plain_sort(sign):
    nan, inf = math.nan, math.inf
    for scores in ([0.0] * 5, [1, nan, 3, 1, nan, -inf], [nan, nan], [inf, 2, inf, -1]):
        for k in range(1, len(scores) + 1):
            expected = kept_rows(torch.tensor(scores, dtype=torch.float64), k, sign)
            assert sorted_rows(scores, k, sign) == expected.tolist()
    assert sorted_rows([1.0, 3.0, 3.0, nan, 2.0], 2, 1.0) == [False, True, True, False, False]


def test_asked_direction():
    assert asked_direction([-1.0, -2.0, 5.0]) == 1
    assert asked_direction([1.0, math.nan, 0.0]) == -1
    assert asked_direction([1.0, -1.0]) == 0


class Wobbly(torch.autograd.Function):
    """Sums in another order each time, as some devices do."""

    @staticmethod
    def forward(ctx, weight):
        return weight.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (1 + 1e-6 * torch.rand_like(gradient))


def loop(topk: TopK, audit: Audit, wobbly: bool = False, steps: int = 9) -> None:
    class Critic(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 1))

        def forward(self, x):
            return x @ (Wobbly.apply(self.weight) if wobbly else self.weight)

    D, G = Critic(), nn.Linear(3, 2)
    optG = torch.optim.SGD(G.parameters(), 0.1)
    topk.training.progress.hold(0.5)
    with Attachment([D], D, topk, generator=G), audit:  # as a launched run does
        for _ in range(steps):
            optG.zero_grad()
            D.zero_grad()
            (-D(G(torch.randn(8, 3))).mean()).backward()
            optG.step()


@pytest.mark.parametrize("gated", [True, False])
def test_an_output_that_should_follow_and_has_no_gate_is_caught(gated):
    topk = TopK(companions="follow")
    adapter = dataclasses.replace(adapters()["sngan"], companions="keep")
    audit = Audit(topk, SourceSeam(adapter, topk), 3)
    G, D = nn.Linear(3, 2), nn.Linear(2, 5)
    scores, classes = D(G(torch.randn(8, 3))).split([1, 4], dim=1)
    output = topk({"score": scores, "classes": classes, "labels": torch.arange(8)})
    if not gated:
        output["classes"] = classes
    audit._output(output)
    assert audit.companions == [True, gated]
    found = Findings("title")
    _companions(audit, found)
    assert found.agrees == gated
    text = "follow the kept rows (companions)" if gated else "DISAGREES: 1 of 2 tensors do not"
    assert dict(found.findings)["other outputs"].startswith(text)


def test_device_that_gives_no_gradient_twice():
    torch.manual_seed(0)
    topk = TopK()
    audit = Audit(topk, critic_seam(topk), 3)
    with pytest.raises(Enough):
        loop(topk, audit, wobbly=True)
    found = findings(
        audit, SimpleNamespace(seam=audit.seam, tracker=SimpleNamespace(fed=True)), "title"
    )
    assert found.agrees
    assert dict(found.findings)["critic's own gradient"].startswith("untouched, to rounding")


def patched_by_an_audit():
    from torch.optim import optimizer

    gates = (score_gate.ScoreGate, shielded_gate.OutputGate, shielded_gate.InputGate)
    return (
        torch.autograd.backward,
        torch.Tensor.backward,
        [vars(cls)["backward"] for cls in gates],
        [vars(cls).get("apply") for cls in gates],
        torch._C._len_torch_function_stack(),
        getattr(torch._functorch.config, "donated_buffer", None),
        len(optimizer._global_optimizer_post_hooks),
    )


@pytest.mark.parametrize("steps", [2, 9])
def test_nothing_is_left_patched(steps):
    gc.collect()  # what tests before this one listened with
    attach(nn.Linear(1, 1), TopK()).remove()
    topk = TopK()
    before = patched_by_an_audit()
    audit = Audit(topk, critic_seam(topk), 3)
    if steps == 9:
        with pytest.raises(Enough):
            loop(topk, audit, steps=steps)
    else:
        loop(topk, audit, steps=steps)
    assert len(audit.steps) == min(steps, 3)
    assert patched_by_an_audit() == before
    assert topk.observers == []


def test_an_audit_that_cannot_begin_leaves_nothing(monkeypatch):
    topk = TopK()
    seam = critic_seam(topk)
    monkeypatch.setattr(seam, "audited", lambda loss, output: 1 / 0)
    before = patched_by_an_audit()
    with pytest.raises(ZeroDivisionError), Audit(topk, seam, 3):
        pass
    assert patched_by_an_audit() == before
    assert topk.observers == []


def test_gradients_of_other_ranks_are_no_error(monkeypatch):
    monkeypatch.setattr("topk_plugin.check.literal.ranks", lambda: 2)
    topk = TopK()
    audit = Audit(topk, critic_seam(topk), 3)
    with pytest.raises(Enough):
        loop(topk, audit)
    found = findings(
        audit, SimpleNamespace(seam=audit.seam, tracker=SimpleNamespace(fed=True)), "title"
    )
    assert dict(found.findings)["gradient"] == "not audited: gradients are averaged over ranks"
    assert dict(found.findings)["rows"] == "those of a plain sort (24 scores)"
    assert "critic's own gradient" not in dict(found.findings)
    assert found.agrees
