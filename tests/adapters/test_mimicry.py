"""torch-mimicry's own trainer, networks and checkpoints under `topk run --adapter mimicry`."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import launched
import pytest
from contract import SETTINGS, Upstream, check_by_hand, needs
from losses import error

pytestmark = pytest.mark.skipif(
    bool(needs("mimicry")), reason=f"not installed: {', '.join(needs('mimicry'))}"
)


@pytest.fixture
def mimicry(tmp_path):
    return Upstream(tmp_path, "mimicry")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["sngan", "--loss", "gan"],  # labels of the batch's size; with hinge it is the contract's
        ["sagan"],
        ["wgan_gp"],
        ["ssgan"],
        ["infomax_gan"],
        ["cgan_pd", "--vis", "4"],  # its images come from class labels
        ["dcgan"],
        ["sngan", "--amp"],
    ],
    ids=" ".join,
)
def test_every_family_is_top_k_by_hand(mimicry, arguments):
    """7 steps of 2 batches each, in passes of 4, one of them with 12 rows."""
    steps, dropped, rows, *rest = map(int, check_by_hand(mimicry, *arguments).groups())
    assert (steps, *rest) == (7, 3, 8, 16)
    assert 0 < dropped < rows <= 7 * 16
    assert (
        "top-k ACTIVE: mimicry (torch-mimicry 0.1.16), direction high, k 16 of 16, "
        "decays x0.75 each epoch to 8\n"
    ) in mimicry.said()


@pytest.mark.slow
def test_the_distributed_trainer_is_top_k_by_hand(mimicry):
    """Its generator steps come first, before the critic's."""
    steps, _, _, epochs, *_ = map(int, check_by_hand(mimicry, "--distributed").groups())
    assert (steps, epochs) == (7, 3)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["ssgan", "cgan_pd"])
def test_at_gamma_1_it_is_not_there(mimicry, family):
    found = mimicry.train(family, "--steps", "3", flags=["--gamma", "1"])
    plain = mimicry.train(family, "--steps", "3", flags=["--no-enabled"])
    assert all(a.equal(b) for a, b in zip(found, plain, strict=True))


# --- stop and resume ------------------------------------------------------------------------------

# every step takes 3 batches of passes of 4: pass 3 ends with step 4, and step 2 in mid-pass 2
RESUMABLE = ("--digits", "64", "--n-dis", "3", "--steps", "10", "--save", "1")
SLOW = ("--gamma", "0.9", "--nu", "0.5")


def schedule(mimicry: Upstream, *arguments: str, flags: tuple[str, ...]) -> list[tuple[int, ...]]:
    """Step, epoch and k of every generator step of a run."""
    done = mimicry.run(*RESUMABLE, *arguments, flags=[*flags, "--log", "log.jsonl"])
    assert done.status == 0, done.err
    lines = map(json.loads, (mimicry.folder / "log.jsonl").read_text().splitlines())
    return [(line["step"], line["epoch"], line["k"]) for line in lines]


def by_formula(start_epoch: int = 0) -> list[tuple[int, int, int]]:
    epochs = [start_epoch + (3 * step - 1) // 4 for step in range(1, 11)]
    return [(step, t, int(max(0.9**t, 0.5) * 16 + 1e-9)) for step, t in enumerate(epochs, start=1)]


@pytest.mark.parametrize(
    "stop",
    ["2", pytest.param("4", marks=pytest.mark.slow)],
    ids=["in mid-pass", "at the end of a pass"],
)
def test_a_resumed_run_has_the_k_of_one_that_never_stopped(mimicry, stop):
    before = schedule(mimicry, "--stop", stop, flags=SLOW)
    first = mimicry.said()
    after = schedule(mimicry, flags=SLOW)
    assert before + after == by_formula()
    assert len(before) == int(stop)
    assert {"2": "1 epoch ended", "4": "3 epochs ended"}[stop] in first
    assert f"{7 - int(stop) * 3 // 4} epochs ended" in mimicry.said()
    assert f"top-k verdict: {10 - int(stop)} generator steps gated" in mimicry.said()
    assert "warn" not in mimicry.said().lower()


@pytest.mark.slow
def test_a_run_that_never_stopped(mimicry):
    assert schedule(mimicry, flags=SLOW) == by_formula()


@pytest.mark.slow
def test_a_decay_by_steps_is_resumed(mimicry):
    flags = (*SLOW, "--every", "3")
    before = schedule(mimicry, "--stop", "4", flags=flags)
    after = schedule(mimicry, flags=flags)
    epochs = [(step - 1) // 3 for step in range(1, 11)]
    assert before + after == [
        (step, t, int(0.9**t * 16 + 1e-9)) for step, t in enumerate(epochs, start=1)
    ]


def test_a_checkpoint_without_top_k_tells_the_epochs_by_its_step(mimicry):
    assert mimicry.run(*RESUMABLE, "--stop", "4", flags=["--no-enabled"]).status == 0
    aside = mimicry.folder / "aside"
    shutil.copytree(mimicry.folder / "log", aside)
    assert schedule(mimicry, flags=SLOW) == by_formula()[4:]
    assert "Warning" not in mimicry.said()

    shutil.rmtree(mimicry.folder / "log")
    aside.rename(mimicry.folder / "log")
    done = mimicry.run(*RESUMABLE, flags=[*SLOW, "--start-epoch", "7"])
    assert done.status == 2
    assert (
        "start_epoch: found 7, but kwotsin/mimicry goes on from its generator step 4, after 3 "
        in (done.err)
    )


@pytest.mark.slow
def test_a_start_epoch_is_in_the_checkpoint(mimicry):
    first = (*SLOW, "--start-epoch", "2")
    before = schedule(mimicry, "--stop", "2", flags=first)
    contradicting = mimicry.run(*RESUMABLE, flags=first)
    assert contradicting.status == 3
    assert "epoch: 3 in the checkpoint, start_epoch 2 now" in contradicting.err
    assert before + schedule(mimicry, flags=SLOW) == by_formula(start_epoch=2)


def test_other_settings_do_not_resume(mimicry):
    schedule(mimicry, "--stop", "1", flags=SLOW)
    done = mimicry.run(*RESUMABLE, flags=("--gamma", "0.8", "--nu", "0.5"))
    assert done.status == 3
    assert "ResumeMismatch" in done.err
    assert "gamma: 0.9 in the checkpoint, 0.8 now" in done.err


# --- users of mimicry ---------------------------------------------------------------------------


HEAD = """
import sys
import torch
import train
from torch_mimicry.nets import sngan, ssgan

torch.set_default_dtype(torch.float64)


def run(generator_class, family="sngan", out="log", worst=False):
    loader = train.Loader(train.digits(64), batch_size=16)
    if "--hand" in sys.argv:
        generator_class = by_hand(generator_class, loader, worst)
    train.FAMILIES[family] = generator_class, train.FAMILIES[family][1]
    trainer = train.build(train.parse([family, "--steps", "6", "--out", out]), loader)
    trainer.train()
    torch.save([net.state_dict() for net in (trainer.netG, trainer.netD)], "weights.pt")


def by_hand(base, loader, worst):
    class ByHand(base):
        def compute_gan_loss(self, output):
            k = int(max(0.75 ** (loader.passes - 1), 0.5) * len(output) + 1e-9)
            return super().compute_gan_loss(output.topk(k, dim=0, largest=not worst).values)

    return ByHand


"""

OWN = {
    "with super": """
        class Mine(sngan.SNGANGenerator32):
            def compute_gan_loss(self, output):
                return 2 * super().compute_gan_loss(output)

        run(Mine)
        """,
    "without super, under another name": """
        class Mine(ssgan.SSGANGenerator32):
            def compute_gan_loss(self, logits):
                return torch.nn.functional.softplus(-logits).mean()

        run(Mine, "ssgan")
        """,
    "two levels": """
        class Base(sngan.SNGANGenerator32):
            def compute_gan_loss(self, output):
                return super().compute_gan_loss(output=output)

        class Mine(Base):
            def compute_gan_loss(self, output):
                return super().compute_gan_loss(output) + 0.1 * super().compute_gan_loss(output**2)

        run(Mine)
        """,
    "flipped": """
        class Mine(sngan.SNGANGenerator32):
            def compute_gan_loss(self, output):
                return -super().compute_gan_loss(output)

        run(Mine, worst=True)
        """,
}


def own_script(mimicry: Upstream, text: str) -> None:
    """A script of the user's own, which finds the contract's as a module."""
    shutil.move(mimicry.folder / "train.py", mimicry.folder / "upstream.py")
    text = HEAD.replace("import train\n", "import upstream as train\n") + textwrap.dedent(text)
    (mimicry.folder / "train.py").write_text(text)


def logged(mimicry: Upstream) -> list[tuple[int, ...]]:
    lines = map(json.loads, (mimicry.folder / "log.jsonl").read_text().splitlines())
    return [(line["step"], line["epoch"], line["batch"], line["k"]) for line in lines]


SIX_STEPS = [(1, 0, 16, 16), (2, 0, 16, 16), (3, 1, 16, 12), (4, 1, 16, 12), (5, 2, 16, 9)]
SIX_STEPS.append((6, 2, 16, 9))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(text, id=name, marks=[pytest.mark.slow] * (name != "flipped"))
        for name, text in OWN.items()
    ],
)
def test_a_loss_of_the_users_own_is_gated_once(mimicry, text):
    own_script(mimicry, text)
    by_hand = mimicry.train("--hand", flags=["--no-enabled"])
    found = mimicry.train(flags=[*SETTINGS, "--log", "log.jsonl"])
    assert error(found, by_hand) < 1e-8  # one of them squares scores, and rounding grows with them
    assert logged(mimicry) == SIX_STEPS
    assert f"direction {'low' if 'worst' in text else 'high'}" in mimicry.said()


def test_a_second_training_begins_with_the_whole_batch(mimicry):
    own_script(mimicry, "run(sngan.SNGANGenerator32)\nrun(sngan.SNGANGenerator32, out='second')\n")
    mimicry.train(flags=[*SETTINGS, "--log", "log.jsonl"])
    assert logged(mimicry) == SIX_STEPS * 2
    for number in (1, 2):
        said = (
            f"verdict, training {number}: 6 generator steps gated, 22 of 96 rows dropped, 3 epochs"
        )
        assert said in mimicry.said()


TRAINERS = {
    "fetches by itself": """
        class Mine(train.Trainer):
            def _fetch_data(self, iter_dataloader):
                try:
                    return iter_dataloader, next(iter_dataloader)
                except StopIteration:
                    return self._fetch_data(iter(self.dataloader))
        """,
    "fetches by super": """
        class Mine(train.Trainer):
            def _fetch_data(self, iter_dataloader):
                return super()._fetch_data(iter_dataloader=iter_dataloader)
        """,
}


@pytest.mark.parametrize("text", TRAINERS.values(), ids=TRAINERS)
def test_a_trainer_of_the_users_own_counts_each_batch_once(mimicry, text):
    end = "train.Trainer = Mine\nrun(sngan.SNGANGenerator32)\n"
    own_script(mimicry, textwrap.dedent(text) + end)
    mimicry.train(flags=[*SETTINGS, "--log", "log.jsonl"])
    assert logged(mimicry) == SIX_STEPS


def test_a_loop_of_the_users_own_goes_by_its_loader(mimicry):
    own_script(
        mimicry,
        """
        class Mine(train.Trainer):
            def train(self):
                from torch_mimicry.training.metric_log import MetricLog
                for epoch in range(2):
                    for batch in self.dataloader:
                        common = dict(real_batch=batch, log_data=MetricLog(), device=self.device)
                        self.netD.train_step(netG=self.netG, optD=self.optD, **common)
                        self.netG.train_step(netD=self.netD, optG=self.optG, **common)

        train.Trainer = Mine
        run(sngan.SNGANGenerator32)
        """,
    )
    mimicry.train(flags=[*SETTINGS, "--log", "log.jsonl"])
    assert [(epoch, k) for _, epoch, _, k in logged(mimicry)] == [(0, 16)] * 4 + [(1, 12)] * 4


@pytest.mark.slow
@pytest.mark.parametrize("command", [["run", "--no-enabled"], ["run"], ["check", "--steps", "1"]])
def test_processes_that_it_starts_can_import_it(mimicry, command):
    own_script(
        mimicry,
        """
        if __name__ == "__main__":
            import multiprocessing
            child = multiprocessing.get_context("spawn").Process(target=print, args=("child",))
            child.start()
            child.join()
            assert child.exitcode == 0
            run(sngan.SNGANGenerator32)
        """,
    )
    arguments = [command[0], "--adapter", "mimicry", *command[1:], *SETTINGS, "--", "train.py"]
    done = launched.run(mimicry.folder, arguments)
    assert done.status == 0, done.err


# --- other versions -------------------------------------------------------------------------------


def installed() -> tuple[Path, Path]:
    """The package's folder, and its metadata's."""
    spec = find_spec("torch_mimicry")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    return package, next(package.parent.glob("torch_mimicry-*-info"))  # or .egg-info


def copied_package(folder: Path, old: str = "", new: str = "") -> None:
    """A copy of the package in ``folder``, with one name replaced by another."""
    package, _ = installed()
    shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("*.pyc"))
    for path in (folder / package.name).rglob("*.py") if old else ():
        path.write_text(path.read_text().replace(old, new))


def test_a_checkout_goes_before_what_is_installed(mimicry):
    copied_package(mimicry.folder)
    done = mimicry.run("--steps", "1")
    assert done.status == 0
    assert "top-k ACTIVE: mimicry (kwotsin/mimicry 0.1.16)" in done.err
    assert "note" not in done.err


def test_a_renamed_loss_is_said_before_training(mimicry):
    copied_package(mimicry.folder, "compute_gan_loss", "gan_loss")
    done = mimicry.run()
    assert done.status == 3
    assert "UnsupportedUpstream: adapter mimicry: kwotsin/mimicry" in done.err
    assert "was written for (0.1.16)" in done.err
    assert "there is no BaseGenerator.compute_gan_loss(self, output)." in done.err
    assert "torch-mimicry==0.1.16" in done.err
    assert "Starting training" not in done.out

    forced = mimicry.run(flags=[*SETTINGS, "--force"])
    assert forced.status == 3
    assert "NoEffectError: adapter mimicry: 21 optimizer steps ran" in forced.err
    assert "Training Ended" in forced.out


@pytest.mark.slow
def test_another_version_is_named(mimicry):
    library = mimicry.folder / "library"
    copied_package(library)
    _, metadata = installed()
    shutil.copytree(metadata, library / metadata.name)
    text = (metadata / "METADATA").read_text()
    assert "\nVersion: 0.1.16\n" in text
    (library / metadata.name / "METADATA").write_text(
        text.replace("\nVersion: 0.1.16\n", "\nVersion: 0.1.17\n")
    )
    path = os.pathsep.join([str(library), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "topk_plugin", "run", "--adapter", "mimicry", *SETTINGS]
        + ["train.py", "--steps", "1"],
        cwd=mimicry.folder,
        env=launched.ENVIRONMENT | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (
        "top-k note: torch-mimicry 0.1.17 is not what the adapter mimicry was tested with "
        "(0.1.16); what it relies on matches\n"
    ) in done.stderr
    assert "top-k ACTIVE: mimicry (torch-mimicry 0.1.17)" in done.stderr
