"""`topk check`: what agrees passes, and what is broken on purpose is caught."""

import dataclasses
import math
import re
import textwrap
from pathlib import Path
from types import SimpleNamespace

import launched
import pytest
import torch
from launched import Done
from test_scripts import SCRIPTS, difference, weights
from torch import nn

from topk_plugin import TopK, attach
from topk_plugin.check.audit import Audit, Enough
from topk_plugin.check.findings import Findings, _companions, findings
from topk_plugin.check.formula import asked_direction, sorted_rows
from topk_plugin.core import score_gate, shielded_gate
from topk_plugin.core.ranking import kept_rows
from topk_plugin.seams.source import SourceSeam
from topk_plugin.upstream.known import adapters

GAN = '''
"""Nets and a loop for the short scripts of the tests."""
import torch
from torch import nn
from torch.utils.data import DataLoader

torch.manual_seed(0)


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        return self.net(x)


def g_loss(scores):
    return -scores.mean()


def train(D=None, epochs=3, rows=8, detach=True, loss=g_loss, stop=None):
    D = D or Critic()
    G = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    dtype = next(D.parameters()).dtype
    G.to(dtype)
    optD = torch.optim.SGD(D.parameters(), 1e-2)
    optG = torch.optim.SGD(G.parameters(), 1e-2)
    loader = DataLoader(torch.randn(4 * rows, 2, dtype=dtype) + 1, batch_size=rows, shuffle=True)
    steps = 0
    for _ in range(epochs):
        for x in loader:
            optD.zero_grad()
            fake = G(torch.randn(rows, 3, dtype=dtype))
            (D(fake.detach() if detach else fake).mean() - D(x).mean()).backward()
            optD.step()
            optG.zero_grad()
            loss(D(G(torch.randn(rows, 3, dtype=dtype)))).backward()
            optG.step()
            steps += 1
            if steps == stop:
                return
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "gan.py").write_text(GAN)
    return tmp_path


def check(folder: Path, script: str, *flags: str, critic: str = "gan:Critic") -> Done:
    (folder / "train.py").write_text(textwrap.dedent(script))
    seam = ["--critic", critic] if critic else []
    return launched.run(folder, ["check", *seam, *flags, "--", "train.py"])


def error(done: Done) -> float:
    found = re.search(r"^gradient .* at most (\S+) \(bound", done.out, re.MULTILINE)
    assert found, done.out
    return float(found[1])


def line(done: Done, what: str) -> str:
    found = [text for text in done.out.splitlines() if text.startswith(what)]
    assert len(found) == 1, done.out + done.err
    return found[0].removeprefix(what).strip()


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
        ("grad_scaler.py", "untouched, bit by bit", None),
        ("backward_inputs.py", "none: it is frozen", None),
        ("outside_embedding.py", "untouched, bit by bit", "untouched, bit by bit (1 "),
        ("two_critics.py", "untouched, bit by bit", None),
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
    assert "5 backward passes were masked" in line(done, "critic steps")
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
    done = check(folder, "from gan import *\ntrain()", "--reduction", "sum")
    assert done.status == 0, done.out + done.err


# What is broken

GATES = """
from topk_plugin.core import choice, score_gate, shielded_gate

def put(name, function):
    for gate in (score_gate, shielded_gate):
        setattr(gate, name, function)
"""

BREAK = {
    "scale": "put('keep', lambda g, c: torch.where(c.kept.reshape(-1, 1), g, 0.0))",
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
            return chosen._replace(kept=chosen.kept.roll(1))
        put("choose", choose)
    """,
    "nan": "original = choice.keep\nput('keep', lambda g, c: original(g, c) * float('nan'))",
    "direction": "original = choice.ballot\nchoice.ballot = lambda rows: -original(rows)",
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
    [("scale", ()), ("scale", ("--gate", "score")), ("generator", ())],
)
def test_wrong_gradient_is_caught(folder, name, flags):
    done = broken(folder, name, *flags)
    assert done.status == 3
    assert line(done, "gradient").startswith("DISAGREES")
    assert error(done) > 0.1
    assert line(done, "rows").startswith("those of a plain sort")
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


@pytest.mark.parametrize(
    ("noise", "broken"), [(1e-4, "put('keep', lambda g, c: g * 1.002)"), (0.1, "")]
)
def test_no_noise_excuses_an_error(folder, noise, broken):
    """Neither one that is larger than the noise, nor noise in which no error could be seen."""
    done = check(folder, NOISY.format(noise=noise, broken=broken))
    assert done.status == 3
    assert line(done, "gradient").startswith("DISAGREES")


@pytest.mark.parametrize("name", ["rows", "direction"])
def test_wrong_rows_are_caught(folder, name):
    done = broken(folder, name)
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

ADAPTER = """
from topk_plugin import Adapter, Wrap, hookimpl, scores_argument

@hookimpl
def topk_adapters():
    return [Adapter(
        name="tiny", upstream="somebody/tinygan", versions=("1",), seam="call", direction="{}",
        epoch="a pass", counter="none", tested="here",
        wraps=(Wrap("tinygan", "g_loss", "(scores)", scores_argument("scores")),),
    )]
"""


def check_tiny(folder: Path, loss: str, *flags: str, direction: str = "high") -> Done:
    """`topk check` of a repository whose generator's loss is ``loss``, with an adapter for it."""
    (folder / "tiny_adapter.py").write_text(ADAPTER.format(direction))
    info = folder / "tiny_adapter-1.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-adapter\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[topk_plugin]\ntiny = tiny_adapter\n")
    (folder / "tinygan.py").write_text(
        f"import torch\nfrom torch.nn.functional import *\ndef g_loss(scores):\n    return {loss}\n"
    )
    script = "import gan, tinygan\ngan.train(loss=lambda scores: 0.5 * tinygan.g_loss(scores))"
    return check(folder, script, "--adapter", "tiny", *flags, critic="")


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


def test_critic_seam_does_not_see_the_loss(folder):
    done = check(folder, "from gan import *\ntrain()")
    assert line(done, "loss on kept scores").startswith("not audited: only an adapter's call seam")


# What is suspicious


@pytest.mark.parametrize(
    ("script", "flags", "note"),
    [
        ("train(rows=4)", (), "a batch of 4: k can only be 4, 3, 2"),
        ("train()", ("--gamma", "1"), "k never falls with gamma = 1 and nu = 0.5"),
        ("train()", ("--nu", "1"), "k never falls with gamma = 0.99 and nu = 1"),
        ("train()", ("--direction", "low"), "set to low, and the loss asks for high"),
        (
            "DataLoader = lambda data, batch_size, shuffle: data.split(batch_size)\n"
            "import gan; gan.DataLoader = DataLoader\ntrain()",
            (),
            "pass --every N",
        ),
    ],
)
def test_notes(folder, script, flags, note):
    done = check(folder, f"from gan import *\n{script}", *flags)
    assert done.status == 0, done.out + done.err
    notes = [text for text in done.out.splitlines() if text.startswith("note")]
    assert len(notes) == 1
    assert note in notes[0]


def test_adapter_that_declares_another_direction(folder):
    done = check_tiny(folder, "-scores.mean()", direction="low")
    assert "the adapter says that low scores are realistic" in line(done, "note")


def test_calls_that_disagree_about_the_direction(folder):
    done = check(
        folder,
        """
        from gan import *
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = Critic()
            def forward(self, x):
                return torch.cat([self.inner(x), -self.inner(x + 1)], 1)
        train(Twice(), loss=lambda scores: -scores.mean())
        """,
    )
    assert done.status == 3
    assert "DirectionUnknown" in done.err
    assert "in 5 of 5 generator steps the loss raises the scores of one critic call" in done.out
    assert "2 critic calls in a backward pass" in done.out


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ((), "k first falls after epoch 1 (63 of 64)"),
        (("--gamma", "0.999"), "k first falls after epoch 1 (63 of 64)"),
        (("--gamma", "0.999", "--every", "7"), "k first falls after 7 generator steps (63 of 64)"),
        (("--gamma", "1"), "k stays 64 of 64"),
    ],
)
def test_schedule_is_said(folder, flags, text):
    done = check(folder, "from gan import *\ntrain(rows=64)", *flags)
    assert line(done, "schedule") == text


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("train(Critic().eval(), rows=1)", "k = B = 1"),
        ("train(epochs=30, loss=lambda scores: 0 * scores.sum())", "got no gradient"),
    ],
)
def test_audit_that_shows_nothing_does_not_pass(folder, script, why):
    done = check(folder, f"from gan import *\n{script}")
    assert done.status == 3
    assert why in line(done, "vacuous")


def test_saturated_steps_are_waited_for(folder):
    done = check(
        folder,
        """
        from gan import *
        weight = iter([0.0] * 4 + [1.0] * 8)
        train(loss=lambda scores: -next(weight) * scores.mean())
        """,
    )
    assert done.status == 0, done.out
    assert re.findall(r"^ +(\d+) ", done.out, re.MULTILINE) == ["5", "6", "7", "8", "9"]
    assert "in 4 generator steps, the scores got no gradient" in line(done, "note")


# How it ends


def test_ends_after_the_wanted_steps_whatever_the_loop_catches(folder):
    done = check(
        folder,
        """
        from gan import *
        def caught(step):
            def call(*arguments):
                try:
                    return step(*arguments)
                except Exception:
                    print("swallowed")
            return call
        torch.optim.SGD.step = caught(torch.optim.SGD.step)
        train()
        print("went on")
        """,
        "--steps",
        "2",
    )
    assert done.status == 0, done.err
    assert "went on" not in done.out
    assert "swallowed" not in done.out
    assert "2 generator steps, k held at 0.5 of the batch" in done.out
    assert len(re.findall(r"4 of 8", done.out)) == 2


def test_script_that_ends_early(folder):
    done = check(folder, "from gan import *\ntrain(stop=2)\nprint('done')")
    assert done.status == 0, done.err
    assert "2 generator steps (of 5 that were wanted)" in done.out
    assert "done" in done.out


def test_script_that_dies(folder):
    done = check(folder, "from gan import *\ntrain(stop=2)\nraise SystemExit(7)")
    assert done.status == 7
    assert "2 generator steps (of 5" in done.out
    done = check(folder, "1 / 0")
    assert done.status == 1
    assert done.out == ""
    assert "ZeroDivisionError" in done.err


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("print('hello')", "NoEffectError: topk check: in this process no optimizer stepped"),
        (
            "import gan\ngan.Critic = type('Other', (gan.nn.Module,), dict(gan.Critic.__dict__))\n"
            "from torch import nn\ngan.train(gan.nn.Linear(2, 1))",
            "SeamNotFound: --critic gan:Critic",
        ),
    ],
)
def test_nothing_to_audit(folder, script, said):
    done = check(folder, script)
    assert done.status == 3
    assert said in done.err


@pytest.mark.parametrize(
    ("flags", "critic", "said"),
    [
        ((), "", "found neither of --critic and --adapter"),
        (("--steps", "0"), "gan:Critic", "--steps: found 0"),
        (("--no-enabled",), "gan:Critic", "switched off"),
        (("--gamma", "2"), "gan:Critic", "gamma"),
        (("--adapter", "nobody"), "", "unknown adapter"),
    ],
)
def test_wrong_usage(folder, flags, critic, said):
    done = check(folder, "print('ran')", *flags, critic=critic)
    assert done.status == 2
    assert said in done.err
    assert done.out == ""


def test_no_such_script(folder):
    done = launched.run(folder, ["check", "--critic", "gan:Critic", "--", "absent.py"])
    assert done.status == 2


# The audit itself


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
    topk.progress.hold(0.5)
    with attach(D, topk, generator=G), audit:
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
    audit = Audit(topk, None, 3)
    with pytest.raises(Enough):
        loop(topk, audit, wobbly=True)
    found = findings(audit, SimpleNamespace(seam=None, tracker=SimpleNamespace(fed=True)), "title")
    assert found.agrees
    assert dict(found.findings)["critic's own gradient"].startswith("untouched, to rounding")


@pytest.mark.parametrize("steps", [2, 9])
def test_nothing_is_left_patched(steps):
    gates = (score_gate.ScoreGate, shielded_gate.OutputGate, shielded_gate.InputGate)

    def present():
        from torch.optim import optimizer

        return (
            torch.autograd.backward,
            [vars(cls)["backward"] for cls in gates],
            torch._functorch.config.donated_buffer,
            len(optimizer._global_optimizer_post_hooks),
        )

    topk = TopK()
    before = present()
    audit = Audit(topk, None, 3)
    if steps == 9:
        with pytest.raises(Enough):
            loop(topk, audit, steps=steps)
    else:
        loop(topk, audit, steps=steps)
    assert len(audit.steps) == min(steps, 3)
    assert present() == before
    assert topk.observers == []


def test_graph_that_cannot_be_audited_is_said(folder):
    done = check(
        folder,
        """
        from gan import *
        from torch.utils.checkpoint import checkpoint
        class Checkpointed(Critic):
            def forward(self, x):
                return checkpoint(self.net, x, use_reentrant=True)
        train(Checkpointed(), detach=False)
        """,
        "--gate",
        "score",
    )
    assert done.status == 3
    assert "5 generator steps ran, and none could be audited: RuntimeError" in done.err
    assert "checkpoint" in done.err


def test_gradients_of_other_ranks_are_no_error(monkeypatch):
    monkeypatch.setattr("topk_plugin.check.literal.ranks", lambda: 2)
    topk = TopK()
    audit = Audit(topk, None, 3)
    with pytest.raises(Enough):
        loop(topk, audit)
    found = findings(audit, SimpleNamespace(seam=None, tracker=SimpleNamespace(fed=True)), "title")
    assert dict(found.findings)["gradient"] == "not audited: gradients are averaged over ranks"
    assert dict(found.findings)["rows"] == "those of a plain sort (24 scores)"
    assert "critic's own gradient" not in dict(found.findings)
    assert found.agrees
