"""StudioGAN's own main.py under `topk run --adapter studiogan`, and its own top-k beside it."""

import importlib.util
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import launched
import pytest
import torch
import yaml
from contract import OFFERED, SETTINGS, Upstream, check_by_hand, preloaded, skip_without, verdict_of
from losses import error
from PIL import Image
from sklearn.datasets import load_digits

from topk_plugin.source.rules import IMPORT
from topk_plugin.upstream.known import own_settings

TOPK = {"apply_topk": True, "topk_gamma": 0.75, "topk_nu": 0.5}
TWENTY = ("--digits", "20")  # five batches of four


@pytest.fixture(params=["stand-in", pytest.param("genuine", marks=pytest.mark.upstream)])
def studio(request, tmp_path):
    skip_without("studiogan", request.param)
    return Upstream(tmp_path, "studiogan", request.param)


@pytest.fixture
def genuine(tmp_path):
    skip_without("studiogan", "genuine")
    return Upstream(tmp_path, "studiogan", "genuine")


def settings(studio: Upstream, **sections: dict) -> tuple[str, str]:
    """The flag that names a YAML file with these settings."""
    tiny = {
        "DATA": {"name": "CIFAR10", "img_size": 32, "num_classes": 10},
        "MODEL": {"backbone": "resnet", "g_conv_dim": 4, "d_conv_dim": 4, "z_dim": 8},
        "LOSS": {"adv_loss": "hinge"},
        "OPTIMIZATION": {"batch_size": 4, "total_steps": 8, "d_updates_per_step": 1},
    }
    merged = {name: tiny.get(name, {}) | sections.get(name, {}) for name in {**tiny, **sections}}
    (studio.folder / "own.yaml").write_text(yaml.safe_dump(merged))
    return "-cfg", "own.yaml"


def shown(studio: Upstream) -> list[int | None]:
    """k of each step, as upstream's own log has it."""
    said = (studio.folder / "stdout.txt").read_text() + studio.said()
    found = re.findall(r"Topk: +(\d+|N/A)", said)
    return [None if k == "N/A" else int(k) for k in found]


def native(studio: Upstream, *arguments: str) -> launched.Done:
    """A run of the checkout as it is, which may fail."""
    words = ["run", "--adapter", "studiogan", "--no-enabled", "--", studio.script, *arguments]
    return launched.run(studio.folder, words, preload=preloaded())


# --- in place of its own ------------------------------------------------------------------------


@pytest.mark.parametrize("d_first", [True, False])
def test_it_has_the_k_and_the_weights_of_upstreams_own(studio, d_first):
    """Where that is right. An epoch that ends while the critic trains counts from the next step."""
    steps = {"d_first": d_first, "total_steps": 12}
    own = settings(studio, LOSS=TOPK, OPTIMIZATION=steps)
    by_upstream = studio.train(*own, *TWENTY, flags=["--no-enabled"])
    assert "top-k" not in studio.said()
    assert shown(studio) == [4] * 6 + [3] * 5 + [2] * 2
    found = studio.train(*own, *TWENTY, flags=[])
    assert shown(studio) == [4] * 6 + [3] * 5 + [2] * 2
    assert error(found, by_upstream) < 1e-9
    assert tuple(map(int, verdict_of(studio).groups())) == (13, 5 * 1 + 2 * 2, 13 * 4, 2, 2, 4)


def test_the_yaml_file_switches_it_on_and_off_and_a_flag_beats_it(studio):
    own = settings(studio, LOSS=TOPK)
    steps = studio.logged(*own, flags=["--gamma", "0.9"])
    assert [k for _, _, k in steps] == [4] * 3 + [3] * 4 + [2] * 2
    off = settings(studio, LOSS={"apply_topk": False})
    assert studio.run(*off, flags=[]).status == 0
    assert "top-k off: own.yaml says so; --enabled switches it on" in studio.said()
    assert "top-k ACTIVE" not in studio.said()
    assert set(shown(studio)) == {None}


@pytest.mark.parametrize(
    "command", [["-cfg", "a.yaml"], ["-cfg=a.yaml"], ["-cfg", "b", "--cfg_file=a.yaml", "-t"]]
)
def test_its_flag_for_the_yaml_file_has_two_forms(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("LOSS: {apply_topk: false}")
    assert own_settings(OFFERED["studiogan"], ["src/main.py", *command]) == Path("a.yaml")
    (tmp_path / "a.yaml").write_text("LOSS: {adv_loss: hinge}")
    assert own_settings(OFFERED["studiogan"], ["src/main.py", *command]) is None


WRONG = {
    "LOSS.topk_nu: found 0.0": {"topk_nu": 0.0},
    "LOSS.topk_gamma: found 1.5": {"topk_gamma": 1.5},
    "LOSS.topk_gamma: found 'N/A'": {"topk_gamma": "N/A"},
    "LOSS.apply_topk: found 'False'": {"apply_topk": "False"},
    "LOSS.topk_gamma: found 0.75, expected 'N/A' or nothing while": {"apply_topk": False},
}


@pytest.mark.parametrize("message", WRONG)
def test_settings_are_validated_before_anything_runs(studio, message):
    done = studio.run(*settings(studio, LOSS=TOPK | WRONG[message]), flags=[])
    assert done.status == 2
    assert message in done.err
    assert not (studio.folder / "save").exists()


def test_without_top_k_its_settings_are_its_own_affair(studio):
    """A mean over no scores is NaN, and sends no gradient."""
    loss = TOPK | {"topk_gamma": 0.25, "topk_nu": 0.0}
    assert native(studio, *settings(studio, LOSS=loss)).status == 0
    assert shown(studio) == [4] * 3 + [1] * 2 + [0] * 4
    if studio.origin == "genuine":
        assert re.search(r"Gen_loss: +nan", (studio.folder / "stdout.txt").read_text())


def test_a_missing_key_is_named(studio):
    done = studio.run(*settings(studio, LOSS={"apply_topk": True, "topk_nu": 0.5}), flags=[])
    assert done.status == 2
    assert "LOSS.topk_gamma: found nothing" in done.err


def test_on_disk_the_yaml_file_has_the_settings(studio):
    assert studio.patch("--write").status == 0
    for file in ("loader.py", "worker.py"):
        assert (studio.folder / file).read_text().count(IMPORT) == 1

    def run(**loss) -> launched.Done:
        words = [studio.script, *settings(studio, LOSS=loss)]
        return launched.run(studio.folder, words, plain=True, preload=preloaded())

    assert run(**TOPK).status == 0
    assert ", patched), direction high, k 4 of 4, decays x0.75 each epoch to 2" in studio.said()
    assert shown(studio) == [4] * 3 + [3] * 2 + [2] * 4
    assert run().status == 0
    assert "top-k" not in studio.said()
    assert set(shown(studio)) == {None}
    done = run(**TOPK | {"topk_nu": 0.0})
    assert done.status != 0
    assert "ConfigError: studiogan.LOSS.topk_nu: found 0.0, expected a number in (0, 1]" in done.err


# --- what its own top-k gets wrong --------------------------------------------------------------


def test_scores_of_shape_b_1(studio):
    if studio.origin == "stand-in":
        check_by_hand(studio, *settings(studio, MODEL={"d_cond_mtd": "SPD"}))
        return
    shipped = yaml.safe_load((studio.folder / "configs/CIFAR10/StyleGAN2.yaml").read_text())
    shipped["LOSS"] |= TOPK
    shipped["OPTIMIZATION"] |= {"batch_size": 4}
    shipped["STYLEGAN"] |= {"d_epilogue_mbstd_group_size": 4}
    arguments = (*settings(studio, **shipped), "--single", "--stop", "4", "--digits", "4")
    done = native(studio, *arguments)
    assert done.status == 1
    assert "selected index k out of range" in done.err
    assert [k for _, _, k in studio.logged(*arguments, flags=[])] == [4, 4, 3, 2]


def test_an_iteration_in_which_two_epochs_end(studio):
    """Feature matching fetches a second batch; the data are one batch."""
    loss = TOPK | {"apply_fm": True, "fm_lambda": 1.0}
    own = (*settings(studio, LOSS=loss), "--digits", "4")
    assert native(studio, *own).status == 0
    assert shown(studio) == [4] + [3] * 8, "epoch 2 is passed over"
    assert studio.run(*own, flags=[]).status == 0
    assert shown(studio) == [4, 3] + [2] * 7
    found = studio.weights()
    off = (*settings(studio, LOSS=loss | {"apply_topk": False}), "--digits", "4")
    by_hand = studio.train(*off, "--hand", "--couple", flags=["--no-enabled"])
    assert error(found, by_hand) < 1e-9


def checkpoint(studio: Upstream, *arguments: str, flags: list[str]) -> Path:
    """What a run over 6 batches of 5 an epoch left."""
    stop = settings(studio, OPTIMIZATION={"total_steps": 5})
    done = studio.run(*stop, *TWENTY, "--save_freq", "6", *arguments, flags=flags)
    assert done.status == 0, done.err
    (saved,) = (studio.folder / "save/checkpoints").iterdir()
    folder = studio.folder / "kept"
    shutil.move(saved, folder)
    shutil.rmtree(studio.folder / "save")
    return folder


@pytest.mark.parametrize("before", ["without top-k", "with top-k"])
@pytest.mark.parametrize("batch", [4, 8])
def test_a_resumed_run_has_its_k_at_once(studio, before, batch):
    """The first epoch ended in the very step after which the checkpoint was written."""
    flags = ["--no-enabled"] if before == "without top-k" else list(SETTINGS)
    folder = checkpoint(studio, flags=flags)
    options = {"batch_size": batch, "d_updates_per_step": 1, "total_steps": 13}
    own = (*settings(studio, LOSS=TOPK, OPTIMIZATION=options), *TWENTY)
    steps = studio.logged(*own, "-ckpt", str(folder), flags=[])
    epochs = [1] + [1 + step // (20 // batch) for step in range(7)]
    kept = [batch * 3 // 4 if epoch == 1 else batch // 2 for epoch in epochs]
    assert steps == [(epoch, batch, k) for epoch, k in zip(epochs, kept, strict=True)]
    assert "Warning: weights were loaded" not in studio.said()


@pytest.mark.upstream
def test_what_upstreams_own_does_when_it_is_resumed(genuine):
    """It goes on with the k of the file, and without one it ends in an error."""
    folder = checkpoint(genuine, flags=["--no-enabled"])
    options = {"total_steps": 7}
    own = (*settings(genuine, LOSS=TOPK, OPTIMIZATION=options), *TWENTY, "-ckpt", str(folder))
    (file,) = folder.glob("model=D-current*.pth")
    saved = torch.load(file, weights_only=False)
    assert native(genuine, *own).status == 0
    assert shown(genuine) == [4, 4]
    for old in folder.glob("model=D-current*.pth"):
        old.unlink()
    del saved["topk"]
    torch.save(saved, file)
    done = native(genuine, *own)
    assert done.status == 1
    assert "invalid literal for int() with base 10: 'initialize'" in done.err
    assert [k for _, _, k in genuine.logged(*own, flags=[])] == [3, 3]


def test_multi_hinge_scores_are_refused(studio):
    own = settings(
        studio,
        MODEL={"d_cond_mtd": "MH"},
        LOSS={"adv_loss": "MH", "mh_lambda": 0.05},
    )
    done = studio.run(*own)
    assert done.status == 3
    assert "ScoreShapeError: no score in the critic's output" in done.err
    assert "adv_output: float64(4, 11)" in done.err


# --- the critic's other outputs -----------------------------------------------------------------

CLASSES = {"MODEL": {"d_cond_mtd": "AC"}, "LOSS": {"cond_lambda": 1.0}}
EMBEDS = {"d_embed_dim": 8, "normalize_d_embed": True}
HEADS = {
    "AC": CLASSES,
    "ADC": {**CLASSES, "MODEL": {"d_cond_mtd": "AC", "aux_cls_type": "ADC"}},
}
GENUINE_HEADS = {
    "2C": {
        "MODEL": {"d_cond_mtd": "2C", **EMBEDS},
        "LOSS": {"cond_lambda": 1.0, "temperature": 1.0},
    },
    "D2DCE": {
        "MODEL": {"d_cond_mtd": "D2DCE", **EMBEDS},
        "LOSS": {"cond_lambda": 1.0, "temperature": 1.0, "m_p": 0.98},
    },
    "2C and ADC": {
        "MODEL": {"d_cond_mtd": "2C", "aux_cls_type": "ADC", **EMBEDS},
        "LOSS": {"cond_lambda": 1.0, "temperature": 1.0},
    },
    "InfoGAN": {
        "MODEL": {
            "info_type": "both", "info_num_discrete_c": 2, "info_num_conti_c": 2,
            "info_dim_discrete_c": 4, "g_info_injection": "concat",
        },
        "LOSS": {"infoGAN_loss_discrete_lambda": 0.1, "infoGAN_loss_conti_lambda": 0.1},
    },
}  # fmt: skip


@pytest.mark.parametrize("heads", HEADS)
def test_the_critics_other_outputs_follow_unless_told_to_keep(studio, heads):
    """By hand their dropped rows are not there, or all of them are."""
    own = settings(studio, **HEADS[heads])
    check_by_hand(studio, *own)
    followed = studio.weights()
    by_hand = studio.train(*own, "--hand", "--keep", flags=["--no-enabled"])
    kept = studio.train(*own, flags=[*SETTINGS, "--companions", "keep"])
    assert error(kept, by_hand) < 1e-9
    assert error(kept, followed) > 1e-6


@pytest.mark.upstream
@pytest.mark.parametrize("heads", GENUINE_HEADS)
def test_where_a_loss_couples_the_rows_their_gradient_follows(genuine, heads):
    check_by_hand(genuine, *settings(genuine, **GENUINE_HEADS[heads]), "--couple")


def test_the_check_recomputes_them_too(studio):
    own = settings(studio, **HEADS["ADC"])
    done = studio.run(*own, command="check", flags=[*SETTINGS, "--steps", "2"])
    assert done.status == 0, done.out + done.err
    assert re.search(r"^result +agrees$", done.out, re.MULTILINE)
    assert re.search(r"^other outputs +follow the kept rows", done.out, re.MULTILINE)
    done = studio.run(*own, command="check", flags=[*SETTINGS, "--companions", "keep"])
    assert re.search(r"^other outputs +keep the gradient of all rows", done.out, re.MULTILINE)
    assert done.status == 0, done.out + done.err


# --- the rest of its training -------------------------------------------------------------------


def test_each_of_several_backwards_of_a_step_is_top_k(studio):
    options = {"acml_steps": 2, "total_steps": 8}
    steps, dropped, rows, *_ = map(
        int, check_by_hand(studio, *settings(studio, OPTIMIZATION=options), *TWENTY).groups()
    )
    assert (steps, rows) == (9, 9 * 8)
    assert dropped % 2 == 0


@pytest.mark.upstream
@pytest.mark.parametrize("flag", ["-mpc", "-batch_stat", "-sync_bn"])
def test_its_flags(genuine, flag):
    check_by_hand(genuine, flag)


@pytest.mark.upstream
def test_a_shipped_configuration_needs_three_keys(genuine):
    """GGAN for CIFAR-10, on files in its format: two iterations an epoch."""
    shipped = (genuine.folder / "configs/CIFAR10/GGAN.yaml").read_text()
    keys = "LOSS:\n  apply_topk: true\n  topk_gamma: 0.75\n  topk_nu: 0.5\n"
    assert shipped.count("LOSS:\n") == 1
    (genuine.folder / "own.yaml").write_text(shipped.replace("LOSS:\n", keys))
    write_cifar(genuine.folder / "data/cifar-10-batches-py", 260)
    arguments = ("--files", "--single", "--stop", "6", "-cfg", "own.yaml", "-data", "data")
    assert native(genuine, *arguments).status == 0
    by_upstream = shown(genuine)
    steps = genuine.logged(*arguments, flags=[])
    assert steps == [(0, 64, 64)] * 3 + [(1, 64, 48)] * 2 + [(2, 64, 36)]
    assert shown(genuine) == by_upstream == [k for _, _, k in steps]


def write_cifar(folder: Path, number: int) -> None:
    """Digits as CIFAR-10's files."""
    folder.mkdir(parents=True)
    data = load_digits()
    images = (data.images[:number] * 15.9).astype("uint8").repeat(4, 1).repeat(4, 2)
    rows = images.reshape(number, 1, -1).repeat(3, 1).reshape(number, -1)
    labels = [int(label) for label in data.target[:number]]
    for file in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        part = slice(0, number if file == "data_batch_1" else 0)
        content = {"data": rows[part], "labels": labels[part]}
        (folder / file).write_bytes(pickle.dumps(content))
    names = {"label_names": [f"digit {i}" for i in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(names))


@pytest.mark.upstream
def test_two_processes_that_share_a_batch_have_upstreams_own_weights(genuine):
    """Each ranks its half. Their workers are spawned, and import the sources anew."""
    data = load_digits()
    for number, label in enumerate(data.target[:48]):
        pixels = (data.images[number] * 15.9).astype("uint8").repeat(4, 0).repeat(4, 1)
        path = genuine.folder / f"data/train/{label}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).convert("RGB").save(path)
    options = {"batch_size": 8, "total_steps": 13}
    own = settings(genuine, DATA={"name": "DIGITS"}, LOSS=TOPK, OPTIMIZATION=options)

    def train(name: str, *flags: str) -> tuple[list[torch.Tensor], str]:
        port = str(29000 + os.getpid() % 1000 + len(name))
        environment = launched.ENVIRONMENT | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, "-m", "topk_plugin", "run", "--adapter", "studiogan", *flags]
        command += ["--", "main.py", "-t", "-metrics", "none", *own, "-data", "data"]
        command += ["-DDP", "--backend", "gloo", "-tn", "2", "--num_workers", "1", "--seed", "1"]
        command += ["--print_freq", "1", "--save_freq", "14"]
        processes = [
            subprocess.Popen(
                [*command, "-cn", str(node), "-save", f"{name}{node}"],
                cwd=genuine.folder, env=environment, text=True, stderr=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
            )
            for node in range(2)
        ]  # fmt: skip
        said = [process.communicate(timeout=500)[1] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], said
        files = sorted((genuine.folder / f"{name}0/checkpoints").glob("*/model=*.pth"))
        assert len(files) == 2
        states = [torch.load(file, weights_only=False)["state_dict"] for file in files]
        return [v for state in states for v in state.values() if v.is_floating_point()], said[0]

    by_upstream, _ = train("native", "--no-enabled")
    plain, _ = train("plain", "--gamma", "1")
    found, said = train("ours")
    assert error(found, by_upstream) < 1e-5
    assert error(found, plain) > 1e-3
    assert "top-k (rank 0) ACTIVE: " in said
    assert "direction high, k 4 of 4, decays x0.75 each epoch to 2" in said
    assert "14 generator steps gated, 8 of 56 rows dropped" in said


def test_its_checkpoints_carry_the_record(studio):
    folder = checkpoint(studio, flags=list(SETTINGS))
    (file,) = (path for path in folder.iterdir() if path.name.startswith(("D", "model=D")))
    state = torch.load(file, weights_only=False)
    record = state["state_dict"]._metadata[""]["topk_plugin"]
    assert (record["epoch"], record["steps"], state["epoch"]) == (1, 6, 1)


def test_modules_that_training_does_without_are_stood_in_for(studio):
    """Only for its own files, and only where they are not installed."""
    (studio.folder / "imported.py").write_text(
        "import json, sys, worker, topk_drive\n"
        "names = ['wandb', 'kornia', 'kornia.filters', 'tqdm']\n"
        "print(json.dumps([worker.wandb.init(), [n for n in names if n in sys.modules]]))\n"
        "topk_drive.train_other()\n"
    )
    done = launched.run(
        studio.folder,
        ["run", "--adapter", "studiogan", *studio.force, "--", "imported.py"],
        preload=preloaded(),
    )
    assert done.status == 3, done.err
    result, present = json.loads(done.out.splitlines()[0])
    assert result is None
    gone = ("wandb", "kornia", "kornia.filters")
    stood_in_for = [n for n in gone if importlib.util.find_spec(n.partition(".")[0]) is None]
    assert not [name for name in present if name in stood_in_for]
