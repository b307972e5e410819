"""What `topk check` says of what it found, and how it ends."""

import re

import launched
import pytest
from checked import check, check_tiny, line

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
    assert "in 4 of 4 generator steps the loss raises the scores of one critic call" in done.out
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
        (("--adapter", "dcgan"), "gan:Critic", "found both of --critic and --adapter"),
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
