"""The loss of the kept scores alone, where nothing but the gated scores is seen of it."""

import re
from pathlib import Path

import launched
import pytest
import torch
import torch.nn.functional as F
from checked import check, line
from torch import nn
from torch.overrides import TorchFunctionMode
from torches import indexes, reads_shapes

from topk_plugin.check.tape import Tape, Unrepeatable

CASES = Path(__file__).parents[1] / "cases"
SCRIPT = str(CASES / "generator_losses.py")
B, KEPT = 6, [0, 2, 5]
ROWS = torch.tensor([n in KEPT for n in range(B)])


def check_loss(folder, name, *flags):
    settings = ["--gamma", "0.5", "--nu", "0.25", *flags]
    words = ["check", "--critic", "small:Judge", *settings, "--", SCRIPT, name, "5"]
    return launched.run(folder, words)


@pytest.mark.parametrize(
    "name",
    [
        "hinge", "softplus", "sum_over_rows", "lsgan", "wgan", "bce", "labels", "noisy_labels",
        "views", "in_place", "paired",
    ],
)  # fmt: skip
def test_losses_that_add_up_over_samples_agree(tmp_path, name):
    """Before, nobody looked at the loss where the critic was named."""
    done = check_loss(tmp_path, name)
    assert done.status == 0, done.out + done.err
    found = re.fullmatch(r"relative difference at most (\S+)", line(done, "loss on kept scores"))
    assert found, done.out
    assert float(found[1]) <= 1e-12
    assert "Warning" not in done.err


@reads_shapes
@pytest.mark.parametrize(
    ("name", "operation"),
    [
        ("average", " (BinaryCrossEntropyWithLogitsBackward0)"),
        ("softmax", " (LogBackward0)"),
        ("std", " (StdBackward0)"),
        ("logsumexp", " (LogsumexpBackward0)"),
        ("hidden", ""),  # by something without a gradient
    ],
)
def test_losses_that_couple_rows_differ(tmp_path, name, operation):
    """It said that all agrees, as the gate did what it should."""
    done = check_loss(tmp_path, name)
    assert done.status == 3
    assert re.fullmatch(
        r"DISAGREES: relative difference at most \d\.\de[+-]\d\d: the loss couples the rows of a "
        rf"batch{re.escape(operation)}, so dropping .*",
        line(done, "loss on kept scores"),
    ), done.out


@reads_shapes
def test_coupled_rows_that_do_not_show(tmp_path):
    """A hinge whose margins no row has reached is a mean."""
    done = check_loss(tmp_path, "average_hinge")
    assert done.status == 0, done.out
    assert "(ReluBackward0), which did not show in these steps" in line(done, "note")


def test_another_reduction(tmp_path):
    done = check_loss(tmp_path, "sum")
    assert done.status == 3
    assert "pass --reduction sum" in line(done, "loss on kept scores")
    assert check_loss(tmp_path, "sum", "--reduction", "sum").status == 0
    done = check_loss(tmp_path, "hinge", "--reduction", "sum")
    assert "pass --reduction mean" in line(done, "loss on kept scores")


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ("-F.dropout(s).mean()", "dropout draws random numbers"),
        pytest.param(
            "-s[: len(s) // 2].mean()",
            r"the loss takes rows by their numbers \(__getitem__\)",
            marks=indexes,
        ),
        ("-Own.apply(s).mean()", "the loss is not made of the scores by torch's functions alone"),
        ("-s.mean() + Own.apply(s).sum()", "what was done with the scores gave another gradient"),
        ("F.softplus(-s.view(2, 4)).mean()", r"on 4 of 8 rows: RuntimeError: shape"),
        ("torch.compile(lambda s: -s.mean(), backend='eager')(s)", "relative difference at most 0"),
        ("torch.compile(lambda s: -s.mean(), backend='aot_eager')(s)", "not audited: "),
    ],
)
def test_what_cannot_be_done_again_is_said(folder, loss, said):
    done = check(
        folder,
        f"""
        from gan import *
        import torch.nn.functional as F
        class Own(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x.clone()
            @staticmethod
            def backward(ctx, gradient):
                return gradient
        train(loss=lambda s: {loss})
        """,
    )
    assert re.search(said, line(done, "loss on kept scores")), done.out + done.err
    assert done.status == 0, done.out


def test_a_default_device_and_modes_of_the_script(folder):
    """Entered before and between; a mode that is not the uppermost cannot just be left."""
    done = check(
        folder,
        """
        from gan import *
        from torch.overrides import TorchFunctionMode
        class Counts(TorchFunctionMode):
            n = 0
            def __torch_function__(self, function, types, args=(), kwargs=None):
                Counts.n += 1
                return function(*args, **(kwargs or {}))
        class Within(Critic):
            def forward(self, x):
                with torch.device("cpu"), Counts():
                    return super().forward(x)
        def loss(scores):
            with Counts(), torch.device("cpu"):
                return nn.functional.softplus(-scores).mean()
        torch.set_default_device("cpu")
        with Counts():
            train(Within(), loss=loss)
        """,
        critic="__main__:Within",
    )
    assert done.status == 0, done.out + done.err
    assert line(done, "loss on kept scores").startswith("relative difference at most")


def test_both_losses_before_either_backward_and_two_critic_calls(folder):
    done = check(
        folder,
        """
        from gan import *
        D, G = Critic(), nn.Linear(3, 2)
        optD, optG = (torch.optim.SGD(net.parameters(), 1e-2) for net in (D, G))
        soft = nn.functional.softplus
        for _ in range(9):
            fake = G(torch.randn(8, 3))
            of_generator = soft(-D(fake)).mean() + soft(-D(fake + 0.1)).mean()
            of_critic = soft(D(fake.detach())).mean() + soft(-D(torch.randn(8, 2))).mean()
            optD.zero_grad()
            of_critic.backward()
            optG.zero_grad()
            of_generator.backward()
            optD.step()
            optG.step()
        """,
    )
    assert line(done, "loss on kept scores").startswith("relative difference at most 0"), done.out
    assert done.status == 0, done.out + done.err


def test_autocast(folder):
    done = check(
        folder,
        """
        from gan import *
        def loss(scores):
            with torch.autocast("cpu", torch.bfloat16):
                return nn.functional.softplus(-(scores @ torch.ones(1, 1))).mean()
        train(loss=loss)
        """,
    )
    assert done.status == 0, done.out + done.err
    assert line(done, "loss on kept scores").startswith("relative difference at most")


def test_gradient_accumulation(folder):
    done = check(
        folder,
        """
        from gan import *
        D, G = Critic(), nn.Linear(3, 2)
        optG = torch.optim.SGD(G.parameters(), 1e-2)
        for _ in range(9):
            optG.zero_grad()
            for _ in range(3):
                (nn.functional.softplus(-D(G(torch.randn(8, 3)))).mean() / 3).backward()
            optG.step()
        """,
    )
    assert done.status == 0, done.out + done.err
    assert line(done, "loss on kept scores").startswith("relative difference at most")


# --- a tape by itself -----------------------------------------------------------------------------


def taken(loss, shape=(B, 1)):
    """A tape of a loss, the scores' node, and what it gives for the kept rows."""
    tape, scores = Tape(), torch.randn(shape, dtype=torch.float64, requires_grad=True).clone()
    tape.begin(scores.grad_fn, [scores])
    value = loss(scores)
    tape._off()
    return tape, scores, value


@pytest.mark.parametrize(
    "loss",
    [
        lambda s: F.softplus(-s).mean(),
        lambda s: F.mse_loss(s.view(B), torch.ones(B).double()),
        lambda s: (s * torch.arange(B).view(B, 1)).sum(),
        lambda s: torch.zeros(()).double().add_(s.std()),
        lambda s: (s - s.mean().detach()).square().mean(),
        pytest.param(
            lambda s: s.max(0).values.sum() + torch.stack(s.sort(0)).double()[0].sum(),
            marks=indexes,
        ),
        pytest.param(
            lambda s: (s[-1].item(), s[:2].mean().exp(), F.softplus(-s).mean())[-1],
            marks=indexes,
            id="rows that are logged",
        ),
        lambda s: torch.add(s, 1, out=None).exp().sum(),
        lambda s: s.clone().mul_(2).neg_().exp_().mean(),
    ],
)
def test_it_gives_the_gradient_of_the_loss_of_the_kept_rows(loss):
    tape, scores, value = taken(loss)
    (plain,) = torch.autograd.grad(value, scores, retain_graph=True)
    (again,) = tape.gradient(scores.grad_fn, [(value, None)])
    assert torch.allclose(again, plain, rtol=1e-12)
    (found,) = tape.gradient(scores.grad_fn, [(value, torch.tensor(2.0).double())], ROWS)
    fewer = scores.detach()[ROWS].requires_grad_()
    assert found.shape == (len(KEPT), 1)
    if "B" not in loss.__code__.co_names:  # no companion of B rows
        (literal,) = torch.autograd.grad(2 * loss(fewer), fewer)
        assert torch.allclose(found, literal, rtol=1e-12)


def test_what_was_changed_in_place_is_as_it_was():
    total = torch.ones(1).double()

    def loss(s):
        total.add_(s.sum())
        return (total * total).sum()

    tape, scores, value = taken(loss)
    after = total.detach().clone()
    (found,) = tape.gradient(scores.grad_fn, [(value, None)], ROWS)
    assert torch.equal(total, after)
    expected = 2 * (1 + scores[ROWS].sum())
    assert torch.allclose(found, expected.expand(3, 1), rtol=1e-12)


def test_one_row_is_not_broadcast_against_all():
    """Against labels of B rows, it would fit."""
    labels = torch.rand(B, 1).double()
    tape, scores, value = taken(lambda s: F.mse_loss(s, labels))
    one = torch.zeros(B, dtype=torch.bool)
    one[3] = True
    (found,) = tape.gradient(scores.grad_fn, [(value, None)], one)
    assert torch.allclose(found, 2 * (scores[3:4] - labels[3:4]), rtol=1e-12)


def test_nothing_is_drawn_again_and_the_random_state_stays():
    tape, scores, value = taken(lambda s: (s * torch.rand_like(s)).sum())
    before = torch.get_rng_state()
    (found,) = tape.gradient(scores.grad_fn, [(value, None)], ROWS)
    (plain,) = torch.autograd.grad(value, scores)
    assert torch.equal(found, plain[ROWS])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_gate_that_it_does_not_know():
    tape, scores, value = taken(lambda s: s.sum())
    tape.forget([scores.grad_fn])
    with pytest.raises(Unrepeatable):
        tape.gradient(scores.grad_fn, [(value, None)])


def test_it_leaves_the_modes_of_others_alone():
    class Other(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    def modes():
        return torch.overrides._get_current_function_mode_stack()

    tape, scores = Tape(), nn.Linear(1, 1)(torch.randn(B, 1))
    with Other() as below, torch.device("cpu"):
        before = modes()
        tape.begin(scores.grad_fn, [scores])
        with Other() as above:
            assert modes()[-1] is above
            assert tape in modes()
            with tape.paused():
                assert modes() == [*before, above]
            tape.clear()
            assert modes() == [*before, above]
        assert modes() == before
        assert below in before
    assert modes() == []
