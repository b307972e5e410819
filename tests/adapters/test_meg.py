"""MEG's scripts: both ends of the scores, three kinds of epochs, and what top-k leaves alone."""

import shutil
from importlib.util import find_spec

import launched
import pytest
import torch
import yaml
from contract import SETTINGS, STANDINS, Upstream, preloaded, skip_without, verdict_of
from losses import error

from topk_plugin.source.edits import rewritten
from topk_plugin.source.rules import file_of

EVERY = (*SETTINGS, "--every", "4")


@pytest.fixture(
    params=["stand-in", pytest.param("genuine", marks=pytest.mark.upstream)],
)
def meg(tmp_path, request):
    skip_without("meg", request.param)
    return Upstream(tmp_path, "meg", request.param)


def probed(meg: Upstream, *arguments: str, flags=SETTINGS) -> dict[str, list[torch.Tensor]]:
    """What the script's samplers and scores are after a training, for networks of one seed."""
    done = meg.run("--probe", *arguments, flags=flags)
    assert done.status == 0, done.err
    return probe_of(meg)


def probe_of(meg: Upstream) -> dict[str, list[torch.Tensor]]:
    path = meg.folder / "probe.pt"
    found = torch.load(path, weights_only=True)
    path.unlink()
    return found


def patched(meg: Upstream, *arguments: str) -> None:
    """A run of the script itself, which `topk patch` has given its flag for top-k."""
    assert meg.patch("--write").status == 0
    settings = ["--topk", "--topk-gamma", "0.75", "--topk-nu", "0.5"]
    command = [meg.script, *arguments, *settings]
    done = launched.run(meg.folder, command, plain=True, preload=preloaded())
    assert done.status == 0, done.err


SCRIPTS = {  # with how top-k is told the epochs, and how many end
    "anomaly_mnist": (SETTINGS, {3}),
    "anomaly_kdd": (SETTINGS, {3}),
    "ebm_toy": (EVERY, {2}),
    "ebm_mnist": (EVERY, {2}),
    # passes of a DataLoader; the genuine scripts draw their first batches before they train
    "ebm_cifar": (SETTINGS, {4, 5}),
    "wgan-gp_mnist": (EVERY, {2}),
    "wgan-gp_cifar": (SETTINGS, {4, 5}),
}
SAME_AS_OTHERS = {"anomaly_mnist", "ebm_mnist", "wgan-gp_cifar"}  # where they are stand-ins


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_direction_is_that_of_the_loss(meg, script):
    """No setting says that energies are low where a sample is realistic."""
    if meg.origin == "stand-in" and script in SAME_AS_OTHERS:
        pytest.skip("its stand-in is as another one")
    flags, epochs = SCRIPTS[script]
    found = meg.train("--script", script, flags=flags)
    assert f"), direction {'high' if 'wgan' in script else 'low'}, k " in meg.said()
    assert int(verdict_of(meg)[4]) in epochs
    hand = ("--script", script, "--hand")
    by_hand = meg.train(*hand, flags=["--no-enabled"])
    assert error(found, by_hand) < 1e-9
    assert error(found, meg.train(*hand, "--worst", flags=["--no-enabled"])) > 1e-6


def test_a_script_without_epochs_says_so(meg):
    meg.train("--script", "ebm_toy")
    assert "0 epochs ended" in meg.said()
    assert "k never decayed (no DataLoader fed a generator step): pass --every N" in meg.said()


@pytest.mark.slow
def test_samplers_and_gradient_norms_are_left_alone(meg):
    """At k = 2 of 4, bit by bit; in the generator's step so is the mutual information."""

    def check(found: dict[str, list[torch.Tensor]], critic: dict[str, list[torch.Tensor]]) -> None:
        assert ", last k 2 of 4, " in meg.said()
        for name in ("MALA_sampler", "MALA_corrected_sampler", "scores", "netH"):
            assert all(map(torch.equal, found[name], plain[name])), name
        assert found["left"] == [None] * len(found["left"])
        assert error(found["netG"], by_hand["netG"]) < 1e-9
        assert error(found["netG"], plain["netG"]) > 1e-6
        assert error(found["netE"], critic["netE"]) < 1e-9

    plain = probed(meg, flags=["--no-enabled"])
    by_hand = probed(meg, "--hand", flags=["--no-enabled"])
    check(probed(meg), by_hand)
    patched(meg, "--probe")
    check(probe_of(meg), by_hand)
    # the patch, without its flag, lets it run without its adapter
    command = ["run", "--critic", "networks.mnist:EnergyModel", *EVERY, "--", meg.script]
    assert launched.run(meg.folder, [*command, "--probe"]).status == 0
    check(probe_of(meg), plain)  # that gate spares the critic's own gradient


def test_passes_of_a_loader_count_in_a_patched_script_too(meg):
    """Other scripts of the same patch say by themselves when an epoch ends."""
    found = meg.train("--script", "ebm_cifar")
    verdict = meg.said().splitlines()[-1]
    patched(meg, "--script", "ebm_cifar")
    assert error(meg.weights(), found) == 0.0
    assert meg.said().splitlines()[-1] == verdict


def test_what_a_patched_script_writes(meg):
    """Arguments of plain values, and the critic's checkpoint, which tells the epochs."""
    patched(meg)
    first, *lines = (meg.folder / "logs/args.yml").read_text().splitlines()
    assert "argparse.Namespace" in first
    arguments = yaml.safe_load("\n".join(lines))
    assert (arguments["topk"], arguments["topk_gamma"]) == (True, 0.75)
    kinds = (bool, int, float, str, list, type(None))
    assert all(isinstance(value, kinds) for value in arguments.values())
    saved = torch.load(meg.folder / "logs/models/netE.pt", weights_only=True)
    assert saved._metadata[""]["topk_plugin"]["epoch"] == 3


def test_every_rule_for_todays_torch_finds_its_place(meg):
    """A rule of that kind that finds none is no error, so a misspelt one would not show."""
    if meg.origin == "stand-in":
        pytest.skip("it has few of those places")
    modern = meg.adapter.patch.modern
    for name in {file_of(rule) for rule in modern}:
        rules = [rule for rule in modern if file_of(rule) == name]
        text = (meg.folder / name).read_text()
        assert rewritten(text, rules, name).applied == tuple(rules)


def test_a_writer_for_tensorboard_is_there_without_tensorboardx(tmp_path):
    """Only where that package is absent, and only for the repository's own files."""
    pytest.importorskip("tensorboard")
    if find_spec("tensorboardX"):
        pytest.skip("tensorboardX is installed")
    shutil.copytree(STANDINS / "meg", tmp_path / "meg")
    (tmp_path / "meg/write.py").write_text(
        "from tensorboardX import SummaryWriter\n"
        "writer = SummaryWriter('logs')\n"
        "writer.add_scalar('energy', 1.0, 0)\n"
        "writer.close()\n"
    )
    flags = ["--adapter", "meg", "--force", "--no-enabled"]
    done = launched.run(tmp_path / "meg", ["run", *flags, "--", "write.py"])
    assert done.status == 0, done.err
    assert [path for path in (tmp_path / "meg/logs").iterdir() if path.stat().st_size > 100]
