"""BigGAN-PyTorch's own training, checkpoints and flags, beyond what every adapter has to pass."""

import json
import re

import launched
import pytest
import torch
from contract import SETTINGS, Upstream, check_by_hand, preloaded, skip_without, verdict_of
from losses import error

NAME = "biggan_pytorch"
GENUINE = pytest.param("genuine", marks=pytest.mark.upstream)


@pytest.fixture(params=["stand-in", GENUINE])
def biggan(request, tmp_path):
    skip_without(NAME, request.param)
    return Upstream(tmp_path, NAME, request.param)


@pytest.fixture
def genuine(tmp_path):
    skip_without(NAME, "genuine")
    return Upstream(tmp_path, NAME, "genuine")


def on_disk(biggan: Upstream, *arguments: str) -> launched.Done:
    """The script by itself, with top-k in its source."""
    words = [biggan.script, *arguments]
    done = launched.run(biggan.folder, words, plain=True, preload=preloaded())
    assert done.status == 0, done.err
    return done


ON = ("--topk", "--topk-gamma", "0.75", "--topk-nu", "0.5")


def tell(biggan: Upstream) -> None:
    """The loss prints what it is given, and top-k's own counts, where the source has the calls."""
    with (biggan.folder / "losses.py").open("a") as file:
        file.write(TELL)


def told(done: launched.Done) -> list[tuple[str, int, int, int]]:
    """The class of the scores, the step, the epoch and k at each generator's loss."""
    lines = re.findall(r"gated (\w+) (\d+) (\d+) (\d+)\n", done.out)
    return [(kind, int(step), int(epoch), int(k)) for kind, step, epoch, k in lines]


TELL = """
from topk_plugin.seams.source import active_seam

plain_loss = generator_loss


def generator_loss(dis_fake):
    if active_seam() is not None:
        topk = active_seam().topk
        counts = topk.steps + 1, topk.epoch, topk.k(len(dis_fake))
        print("gated", type(dis_fake).__name__, *counts)
    return plain_loss(dis_fake)
"""


# --- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "steps", "calls", "epochs", "batch"),
    [
        # 44 images: passes of 2 batches of 16, or 5 of 8
        pytest.param(
            ["--num_D_accumulations", "2", "--num_G_accumulations", "3"],
            6,
            3,
            3,
            4,
            marks=pytest.mark.slow,
        ),
        (["--G_batch_size", "6"], 15, 1, 3, 6),
        (["--parallel"], 15, 1, 3, 4),
        # its loader makes three passes, and is gone through three times
        (["--use_multiepoch_sampler", "--digits", "40"], 45, 1, 9, 4),
    ],
    ids=["accumulation", "generator batch", "parallel", "multi-epoch"],
)
def test_every_way_to_train_is_top_k_by_hand(biggan, arguments, steps, calls, epochs, batch):
    found, dropped, rows, *rest = map(int, check_by_hand(biggan, *arguments).groups())
    assert (found, rows) == (steps, steps * calls * batch)
    assert 0 < dropped < rows
    assert rest == [epochs, batch // 2, batch]


@pytest.mark.upstream
@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", "BigGANdeep", "--G_shared", "--shared_dim", "4", "--hier", "--dim_z", "24"],
        ["--split_D", "--toggle_grads", "--ema", "--G_ortho", "1e-4"],
    ],
    ids=["BigGANdeep", "one critic call for the fakes"],
)
def test_other_networks_are_top_k_by_hand(genuine, arguments):
    steps, *_, epochs, k, batch = map(int, check_by_hand(genuine, *arguments).groups())
    assert (steps, epochs, k, batch) == (15, 3, 2, 4)


OWN = """
import torch
import BigGAN, train_fns, utils
from torch.utils.data import DataLoader, TensorDataset

config = dict(batch_size=4, num_D_steps=1, num_D_accumulations=1, num_G_accumulations=1)
config |= dict(split_D=False, toggle_grads=False, D_ortho=0.0, G_ortho=0.0, ema=False)
sizes = dict(dim_z=8, n_classes=10, G_ch=2, D_ch=2, resolution=32, G_attn="0", D_attn="0")
G, D = BigGAN.Generator(**sizes), BigGAN.Discriminator(**sizes)
noise = utils.prepare_z_y(4, G.dim_z, 10, device="cpu")
train = train_fns.GAN_training_function(G, D, BigGAN.G_D(G, D), *noise, None, {}, config)
data = TensorDataset(torch.randn(12, 3, 32, 32), torch.zeros(12).long())
for _ in range(2):
    for x, y in DataLoader(data, batch_size=4):
        train(x, y)
"""


def test_in_a_loop_of_ones_own_the_data_loader_ends_the_epochs(biggan):
    biggan.script = "own.py"
    (biggan.folder / "own.py").write_text(OWN)
    assert biggan.run().status == 0
    assert verdict_of(biggan).groups() == ("6", "3", "24", "2", "3", "4")


def test_the_check_sees_every_batch_of_an_accumulated_step(biggan):
    flags = [*SETTINGS, "--steps", "3"]
    done = biggan.run("--num_G_accumulations", "2", flags=flags, command="check")
    assert done.status == 0, done.out + done.err
    assert "2 backward passes in a generator step: each batch of 4 is ranked by itself" in done.out
    assert "rows                   those of a plain sort (24 scores)" in done.out
    assert "k first falls after epoch 1 (3 of 4)" in done.out
    assert "k stays" not in done.out


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_check_knows_how_many_epochs_there_are(biggan, epochs):
    flags = [*SETTINGS, "--steps", "1"]
    done = biggan.run("--num_epochs", str(epochs), flags=flags, command="check")
    assert ("k stays 4 of 4 in this run, which has 1 epoch" in done.out) == (epochs == 1)


@pytest.mark.slow
def test_scores_of_the_noises_own_class_are_gated(biggan):
    """Without the modern rules everything computed from the noise is of its class."""
    by_hand = biggan.train("--hand", flags=["--no-enabled"])
    assert biggan.patch("--write", "--no-modern").status == 0
    for path in biggan.folder.glob("*.py"):
        path.write_text(re.sub(r"""(["'])cuda\1""", "'cpu'", path.read_text()))
    (biggan.folder / "inception_utils.py").write_text("prepare_inception_metrics = print")
    tell(biggan)
    assert {kind for kind, *_ in told(on_disk(biggan, *ON))} == {"Distribution"}
    assert error(biggan.weights(), by_hand) < 1e-9
    assert "direction high" in biggan.said()
    assert int(verdict_of(biggan)[2]) > 0


# --- stop and resume ----------------------------------------------------------------------------

EARLIER = ("--num_epochs", "1", "--experiment_name", "one")
LATER = ("--num_epochs", "2", "--experiment_name", "one", "--resume")


def schedule(biggan: Upstream, *arguments: str, way: str = "run") -> list[tuple[int, ...]]:
    """Step, epoch and k of every generator step of a run."""
    if way == "run":
        done = biggan.run(*arguments, flags=[*SETTINGS, "--log", "log.jsonl"])
        assert done.status == 0, done.err
        lines = map(json.loads, (biggan.folder / "log.jsonl").read_text().splitlines())
        found = [(line["step"], line["epoch"], line["k"]) for line in lines]
    else:
        found = [(step, epoch, k) for _, step, epoch, k in told(on_disk(biggan, *arguments, *ON))]
    steps, dropped, *_ = map(int, verdict_of(biggan).groups())
    assert (steps, dropped) == (len(found), sum(4 - k for *_, k in found))
    assert "without a top-k record" not in biggan.said()
    return found


def by_formula(first: int, last: int, batches: int = 5) -> list[tuple[int, int, int]]:
    """Iterations, and epochs of so many batches each."""
    epochs = [(itr, (itr - 1) // batches) for itr in range(first, last + 1)]
    return [(itr, t, (4, 3, 2)[min(t, 2)]) for itr, t in epochs]


@pytest.mark.parametrize(
    ("way", "before", "stop"),
    [
        ("run", "with top-k", 3),
        ("run", "with top-k", 5),
        ("run", "without", 5),
        ("disk", "with top-k", 5),
        ("disk", "without", 3),
    ],
)
def test_a_resumed_run_has_the_k_of_its_iteration(biggan, way, before, stop):
    """Upstream's own epoch is 0 in both checkpoints, and its resumed run makes two passes."""
    if way == "disk":
        assert biggan.patch("--write").status == 0
        tell(biggan)
    saving = (*EARLIER, "--save_every", str(stop))
    if before == "with top-k":
        assert schedule(biggan, *saving, way=way) == by_formula(1, 5)
    elif way == "run":
        assert biggan.run(*saving, flags=["--no-enabled"]).status == 0
    else:
        on_disk(biggan, *saving)
    assert schedule(biggan, *LATER, way=way) == by_formula(stop + 1, stop + 10)


def test_a_resumed_run_is_top_k_by_hand(biggan):
    """Also in the batches: upstream restores what it needs."""
    saving = (*EARLIER, "--save_every", "3")
    assert biggan.run(*saving, flags=SETTINGS).status == 0
    check_by_hand(biggan, *LATER)


def test_the_multi_epoch_sampler_resumes_in_mid_pass(biggan):
    """Upstream's own epoch, 1 in the checkpoint, is of another meaning."""
    many = ("--use_multiepoch_sampler", "--digits", "40", "--experiment_name", "one")
    first = schedule(biggan, *many, "--num_epochs", "2", "--save_every", "13")
    assert first == by_formula(1, 20)
    rest = schedule(biggan, *many, "--num_epochs", "3", "--resume")
    # twice through the two batches that are left of three passes
    assert rest == by_formula(14, 17)


def test_a_start_epoch_is_in_the_checkpoint(biggan):
    flags = [*SETTINGS, "--start-epoch", "1"]
    assert biggan.run(*EARLIER, "--save_every", "5", flags=flags).status == 0
    assert schedule(biggan, *LATER) == [(itr, t + 1, 2) for itr, t, _ in by_formula(6, 15)]


# --- its configuration --------------------------------------------------------------------------


def saved(biggan: Upstream) -> tuple[str, dict[str, object], torch.Tensor]:
    """The experiment's name and the configuration of its checkpoint, and the critic's state."""
    (folder,) = (biggan.folder / "weights").iterdir()
    state = torch.load(folder / "state_dict.pth", weights_only=False)
    return folder.name, state["config"], torch.load(folder / "D.pth", weights_only=True)


def test_its_configuration_is_its_own(biggan):
    """It names the experiment, and is saved: nothing in it is of another class than before."""
    saving = ("--num_epochs", "1", "--save_every", "5")
    assert biggan.run(*saving, flags=["--no-enabled"]).status == 0
    name, config, _ = saved(biggan)
    assert biggan.run(*saving, flags=SETTINGS).status == 0
    found_name, found, state = saved(biggan)
    assert (found_name, str(found)) == (name, str(config))
    assert state._metadata[""]["topk_plugin"]["epoch"] == 1

    assert biggan.patch("--write").status == 0
    on_disk(biggan, *saving, *ON)
    found_name, found, state = saved(biggan)
    assert found_name == name
    own = {key: value for key, value in found.items() if not key.startswith("topk")}
    assert str(own) == str(config)
    assert found["topk_gamma"] == 0.75
    kinds = {type(value).__module__ for key, value in found.items() if key.startswith("topk")}
    assert kinds == {"builtins"}
    assert state._metadata[""]["topk_plugin"]["epoch"] == 1


def test_a_patched_checkout_resumes_what_was_saved_before(biggan):
    """And after the patch is undone, what was saved with it."""
    assert biggan.run(*EARLIER, "--save_every", "5", flags=["--no-enabled"]).status == 0
    assert biggan.patch("--write").status == 0
    tell(biggan)
    assert schedule(biggan, *LATER, "--save_every", "5", way="disk") == by_formula(6, 15)
    assert biggan.patch("--revert").status == 0
    done = biggan.run(*LATER, "--num_epochs", "3", flags=["--no-enabled"])
    assert done.status == 0, done.err
    assert schedule(biggan, *LATER, "--num_epochs", "3")[0] == (16, 3, 2)


def test_a_patched_checkout_is_not_gated_twice(biggan):
    assert biggan.patch("--write").status == 0
    done = biggan.run(*ON)
    assert done.status == 3
    assert "`topk patch` has put top-k into this file already" in done.err
    assert not (biggan.folder / "weights.pt").exists()


@pytest.mark.upstream
def test_its_samples_are_drawn(genuine):
    """With the checkpoints it writes sheets of images, in memory and on disk."""
    samples = genuine.folder / "samples" / "one"
    assert genuine.run(*EARLIER, "--save_every", "5", flags=SETTINGS).status == 0
    assert (samples / "fixed_samples5.jpg").stat().st_size > 0
    assert len(list((samples / "5").glob("*.jpg"))) == 4
    assert genuine.patch("--write").status == 0
    on_disk(genuine, *EARLIER, "--save_every", "4", *ON)
    assert (samples / "fixed_samples4.jpg").stat().st_size > 0
