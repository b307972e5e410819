"""What may go wrong, each with what happens then; of some, other rooms have the tests."""

from __future__ import annotations

import ast
import hashlib
import io
import warnings
from pathlib import Path

import pytest
import torch
from launched import plain_run, topk_run
from loops import Gan
from short_scripts import SETTINGS, script, with_gan
from torch import nn

from topk_plugin import TopK, attach
from topk_plugin.errors import ConfigError, ResumeMismatch, RunError
from topk_plugin.loop import distributed_checkpoint
from topk_plugin.reference.fid.cache import cached
from topk_plugin.reference.fid.inception_features import inception
from topk_plugin.reference.runs.files import load_checkpoint

TESTS = Path(__file__).parents[1]

# fault: what happens, and the tests that show it
ELSEWHERE = {
    "a hook raises": {
        "plugins/test_calls.py": [
            "test_a_hook_that_raises_names_itself",
            "test_a_hook_that_raises_in_a_launched_run",
            "test_the_first_failure_is_kept_for_the_verdict",
        ]
    },
    "a plugin returns nonsense": {
        "plugins/test_calls.py": [
            "test_topk_select_wrong_results",
            "test_topk_fraction_wrong_results",
        ],
        "plugins/test_scores.py": ["test_topk_scores_wrong_results"],
        "plugins/test_manager.py": ["test_what_is_no_plugin"],
    },
    "a critic is attached twice": {"loop/test_attach.py": ["test_attaching_again_after_remove"]},
    "attachments end in another order": {
        "loop/test_attach.py": ["test_overlapping_attachments_end_in_any_order"]
    },
    "the critic is replaced in mid-run": {
        "loop/test_trainings.py": [
            "test_a_new_critic_for_the_same_optimizer_goes_on",
            "test_a_new_critic_and_a_new_optimizer_for_the_same_generator",
        ],
        "loop/test_resume.py": ["test_weights_loaded_in_mid_run_do_not_roll_k_back"],
    },
    "the script forks": {
        "run/test_children.py": ["test_forked_children_speak_for_themselves"],
        "run/test_activation.py": ["test_forked_children_say_nothing_and_change_nothing"],
    },
    "a run is killed": {
        "reference/runs/test_workers.py": [
            "test_table1_killed_failed_and_resumed_ends_bit_identical"
        ],
        "reference/runs/test_job.py": ["test_killed_before_any_write_it_ends_bit_identical"],
    },
    "a checkpoint is damaged": {
        "reference/runs/test_job.py": ["test_a_damaged_checkpoint_is_named_and_left"]
    },
    "another rank dies": {
        "scope/test_ranks.py": ["test_a_rank_that_does_not_take_part_is_an_error_on_the_other"]
    },
}


@pytest.mark.parametrize("fault", ELSEWHERE)
def test_the_tests_of_other_rooms_are_there(fault):
    for file, names in ELSEWHERE[fault].items():
        tree = ast.parse((TESTS / file).read_text())
        assert {*names} <= {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


# --- kill -9 during a checkpoint ----------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from topk_plugin.reference.runs.files import load_checkpoint, save_checkpoint

path = Path("checkpoint.pt")

def state(n):
    return {"training": {"weights": torch.full((50_000,), float(n)), "n": n}, "journal": n}

def kill(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)


class Half:
    def __init__(self, file):
        self.file = file
    def __enter__(self):
        return self
    def __exit__(self, *error):
        return self.file.__exit__(*error)
    def write(self, content):
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        kill()

def before(name):
    def arrange():
        setattr(os, name, kill)
    return arrange

def in_the_write():
    opened = Path.open
    Path.open = lambda self, *how: Half(opened(self, *how))

def after_the_rename():
    replace = os.replace
    os.replace = lambda *names: kill(replace(*names))

MOMENTS = {
    "in the write": in_the_write,
    "before it is on the disk": before("fsync"),
    "before the rename": before("replace"),
    "after the rename": after_the_rename,
}
save_checkpoint(path, state(0))
n = 0
for moment, arrange in MOMENTS.items():
    if not os.fork():
        arrange()
        save_checkpoint(path, state(n + 1))
        os._exit(9)  # it should not come to that
    assert os.waitstatus_to_exitcode(os.wait()[1]) == -signal.SIGKILL, moment
    found = load_checkpoint(path, torch.device("cpu"))
    n = found["journal"]
    assert n == found["training"]["n"]
    assert found["training"]["weights"].eq(n).all()
    print(moment, n)
    save_checkpoint(path, state(n + 10))  # it goes on, whatever was left behind
    assert load_checkpoint(path, torch.device("cpu"))["journal"] == n + 10
    save_checkpoint(path, state(n))
print(sorted(file.name for file in Path().glob("checkpoint*")))
"""


def test_killed_during_a_checkpoint_the_old_or_the_new_one_is_whole(tmp_path):
    script(tmp_path, KILLED)
    done = plain_run(tmp_path, "train.py")
    assert (done.status, done.out.splitlines()) == (
        0,
        [
            "in the write 0",
            "before it is on the disk 0",
            "before the rename 0",
            "after the rename 1",
            "['checkpoint.pt']",
        ],
    ), done.err


# --- checkpoints that would run code, or hold something else -----------------------------------


class Malicious:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def malicious(tmp_path):
    """An object that runs code when it is read; no reader may do that."""
    trace = tmp_path / "the code ran"
    content = io.BytesIO()
    torch.save(Malicious(trace), content)
    torch.load(io.BytesIO(content.getvalue()), weights_only=False)
    assert trace.exists(), "nothing would be shown"
    trace.unlink()
    yield Malicious(trace)
    assert not trace.exists()


def test_a_checkpoint_of_an_experiment_that_would_run_code(malicious, tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"training": malicious, "journal": 0}, path)
    with pytest.raises(RunError, match=r"cannot be read \(UnpicklingError: Weights only load"):
        load_checkpoint(path, torch.device("cpu"))


def test_a_record_in_a_distributed_checkpoint_that_would_run_code(malicious):
    content = io.BytesIO()
    torch.save(malicious, content)
    with pytest.raises(ResumeMismatch, match=r"cannot be read \(UnpicklingError: Weights only"):
        distributed_checkpoint._unpacked(content.getvalue())
    assert distributed_checkpoint._unpacked(b"") is None


def test_weights_of_inception_that_would_run_code(malicious, tmp_path):
    pytest.importorskip("pytorch_fid")
    path = tmp_path / "inception.pt"
    torch.save({"weights": malicious}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ConfigError, match="does not hold the weights .*UnpicklingError"):
        inception(path, "cpu", digest)


def test_features_in_the_cache_that_would_run_code(malicious, tmp_path):
    def features():
        return cached(tmp_path, {"what": "features"}, lambda: {"one": torch.ones(1)})

    features()
    (path,) = tmp_path.glob("features-*.pt")
    torch.save(malicious, path)
    with pytest.warns(UserWarning, match="damaged .UnpicklingError.*; made anew"):
        assert torch.equal(features()["one"], torch.ones(1))


GOOD = TopK().state_dict()
NONSENSE = {
    "None": None,
    "a number": 3,
    "a list": [GOOD],
    "nothing": {},
    "of a later release": GOOD | {"version": 2},
    "an epoch below zero": GOOD | {"epoch": -3},
    "an epoch in words": GOOD | {"epoch": "three"},
    "steps that are no number": GOOD | {"steps": float("nan")},
    "no votes": GOOD | {"votes": None},
    "too few votes": GOOD | {"votes": torch.zeros(1)},
    "settings in a list": GOOD | {"settings": ["gamma"]},
    "critics in a number": GOOD | {"found": [3]},
    "steps of the critic that are none": GOOD | {"critic_steps": None},
    "what they say in a list": GOOD | {"critic": [0.0, 0.0]},
    "places that have no name": GOOD | {"distrusted": [3]},
} | {f"without {name}": {key: GOOD[key] for key in GOOD if key != name}
     for name in ("version", "epoch", "steps", "votes", "voting", "settings")}  # fmt: skip


@pytest.mark.parametrize("kind", NONSENSE)
def test_a_record_that_is_none(kind):
    topk = TopK(gamma=0.5)
    with pytest.raises(ResumeMismatch, match=r"in the record of top-k .*--start-epoch T"):
        topk.load_state_dict(NONSENSE[kind])
    assert (topk.epoch, topk.steps, topk.fraction) == (0, 0, 1.0)


# --- networks that go wrong ---------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("direction", ["auto", "high"])
def test_a_generator_whose_samples_turn_to_nan(first, direction):
    """It is counted, k falls on, exactly k rows are kept, and nothing of ours raises."""
    gan = Gan(direction=direction, nu=0.5)
    with attach(gan.critic, gan.topk):
        for step in range(6):
            if step == first:
                gan.generator.weight.data[0] = float("nan")
            if step == 3:
                gan.topk.end_epoch()
            gan.train_generator()
    report = gan.topk.report()
    assert (report.steps, report.rows, report.nonfinite) == (6, 48, 8 * (6 - first))
    known = direction == "high" or first == 3  # a NaN says nothing of the direction
    assert report.direction == ("high" if known else "undecided")
    assert gan.kept == [8, 8, 8, 4, 4, 4]


def test_scores_of_some_samples_that_turn_to_nan_are_dropped_first():
    gan = Gan(direction="high", nu=0.5)
    gan.topk.end_epoch()
    bad = torch.zeros(8, 1).index_fill(0, torch.tensor([0, 5, 6]), float("nan"))
    gan.of_generator.zero_grad()
    with attach(gan.critic, gan.topk):
        scores = gan.critic(gan.generator(torch.randn(8, 3)) + bad)
        scores.backward(-torch.ones(8, 1))
        gan.of_generator.step()
    assert gan.generator.weight.isfinite().all()
    assert gan.topk.report().nonfinite == 3


def test_a_critic_that_is_replaced_without_a_word():
    gan = Gan()

    def loop():
        with attach(gan.critic, gan.topk):
            for _ in range(3):
                gan.train_generator()
            gan.critic = nn.Linear(2, 1)
            for _ in range(25):
                gan.train_generator()

    with pytest.warns(UserWarning, match="last 25 steps of the generator's optimizer, after 3"):
        loop()
    assert gan.topk.steps == 3


def test_a_forward_that_is_put_on_the_critic_without_a_word():
    gan = Gan()

    def loop():
        with attach(gan.critic, gan.topk):
            gan.train_generator()
            gan.critic.forward = lambda x: x.sum(1, keepdim=True)
            for _ in range(20):
                gan.train_generator()

    with pytest.warns(UserWarning, match="Was it replaced. Attach its successor"):
        loop()


def test_steps_on_another_loss_in_between_are_no_replacement():
    gan = Gan()
    with warnings.catch_warnings(), attach(gan.critic, gan.topk):
        warnings.simplefilter("error")
        for _ in range(3):
            gan.train_generator()
            for _ in range(19):
                gan.warm_up(torch.randn(8, 2))


def test_a_replaced_critic_is_in_the_verdict(tmp_path):
    script(
        with_gan(tmp_path),
        """
        from gan import *
        G = make_generator()
        optG = torch.optim.Adam(G.parameters(), 1e-2)
        for D, passes in ((Critic(), 2), (nn.Linear(2, 1), 6)):
            for _ in range(passes):
                for x in loader:
                    optG.zero_grad()
                    (-D(G(torch.randn(8, 3)))).mean().backward()
                    optG.step()
        """,
    )
    done = topk_run(tmp_path, "train.py", flags=SETTINGS)
    assert "verdict: the last 24 steps of the generator's optimizer, after 8 gated" in done.err


# --- scripts that leave in their own way, or swallow everything ---------------------------------


def test_a_script_and_a_fork_of_it_that_leave_by_os_exit_have_their_verdicts(tmp_path):
    script(
        with_gan(tmp_path),
        """
        from gan import *
        import os
        if not os.fork():
            train(Critic(), make_generator(), epochs=1)
            os._exit(5)
        print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
        train(Critic(), make_generator())
        os._exit(6)
        """,
    )
    done = topk_run(tmp_path, "train.py", flags=SETTINGS)
    assert (done.status, done.out) == (6, "5\n"), done.err
    assert done.err.count("verdict: 12 generator steps gated, 40 of 96 rows dropped") == 1
    assert done.err.count(") verdict: 4 generator steps gated") == 1


def test_a_script_without_effect_that_leaves_by_os_exit_fails(tmp_path):
    script(
        with_gan(tmp_path),
        """
        from gan import *
        import os
        train(nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 1)), make_generator())
        os._exit(0)
        """,
    )
    done = topk_run(tmp_path, "train.py")
    assert done.status == 3, done.err
    assert "verdict: NOT ACTIVE, 24 optimizer steps, none gated" in done.err
    assert "topk: SeamNotFound" in done.err


SWALLOWS = """
from gan import *

class Two(Critic):
    def forward(self, x):
        score = super().forward(x)
        return {"other" if self.wrong else "score": score}

D, G = Two(), make_generator()
optG = torch.optim.Adam(G.parameters(), 1e-2)
for epoch in range(3):
    for number, x in enumerate(loader):
        D.wrong = WRONG
        try:
            optG.zero_grad()
            for score in D(G(torch.randn(8, 3))).values():
                (-score).mean().backward()
            optG.step()
        except KIND:
            pass
print("ended")
"""


@pytest.mark.parametrize("kind", ["Exception", "BaseException"])
@pytest.mark.parametrize("wrong", ["epoch == 1 and number == 2", "True"])
def test_an_error_that_the_script_swallows_ends_the_run(tmp_path, kind, wrong):
    script(with_gan(tmp_path), SWALLOWS.replace("KIND", kind).replace("WRONG", wrong))
    flags = [*SETTINGS, "--heads", "score"]
    done = topk_run(tmp_path, "train.py", flags=flags, critic="__main__:Two")
    assert (done.status, done.out) == (3, "ended\n"), done.err
    assert "topk: ScoreShapeError: heads names 'score', which the critic's output" in done.err
    if wrong != "True":
        assert "11 generator steps gated" in done.err
