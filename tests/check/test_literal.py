"""`topk check`: what agrees passes, and what is broken on purpose is caught."""

import math
import re
import textwrap
from pathlib import Path

import launched
import pytest
from checked import check, check_tiny, error, line
from launched import Done
from torches import scalers
from training_styles import SCRIPTS, difference, weights

# What is as it should be


@pytest.mark.parametrize(
    ("name", "critic", "steps"),
    [
        ("undetached_fakes.py", "untouched, bit by bit", "untouched, bit by bit (10 "),
        ("gradient_penalty.py", "untouched, bit by bit", "untouched, bit by bit (10 "),
        ("batchnorm_critic.py", "untouched, bit by bit", None),
        ("two_calls.py", "untouched, bit by bit", "untouched, bit by bit (5 "),
        ("accumulation.py", "untouched, bit by bit", None),
        ("tuple_outputs.py", "untouched, bit by bit", "untouched, bit by bit (5 "),
        ("both_backward_first.py", "untouched, bit by bit", None),
        ("energy_low_real.py", "untouched, bit by bit", None),
        ("frozen_critic.py", "none: it is frozen", None),
        pytest.param("grad_scaler.py", "untouched, bit by bit", None, marks=scalers),
        ("backward_inputs.py", "none: it is frozen", None),
        ("outside_embedding.py", "untouched, bit by bit", "untouched, bit by bit (1 "),
        ("two_critics.py", "untouched, bit by bit", None),
        ("adaptive_weight.py", "untouched, bit by bit", None),
    ],
)
def test_styles_of_training_agree(tmp_path, name, critic, steps):
    file = str(SCRIPTS / name)
    done = launched.run(tmp_path, ["check", "--critic", "__main__:Critic", "--", file, "w.pt"])
    assert done.status == 0, done.out + done.err
    assert error(done) <= 1e-12
    assert not (tmp_path / "w.pt").exists(), "the script was not ended"
    assert float(re.search(r"up to (\S+) of", line(done, "changed"))[1]) > 1e-2
    assert line(done, "rows").startswith("those of a plain sort")
    assert line(done, "critic's own gradient").startswith(critic)
    assert line(done, "loss on kept scores").startswith("relative difference at most")
    assert line(done, "result") == "agrees"
    if steps is None:
        assert "critic steps" not in done.out
    else:
        assert line(done, "critic steps").startswith(steps)


@pytest.mark.parametrize(
    ("dtype", "bound"), [("float32", "1e-05"), ("float64", "1e-09"), ("bfloat16", "2e-02")]
)
def test_bound_goes_by_dtype(folder, dtype, bound):
    done = check(folder, f"from gan import *\ntrain(Critic().to(torch.{dtype}))")
    assert done.status == 0, done.out + done.err
    assert f"(bound {bound}, {dtype})" in done.out
    assert error(done) <= float(bound)


def test_gradient_of_the_critic_step_is_no_error(folder):
    """It is still there, a million times as large, when the generator's is added to it."""
    done = check(
        folder,
        """
        from gan import *
        D = Critic()
        (1e6 * D(torch.randn(8, 2) + 3).square().mean()).backward()
        G = nn.Linear(3, 2)
        optG = torch.optim.SGD(G.parameters(), 1e-2)
        for _ in range(5):
            optG.zero_grad()
            (-D(G(torch.randn(8, 3))).mean()).backward()
            optG.step()
        """,
        "--gate",
        "score",
    )
    assert done.status == 0, done.out + done.err
    assert error(done) <= 1e-5


def test_loop_is_not_disturbed(folder):
    """Weights, BatchNorm's buffers and random numbers are those of a run that nobody watches."""
    script = """
        from gan import *
        D = Critic()
        try:
            train(D, detach=False, stop=5)
        finally:
            torch.save({"D": D.state_dict(), "rng": {"next": torch.rand(3)}}, "w.pt")
    """
    done = check(folder, script, "--nu", "0.25")
    assert done.status == 0, done.err
    assert "2 of 8" in done.out
    checked = weights(folder / "w.pt")
    flags = ["--nu", "0.25", "--gamma", "0.25", "--start-epoch", "1", "--", "train.py"]
    done = launched.run(folder, ["run", "--critic", "gan:Critic", *flags])
    assert done.status == 0, done.err
    assert difference(checked, weights(folder / "w.pt")) == 0.0


def test_score_gate_masks_critic_steps_that_are_not_detached(folder):
    done = check(folder, "from gan import *\ntrain(detach=False)", "--gate", "score")
    assert done.status == 3
    assert "masked in 5 backward passes, since" in line(done, "critic steps")
    assert error(done) <= 1e-5
    done = check(folder, "from gan import *\ntrain()", "--gate", "score")
    assert done.status == 0
    assert line(done, "critic's own gradient").startswith("masked as the generator's")


@pytest.mark.parametrize("plugin", ["bottom-k", "random-k"])
def test_rows_of_a_plugin_are_taken_as_they_are(folder, plugin):
    done = check(folder, "from gan import *\ntrain()", "--plugins", plugin)
    assert done.status == 0, done.out + done.err
    assert line(done, "rows").startswith("chosen by a plugin")
    assert error(done) <= 1e-5


def test_sum_reduction(folder):
    script = "from gan import *\ntrain(loss=lambda scores: -scores.sum())"
    done = check(folder, script, "--reduction", "sum")
    assert done.status == 0, done.out + done.err
    done = check(folder, script)
    assert done.status == 3
    assert "the loss sums over the batch, pass --reduction sum" in line(done, "loss on kept scores")


# What is broken

GATES = """
from topk_plugin.core import choice, score_gate, shielded_gate, sorted_choice

Sorted = sorted_choice.SortedChoice

def put(keep):
    # what every gate keeps of a gradient g, by its choice c
    score_gate.keep = choice.keep = keep
    Sorted.keep = lambda self, gradient: keep(gradient, self)
"""

BREAK = {
    "scale": "put(lambda g, c: torch.where(c.kept.reshape(-1, 1), g, 0.0))",
    "shield": """
        original = shielded_gate.GatedCall.backward
        def backward(self, gradients, scores):
            self.mode = "score"
            return original(self, gradients, scores)
        shielded_gate.GatedCall.backward = backward
    """,
    "rows": """
        original = choice.choose
        def choose(*arguments):
            chosen = original(*arguments)
            return chosen._replace(dropped=chosen.dropped.roll(1))
        score_gate.choose = choice.choose = choose
        def dropped(self):
            return self.sort.order.roll(1)[self.k:] if self.k < self.batch else None
        Sorted._dropped = property(dropped)
    """,
    "nan": "put(lambda g, c: g * float('nan'))",
    "direction": """
        original = choice.ballot
        choice.ballot = sorted_choice.ballot = lambda rows: -original(rows)
    """,
    "generator": """
        original = shielded_gate.Box.take
        shielded_gate.Box.take = lambda self, index, gradient: gradient
    """,
}


def broken(folder: Path, name: str, *flags: str) -> Done:
    lines = textwrap.dedent(BREAK[name])
    return check(folder, f"from gan import *\n{GATES}\n{lines}\ntrain()", *flags)


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("scale", ()),
        ("scale", ("--gate", "score")),
        ("scale", ("--direction", "high")),
        ("scale", ("--plugins", "bottom-k")),
        ("generator", ()),
    ],
)
def test_wrong_gradient_is_caught(folder, name, flags):
    done = broken(folder, name, *flags)
    assert done.status == 3
    assert line(done, "gradient").startswith("DISAGREES")
    assert error(done) > 0.1
    of_plugin = "--plugins" in flags
    assert line(done, "rows").startswith("chosen by" if of_plugin else "those of a plain sort")
    assert line(done, "result") == "DISAGREES"


def test_gradient_of_no_number_is_caught(folder):
    done = broken(folder, "nan", "--steps", "1")
    assert done.status == 3
    assert "DISAGREES" in line(done, "gradient")
    assert error(done) == math.inf


NOISY = (
    GATES
    + """
from gan import *

class Noisy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()
    @staticmethod
    def backward(ctx, g):
        return g * (1 + {noise} * torch.randn(g.shape, generator=DEVICE))

DEVICE = torch.Generator().manual_seed(1)
forward = Critic.forward
Critic.forward = lambda self, x: forward(self, Noisy.apply(x))
{broken}
train()
"""
)


@pytest.mark.parametrize("flags", [(), ("--gate", "score")])
def test_what_a_device_does_to_the_same_backward_is_no_error(folder, flags):
    done = check(folder, NOISY.format(noise=1e-4, broken=""), *flags)
    assert done.status == 0, done.out
    assert 1e-5 < error(done) < 4e-4
    assert "; two runs of one backward differ by " in line(done, "gradient")


@pytest.mark.parametrize(("noise", "broken"), [(1e-4, "put(lambda g, c: g * 1.002)"), (0.1, "")])
def test_no_noise_excuses_an_error(folder, noise, broken):
    """Neither one that is larger than the noise, nor noise in which no error could be seen."""
    done = check(folder, NOISY.format(noise=noise, broken=broken))
    assert done.status == 3
    assert line(done, "gradient").startswith("DISAGREES")


@pytest.mark.parametrize(
    ("name", "flags"), [("rows", ()), ("rows", ("--direction", "high")), ("direction", ())]
)
def test_wrong_rows_are_caught(folder, name, flags):
    done = broken(folder, name, *flags)
    assert done.status == 3
    assert re.match(r"DISAGREES: \d+ of 40 are not", line(done, "rows"))
    assert line(done, "gradient").startswith("DISAGREES")


def test_touched_critic_is_caught(folder):
    done = broken(folder, "shield")
    assert done.status == 3
    assert line(done, "critic's own gradient").startswith("DISAGREES")
    assert line(done, "rows").startswith("those of a plain sort")


def test_loss_that_reads_past_the_outputs_is_caught(folder):
    done = check(
        folder,
        """
        from gan import *
        class Keeps(Critic):
            def forward(self, x):
                self.kept = self.net[:3](x)
                return self.net[3](self.kept)
        D = Keeps()
        train(D, loss=lambda scores: -scores.mean() + D.kept.square().mean())
        """,
    )
    assert done.status == 3
    assert line(done, "gradient").startswith("DISAGREES")
    assert "GeneratorStepUnknown" in done.err


# The real loss on the kept scores, behind a call seam


def test_loss_that_takes_each_row_by_itself(folder):
    done = check_tiny(folder, "softplus(-scores).mean()")
    assert done.status == 0, done.out + done.err
    assert re.fullmatch(r"relative difference at most \S+", line(done, "loss on kept scores"))
    assert error(done) <= 1e-5
    assert "note" not in done.out


def test_loss_that_couples_rows(folder):
    done = check_tiny(folder, "softplus(scores.mean() - scores).mean()")
    assert done.status == 3
    assert "couples the rows" in line(done, "loss on kept scores")
    assert error(done) <= 1e-5, "the gate itself does what it says"


@pytest.mark.parametrize(
    ("loss", "right", "wrong"), [("sum", "sum", "mean"), ("mean",) * 2 + ("sum",)]
)
def test_loss_of_another_reduction(folder, loss, right, wrong):
    done = check_tiny(folder, f"softplus(-scores).{loss}()", "--reduction", wrong)
    assert done.status == 3
    assert f"pass --reduction {right}" in line(done, "loss on kept scores")
    done = check_tiny(folder, f"softplus(-scores).{loss}()", "--reduction", right)
    assert done.status == 0


def test_loss_that_takes_no_other_batch(folder):
    done = check_tiny(folder, "binary_cross_entropy_with_logits(scores, torch.ones(8, 1))")
    assert done.status == 0, done.out + done.err
    assert line(done, "loss on kept scores").startswith("not audited: ValueError")


@pytest.mark.parametrize("companions", ["keep", "follow"])
def test_generated_samples_in_one_batch_with_others(folder, companions):
    text = """
    from gan import *
    torch.set_default_dtype(torch.float64)
    from torch.nn.functional import softplus
    D, G = Critic(), nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    opt = torch.optim.Adam(G.parameters()), torch.optim.Adam(D.parameters())

    def scores():
        fake, real = G(torch.randn(8, 3)), torch.randn(8, 2)
        return D(torch.cat([real, fake])).split(8)

    for _ in range(20):
        opt[1].zero_grad()
        of_reals, of_fakes = scores()
        (softplus(-of_reals) + softplus(of_fakes)).mean().backward()
        opt[1].step()
        opt[0].zero_grad()
        of_reals, of_fakes = scores()
        (softplus(-of_fakes).mean() + of_reals.square().mean()).backward()
        opt[0].step()
    """
    done = check(folder, textwrap.dedent(text), "--companions", companions)
    assert done.status == 0, done.out + done.err
    assert error(done) <= 1e-12
    assert line(done, "rows").startswith("those of a plain sort")
    assert line(done, "critic's own gradient") == "untouched, bit by bit"
    assert "joined with those of other samples" in line(done, "loss on kept scores")
