"""The source seam on a toy repository: the script itself is edited, or what it imports."""

import re

import launched
import pytest
from torches import UNREAD

TRAINER = '''\
"""A trainer that counts its steps."""
import torch


class Trainer:
    def __init__(self, generator, critic, start=0):
        self.G, self.D, self.start = generator, critic, start

    def train(self, steps, per_epoch):
        of_generator = torch.optim.SGD(self.G.parameters(), 0.1)
        for step in range(self.start, steps):
            of_generator.zero_grad()
            loss = -self.D(self.G(torch.randn(8, 3))).mean()
            loss.backward()
            of_generator.step()
'''
MAIN = """\
import sys

import torch
from torch import nn

import trainer


def main(steps=6, start=0):
    torch.manual_seed(0)
    critic = nn.Linear(2, 1)
    trainer.Trainer(nn.Linear(3, 2), critic, start).train(steps, 3)
    return critic


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
"""
PLUGIN = """
from topk_plugin import Adapter, Enclose, Insert, Patch, Place, hookimpl

NONE = 'topk.refuse("its batches hold one sample")'
T = "trainer.py"

@hookimpl
def topk_adapters():
    rules = (
        Insert(Place(T, "Trainer.train", "torch.optim.SGD"), "topk.keep_record(self.D)", "before"),
        Insert(
            Place(T, "Trainer.train", "for"), "topk.reach_epoch(step // per_epoch, step)", "first"
        ),
        Enclose(Place(T, "Trainer.train", "self.D")),
    )
    patch = Patch("abc1234", rules)
    step = Enclose(Place("inline.py", "step", "critic"))
    inline = Patch("abc1234", (step,))
    partly = Patch("abc1234", (step, Insert(Place("main.py", "main", "def"), NONE, "first")))
    common = dict(versions=("abc1234",), seam="source", wraps=(), epoch="", counter="", tested="")
    return [
        Adapter(name="toy", upstream="toy/gan", patch=patch, **common),
        Adapter(name="inline", upstream="toy/inline", patch=inline, **common),
        Adapter(name="partly", upstream="toy/partly", patch=partly, **common),
    ]
"""
INLINE = """\
import sys
import torch
from torch import multiprocessing, nn
from torch.utils.data import DataLoader

generator, critic = nn.Linear(3, 2), nn.Linear(2, 1)


def step(of_generator, z):
    of_generator.zero_grad()
    (-critic(generator(z))).mean().backward()
    of_generator.step()


def train(rank=0):
    of_generator = torch.optim.SGD(generator.parameters(), 0.1)
    for epoch in range(3):
        for z in DataLoader(torch.randn(8, 3), batch_size=4):
            step(of_generator, z)


if __name__ == "__main__":
    if "--spawn" in sys.argv:
        multiprocessing.spawn(train)
    elif "--fail" in sys.argv:
        step(None, torch.randn(4, 3))
    else:
        train()
"""
VERDICT = re.compile(
    r"top-k verdict: (\d+) generator steps gated, (\d+) of \d+ rows.* last k (\d+)"
)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """A folder with an installed distribution that offers the adapters."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "toy_source.py").write_text(PLUGIN)
    info = folder / "toy_source-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-source\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text("[topk_plugin]\ntoy = toy_source\n")
    return folder


@pytest.fixture
def topk(plugin, tmp_path):
    for name, text in (("trainer", TRAINER), ("main", MAIN), ("inline", INLINE)):
        (tmp_path / f"{name}.py").write_text(text)

    def run(*arguments):
        path = str(plugin)
        return launched.run(tmp_path, arguments, env={"PYTHONPATH": path}, path=[path])

    return run


TOY = ("run", "--adapter", "toy", "--gamma", "0.5", "--nu", "0.25")


def test_a_module_is_gated_and_its_counter_tells_the_epochs(topk):
    done = topk(*TOY, "--", "main.py", "9")
    assert done.status == 0, done.err
    assert done.err == (
        "top-k note: note: toy/gan of unknown version is not what the adapter toy was tested with "
        "(abc1234); what it relies on matches\n"
        "top-k ACTIVE: toy (toy/gan of unknown version), direction high, k 8 of 8, decays x0.5 "
        "each epoch to 2\n"
        "top-k verdict: 9 generator steps gated, 30 of 72 rows dropped, 2 epochs ended, last k 2 "
        "of 8, 0 non-finite scores; epochs counted "
        f"by toy/gan's own counter; direction high, by 9 of 9 votes{UNREAD}\n"
    ).replace("top-k note: note:", "top-k note:")


def test_a_resumed_counter_begins_where_it_was(topk):
    done = topk(*TOY, "--", "main.py", "9", "4")
    assert "k 4 of 8, decays" in done.err
    assert VERDICT.search(done.err).groups() == ("5", "26", "2")
    assert "1 epoch ended" in done.err
    wrong = topk(*TOY, "--start-epoch", "2", "--", "main.py", "9", "4")
    assert wrong.status == 2
    assert "goes on from its generator step 4, after 1 epoch; leave it out" in wrong.err


def test_every_counts_steps_whatever_the_counter_says(topk):
    done = topk(*TOY, "--every", "2", "--", "main.py", "6")
    assert VERDICT.search(done.err).groups() == ("6", "20", "2")
    assert "3 epochs ended" in done.err


def test_a_script_that_starts_the_module_in_a_process_of_its_own(topk, tmp_path):
    (tmp_path / "starts.py").write_text(
        "import subprocess, sys\nsubprocess.run([sys.executable, 'main.py'], check=True)\n"
    )
    done = topk(*TOY, "--", "starts.py")
    assert done.status == 0, done.err
    assert re.search(r"top-k \(process \d+\) verdict: 6 generator steps gated, 12 of 48", done.err)


@pytest.mark.parametrize("form", [["inline.py"], ["-m", "inline"]])
def test_the_script_itself_is_gated(topk, form):
    done = topk("run", "--adapter", "inline", "--gamma", "0.5", "--", *form)
    assert done.status == 0, done.err
    assert VERDICT.search(done.err).groups() == ("6", "8", "2")
    assert "3 epochs ended" in done.err


def test_what_fails_shows_the_line_on_disk(topk):
    done = topk("run", "--adapter", "inline", "--", "inline.py", "--fail")
    assert done.status == 1
    line = INLINE.splitlines().index("    of_generator.zero_grad()") + 1
    assert f'inline.py", line {line}, in step\n    of_generator.zero_grad()\n' in done.err
    assert "topk_plugin" not in done.err


@pytest.mark.slow
def test_a_spawned_process_that_runs_the_script_from_disk_is_refused(topk):
    done = topk("run", "--adapter", "inline", "--", "inline.py", "--spawn")
    assert done.status == 3
    assert re.search(r"top-k \(process \d+\) verdict: NOT ACTIVE, 6 optimizer steps", done.err)
    assert "runs the script from disk: put top-k there with `topk patch CHECKOUT" in done.err


def test_the_audit_goes_through_the_loss_once_more(topk):
    done = topk("check", "--adapter", "inline", "--", "inline.py")
    assert done.status == 0, done.out + done.err
    assert re.search(
        r"^loss on kept scores +relative difference at most \d", done.out, re.MULTILINE
    )
    assert re.search(r"^result +agrees$", done.out, re.MULTILINE)


def test_a_file_that_is_patched_on_disk_is_not_gated_twice(topk, tmp_path):
    assert topk("patch", ".", "--adapter", "toy", "--write").status == 0
    done = topk(*TOY, "--", "main.py")
    assert done.status == 3
    assert "has put top-k into this file already" in done.err
    assert topk("patch", ".", "--revert", "--adapter", "toy").status == 0
    assert (tmp_path / "trainer.py").read_text() == TRAINER


def test_a_checkout_that_is_half_patched_is_said(topk, tmp_path):
    assert topk("patch", ".", "--adapter", "toy", "--write").status == 0
    other = topk("patch", ".", "--adapter", "toy", "--write", "--no-modern")
    assert other.status == 3
    assert "undo the rest of it first: --revert" in other.err
    (tmp_path / ".topk_patch.json").unlink()
    lost = topk("patch", ".", "--revert")
    assert lost.status == 3
    assert "found top-k in the source, but no .topk_patch.json" in lost.err
    (tmp_path / "trainer.py").write_text(TRAINER)
    assert topk("patch", ".", "--adapter", "inline", "--write").status == 0
    for name, text in (("trainer", TRAINER), ("inline", INLINE)):
        (tmp_path / f"{name}.py").write_text(text)
    done = topk("patch", ".", "--adapter", "inline", "--revert")
    assert (done.status, done.err) == (
        0,
        "restored: nothing, since all files are as they were\n",
    )


def test_a_patched_script_under_topk_run_is_refused_by_its_own_flag(topk, tmp_path):
    flags = "import argparse\nfrom topk_plugin.script import topk\n"
    flags += "parser = argparse.ArgumentParser()\ntopk.add_arguments(parser)\n"
    flags += "topk.start(parser.parse_args(), 'toy')\n"
    (tmp_path / "flags.py").write_text(flags + INLINE.replace("import sys\n", ""))
    done = topk("run", "--critic", "__main__:Critic", "--", "flags.py", "--topk")
    assert done.status == 2
    assert "found top-k switched on twice" in done.err


def test_forks_of_a_patched_script_have_no_verdict(topk, plugin, tmp_path):
    """Workers of a DataLoader are forks that leave by os._exit."""
    flags = "import argparse, os\nfrom topk_plugin.script import topk\n"
    flags += "parser = argparse.ArgumentParser()\ntopk.add_arguments(parser)\n"
    flags += "topk.start(parser.parse_args(), 'toy')\n"
    flags += "if not os.fork():\n    os._exit(7)\nprint(os.waitstatus_to_exitcode(os.wait()[1]))\n"
    (tmp_path / "flags.py").write_text(flags)
    done = launched.run(tmp_path, ["flags.py", "--topk"], plain=True, path=[str(plugin)])
    assert (done.status, done.out) == (0, "7\n"), done.err
    assert done.err.count("verdict") == 1


def test_without_top_k_the_lines_do_nothing(topk):
    done = topk(*TOY, "--no-enabled", "--", "main.py")
    assert done == (0, "", "")


def test_a_script_that_top_k_can_do_nothing_for_is_refused_with_the_reason(topk):
    partly = ("run", "--adapter", "partly", "--gamma", "0.5")
    done = topk(*partly, "--", "main.py", "9")
    assert done.status == 3
    assert "topk: UnsupportedUpstream: adapter partly: its batches hold one sample\n" in done.err
    assert "Traceback" not in done.err
    assert "top-k ACTIVE" not in done.err
    assert topk(*partly, "--no-enabled", "--", "main.py", "9").status == 0
    assert topk(*partly, "--", "inline.py").status == 0
