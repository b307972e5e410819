"""`topk run` on training scripts that know nothing of top-k, one style a file.

Every script carries comment lines `# hand: STATEMENT` where a person would write top-k by hand.
Four runs of each, from the same seeds: as it stands (plain), with the hand lines switched on, and
as it stands under `topk run`, once with its critic named and once with nothing named. The last
three must end with the same weights, in float64.
"""

import re
import runpy
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from launched import run
from torches import scalers
from training_styles import SCRIPTS, difference, weights

HAND = re.compile(r"^(\s*)# hand: (.*)$", re.MULTILINE)


class Case(NamedTuple):
    name: str  # a file, or a package that is run with -m
    epochs: int  # that end while the script trains
    steps: int  # of the generator's optimizer that really happened
    direction: str = "high"
    flags: tuple[str, ...] = ()
    critic: str = "__main__:Critic"


CASES = [
    Case("undetached_fakes.py", 6, 24),
    Case("gradient_penalty.py", 9, 23),
    Case("forward_calls.py", 5, 20),
    Case("energy_low_real.py", 5, 20, "low"),
    Case("accumulation.py", 6, 24),
    Case("r1_augmented.py", 5, 25),
    Case("partial_batches.py", 5, 25),
    Case("tuple_outputs.py", 5, 20),
    Case("both_backward_first.py", 5, 20),
    Case("closures.py", 5, 20),
    Case("grad_scaler.py", 5, 19),  # one of twenty is skipped
    Case("auxiliary_optimizer.py", 5, 20),
    Case("ema_critic.py", 6, 24),
    Case("persistent_workers.py", 5, 20),
    Case("endless_sampler.py", 4, 22),  # whole passes; a break cuts the fifth short
    Case("two_loaders.py", 5, 20),
    Case("peeked_loader.py", 5, 20),
    Case("drawn_batches.py", 5, 10),
    Case("wrapper_function.py", 5, 20),
    Case("batchnorm_critic.py", 5, 20),
    Case("wasserstein_flipped.py", 5, 20, "low"),
    Case("lsgan.py", 7, 28),
    Case("dict_output.py", 5, 20),
    Case("frozen_critic.py", 5, 20),
    Case("concatenated.py", 5, 20),
    Case("as_package", 5, 20, critic="as_package.nets:Critic"),
    Case("steps_only.py", 4, 23, flags=("--every", "5")),
    Case("cut_short.py", 6, 18),
    Case("backward_inputs.py", 5, 20),
    Case("two_calls.py", 5, 20),
    Case("info_step.py", 5, 20),
    Case("sharpness_aware.py", 5, 20),
    Case("adaptive_weight.py", 5, 20),
    Case("outside_embedding.py", 5, 20),
    Case("unfrozen_features.py", 5, 20),
    Case("zeroed_in_place.py", 5, 20),
    Case("two_critics.py", 5, 20),
    Case("scaler_critic_skipped.py", 5, 19),
]


def by_hand(case: Case, folder: Path) -> Path:
    """A copy of the script in ``folder`` with its hand lines switched on."""
    shutil.copytree(SCRIPTS, folder)
    files = (folder / case.name).glob("*.py") if case.name == "as_package" else [folder / case.name]
    switched = 0
    for file in files:
        text, n = HAND.subn(r"\1\2", file.read_text())
        file.write_text(text)
        switched += n
    assert switched >= 3, "a hand-written top-k has at least a start, a selection and a decay"
    return folder


def run_here(case: Case, folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """Run a script of ``folder`` in this process, as if it were the main program; its weights."""
    with monkeypatch.context() as patch, torch.random.fork_rng(devices=[]):
        threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
        modules = set(sys.modules)
        patch.setattr(sys, "argv", [case.name, str(out)])
        patch.syspath_prepend(str(folder))
        try:
            if case.name.endswith(".py"):
                runpy.run_path(str(folder / case.name), run_name="__main__")
            else:
                runpy.run_module(case.name, run_name="__main__", alter_sys=True)
        finally:
            torch.set_num_threads(threads)
            torch.set_default_dtype(dtype)
            for name in set(sys.modules) - modules:  # the two variants bear the same names
                if name.split(".")[0] in (case.name, "networks"):
                    del sys.modules[name]
    return weights(out)


def run_plugin(case: Case, out: Path, *named: str) -> tuple[dict, str]:
    """Run the untouched script under `topk run`; its weights and what went to stderr."""
    target = [str(SCRIPTS / case.name)] if case.name.endswith(".py") else ["-m", case.name]
    command = ["run", *named, "--gamma", "0.8", "--nu", "0.5", *case.flags, "--", *target, str(out)]
    done = run(out.parent, command, path=[str(SCRIPTS)])
    assert done.status == 0, done.err
    return weights(out), done.err


def count(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, f"no {pattern!r} in:\n{text}"
    return int(found[1].replace(",", ""))


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case, id=case.name.removesuffix(".py"), marks=[scalers] if "scaler" in case.name else []
        )
        for case in CASES
    ],
)
def test_weights_equal_hand_written_topk(case, tmp_path, monkeypatch):
    plain = run_here(case, SCRIPTS, tmp_path / "plain.pt", monkeypatch)
    hand = run_here(case, by_hand(case, tmp_path / "hand"), tmp_path / "hand.pt", monkeypatch)
    assert difference(plain, hand) > 1e-6, "top-k changes nothing here: the comparison is vacuous"

    for named in (["--critic", case.critic], []):
        plugin, stderr = run_plugin(case, tmp_path / "plugin.pt", *named)
        assert f"critic {case.critic}, direction {case.direction}" in stderr
        assert difference(plugin, hand) <= 1e-9
        assert "not gated" not in stderr
        assert count(r"([\d,]+) generator steps? gated", stderr) == case.steps
        assert count(r"([\d,]+) epochs? ended", stderr) == case.epochs
    assert "ungated" not in stderr


def test_every_script_is_in_the_table():
    found = {p.name for p in SCRIPTS.iterdir() if p.suffix == ".py" or (p / "__main__.py").exists()}
    assert found - {"networks.py"} == {case.name for case in CASES}
