"""torchgan's own trainer, losses and checkpoints under `topk run --adapter torchgan`."""

import json
import shutil
import textwrap

import launched
import pytest
from contract import SETTINGS, Upstream, check_by_hand, needs
from losses import error

NAME = "torchgan"
pytestmark = pytest.mark.skipif(
    bool(needs(NAME)), reason=f"not installed: {', '.join(needs(NAME))}"
)


@pytest.fixture
def upstream(tmp_path):
    return Upstream(tmp_path, NAME)


@pytest.mark.parametrize(
    "arguments",
    [
        ["least-squares"],
        ["wasserstein", "--penalty"],
        ["minimax", "--classify"],
        pytest.param(["minimax", "--critic-steps", "2"], marks=pytest.mark.slow),
        pytest.param(["energy"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_every_family_is_top_k_by_hand(upstream, arguments):
    """A loss of class logits, or of embeddings, has steps of its own, and is none of scores."""
    verdict = check_by_hand(upstream, *arguments)
    assert (int(verdict[4]), int(verdict[5])) == (4, 8)
    direction = "low" if arguments == ["energy"] else "high"
    assert f"direction {direction}, by " in upstream.said()


OWN = """
    import sys

    import torch
    import train
    from torchgan import losses


    class Mine(losses.LeastSquaresGeneratorLoss):
        def forward(self, scores):
            return 2 * super().forward(scores)


    class Worse(losses.GeneratorLoss):
        def forward(self, energies):
            return energies.mean()


    train.LOSSES["minimax"] = {
        "mine": (Mine, losses.LeastSquaresDiscriminatorLoss),
        "worse": (Worse, losses.WassersteinDiscriminatorLoss),
    }[sys.argv.pop()]
    train.main()
    """


@pytest.mark.parametrize(("loss", "direction"), [("mine", "high"), ("worse", "low")])
def test_a_loss_of_the_users_own_is_gated_once(upstream, loss, direction):
    shutil.move(upstream.folder / "train.py", upstream.folder / "upstream.py")
    text = textwrap.dedent(OWN).replace("import train\n", "import upstream as train\n")
    (upstream.folder / "train.py").write_text(text)
    found = upstream.train(loss)
    assert f"direction {direction}, by 16 of 16 votes" in upstream.said()
    assert "16 generator steps gated, 76 of 256 rows dropped" in upstream.said()
    if loss == "mine":
        by_hand = upstream.train("--hand", loss, flags=["--no-enabled"])
        assert error(found, by_hand) < 1e-9


# --- stop and resume ------------------------------------------------------------------------------


def schedule(upstream: Upstream, *arguments: str, flags=SETTINGS) -> list[tuple[int, ...]]:
    """Step, epoch and k of every generator step of a run."""
    done = upstream.run(*arguments, flags=[*flags, "--log", "log.jsonl"])
    assert done.status == 0, done.err
    lines = map(json.loads, (upstream.folder / "log.jsonl").read_text().splitlines())
    return [(line["step"], line["epoch"], line["k"]) for line in lines]


SLOW = ("--gamma", "0.9", "--nu", "0.5")
WHOLE = ("--digits", "64")


def by_formula(first: int, last: int) -> list[tuple[int, int, int]]:
    """Of the epochs from one to before another, of 4 steps each."""
    steps = range(4 * first + 1, 4 * last + 1)
    return [(s, t, int(0.9**t * 16 + 1e-9)) for s, t in ((s, (s - 1) // 4) for s in steps)]


def test_a_resumed_run_has_the_k_of_one_that_never_stopped(upstream):
    assert schedule(upstream, *WHOLE, "--epochs", "2", flags=SLOW) == by_formula(0, 2)
    after = schedule(upstream, *WHOLE, "--load", "model/gan1.model", flags=SLOW)
    assert after == by_formula(2, 4)
    assert "4 epochs ended" not in upstream.said()
    assert "2 epochs ended" in upstream.said()
    assert "top-k record" not in upstream.said()


def test_a_checkpoint_without_top_k_tells_the_epochs_by_its_counter(upstream):
    assert upstream.run(*WHOLE, "--epochs", "3", flags=["--no-enabled"]).status == 0
    after = schedule(upstream, *WHOLE, "--load", "model/gan2.model", flags=SLOW)
    assert after == by_formula(3, 4)
    assert "top-k record" not in upstream.said()
    wrong = upstream.run(*WHOLE, "--load", "model/gan2.model", flags=[*SLOW, "--start-epoch", "1"])
    assert wrong.status == 2
    assert "start_epoch: found 1, but torchgan/torchgan goes on" in wrong.err


@pytest.mark.slow
def test_other_settings_do_not_resume(upstream):
    """Its trainer says only that it could not load; the reason is what that came from."""
    schedule(upstream, *WHOLE, "--epochs", "1", flags=SLOW)
    command = ["run", "--adapter", NAME, "--gamma", "0.8", "--", "train.py"]
    done = launched.run(upstream.folder, [*command, "--load", "model/gan0.model"])
    assert done.status == 1
    assert "ResumeMismatch" in done.err
    assert "gamma: 0.9 in the checkpoint, 0.8 now" in done.err
