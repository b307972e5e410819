"""What LiveView tells of generator steps, against plain loops; and where it writes it."""

import math
import os
import sys
import types

import pytest
import torch
from launched import topk_run
from losses import best_rows
from short_scripts import script, with_gan
from torch import nn
from torch.nn.functional import softplus

from topk_plugin import LiveView, TopK, attach
from topk_plugin.errors import ConfigError
from topk_plugin.plugins.figures import BINS, Figures, Histogram, Kept
from topk_plugin.plugins.live_view import histograms, scalars

BATCH, CLASSES = 12, 3


class Conditional(nn.Module):
    """Likes some classes more."""

    def __init__(self):
        super().__init__()
        self.net, self.of_class = nn.Linear(2, 1), nn.Embedding(CLASSES, 1)
        self.of_class.weight.data = torch.tensor([[-9.0], [0.0], [9.0]])

    def forward(self, x, y=None):
        return self.net(x) if y is None else self.net(x) + self.of_class(y)


class Loop:
    """A conditional GAN whose generator steps are noted: scores and labels of each."""

    def __init__(self, view, **settings):
        torch.manual_seed(0)
        self.topk = TopK(hooks=[view], **{"gamma": 0.5, "nu": 0.5, "direction": "high"} | settings)
        self.critic, self.generator = Conditional(), nn.Linear(3, 2)
        self.optimizer = torch.optim.SGD(self.generator.parameters(), 0.1)
        self.seen = []

    def step(self, bad=(), labels=True, line=False, batch=BATCH):
        y = torch.randint(CLASSES, (batch,)) if labels else None
        offset = torch.zeros(batch, 1).index_fill(0, torch.tensor(bad, dtype=torch.int64), math.nan)
        scores = self.critic(self.generator(torch.randn(batch, 3)) + offset, y)
        scores = self.topk(scores) if line else scores
        self.seen.append((scores.flatten().tolist(), None if y is None else y.tolist()))
        self.optimizer.zero_grad()
        softplus(-scores).backward(torch.full_like(scores, 1 / batch))
        for parameter in self.generator.parameters():
            parameter.grad.nan_to_num_()
        self.optimizer.step()


def by_loops(step: int, epoch: int, seen, fraction) -> Figures:
    """Row by row."""
    kept, dropped, classes, worst = [], [], {}, []
    for scores, labels in seen:
        rows = best_rows(scores, max(1, int(fraction * len(scores))))
        kept += [scores[i] for i in rows]
        dropped += [scores[i] for i in range(len(scores)) if i not in rows]
        last = [scores[i] for i in rows]
        worst.append(min(last) if all(s == s for s in last) else math.nan)
        for i, label in enumerate(labels or []):
            one = classes.get(label, Kept(0, 0))
            classes[label] = Kept(one.rows + 1, one.kept + (i in rows))
    everything = [s for s in kept + dropped if math.isfinite(s)]
    low, high = min(everything), max(everything)
    edges = [low + (high - low) * i / BINS for i in range(BINS)] + [high]

    def counts(scores):
        bins = [0] * BINS
        for score in scores:
            if math.isfinite(score):
                bins[min(BINS - 1, int((score - low) / ((high - low) / BINS)))] += 1
        return bins

    def mean(numbers):
        return sum(numbers) / len(numbers) if numbers else math.nan

    return Figures(
        step, epoch, 1, mean([len(scores) for scores, _ in seen]), len(kept) / len(seen),
        mean(worst), mean(kept), mean(dropped),
        len(kept + dropped) - len(everything), Histogram(edges, counts(kept), counts(dropped)),
        dict(sorted(classes.items())),
    )  # fmt: skip


def assert_alike(found: Figures, expected: Figures) -> None:
    for name, a, b in zip(Figures._fields, found, expected, strict=True):
        if name == "histogram" and b is not None:
            assert (a.kept, a.dropped) == (b.kept, b.dropped)
            assert a.edges == pytest.approx(b.edges)
        elif name == "classes":
            assert a == b
        else:
            assert a == pytest.approx(b, nan_ok=True, rel=1e-6), name


@pytest.mark.parametrize("bad", [(), (3, 7)], ids=["finite", "NaN"])
@pytest.mark.parametrize("way", ["attach", "line", "without labels"])
def test_figures_are_those_of_plain_loops(way, bad):
    told = []
    loop = Loop(LiveView(told.append, every=3))
    with attach(loop.critic, loop.topk) if way != "line" else torch.enable_grad():
        for _ in range(2):
            for _ in range(3):
                loop.step(bad, labels=way != "without labels", line=way == "line")
            loop.topk.end_epoch()
    labels = way == "attach"
    seen = [(scores, y if labels else None) for scores, y in loop.seen]
    assert len(told) == 2
    for epoch, fraction in enumerate((1.0, 0.5)):
        part = seen[3 * epoch : 3 * epoch + 3]
        assert_alike(told[epoch], by_loops(3 * epoch + 3, epoch, part, fraction))
    if labels:  # the critic dislikes a class, and it is seen
        shares = [one.share for one in told[1].classes.values()]
        assert shares == sorted(shares)
        assert shares[0] < 0.2 < 0.8 < shares[-1]


def test_partial_batches_and_what_is_left_at_the_end():
    told = []
    view = LiveView(told.append, every=100)
    loop = Loop(view)
    with attach(loop.critic, loop.topk):
        loop.topk.end_epoch()
        for batch in (12, 5, 1):
            loop.step(batch=batch)
        assert told == []
    view.close()
    view.close()
    assert len(told) == 1
    assert_alike(told[0], by_loops(3, 1, loop.seen, 0.5))


def test_steps_of_two_trainings_are_told_apart():
    told = []
    view = LiveView(told.append, every=3)
    loop = Loop(view)
    with attach(loop.critic, loop.topk):
        loop.step()
        loop.step()
    loop.generator, loop.critic = nn.Linear(3, 2), Conditional()
    loop.optimizer = torch.optim.SGD(loop.generator.parameters(), 0.1)
    with attach(loop.critic, loop.topk):
        loop.step()
    assert [(one.training, one.step) for one in told] == [(1, 2), (2, 1)]
    assert {name.split("/")[0] for name in scalars(told[1])} == {"top-k 2"}


def test_scores_that_are_all_alike_or_none_finite():
    told = []
    loop = Loop(LiveView(told.append, every=1))
    with attach(loop.critic, loop.topk):
        loop.critic.net.weight.data.zero_()
        loop.step(labels=False)
        loop.step(bad=range(BATCH), labels=False)
    same, none = told
    assert sum(same.histogram.kept) == BATCH
    assert same.histogram.edges == sorted({*same.histogram.edges})
    assert (none.histogram, none.nonfinite) == (None, BATCH)
    assert histograms(none) == {}
    assert all(number == number for number in scalars(none).values())


def test_nothing_is_read_between(monkeypatch):
    """Figures are formed every so many steps, and the tallies of the steps not before."""
    read = []
    monkeypatch.setattr("topk_plugin.plugins.live_view.figures", lambda steps: read.append(steps))
    loop = Loop(LiveView(lambda found: None, every=4))
    with attach(loop.critic, loop.topk):
        for number in range(1, 10):
            loop.step()
            assert len(read) == number // 4
    assert [len(steps) for steps in read] == [4, 4]


@pytest.mark.parametrize("number", [3, 25])
def test_many_classes_have_no_curve_each(number):
    classes = {label: Kept(4, 0 if label == 1 else 2) for label in range(number)}
    found = Figures(1, 0, 1, 8.0, 4.0, 0.0, 1.0, -1.0, 0, None, classes)
    names = scalars(found)
    assert sum("kept of" in name for name in names) == (number if number <= 20 else 0)
    assert names["top-k/classes/without a kept row"] == 1
    assert names["top-k/classes/least share kept"] == 0
    assert names["top-k/classes/greatest share kept"] == 0.5


@pytest.mark.parametrize(
    ("tell", "every", "words"),
    [(3, 1, "a function"), (print, 0, ">= 1"), (print, True, ">= 1"), (print, 2.0, ">= 1")],
)
def test_mistakes(tell, every, words):
    with pytest.raises(ConfigError, match=words):
        LiveView(tell, every=every)


# --- TensorBoard --------------------------------------------------------------------------------


class Writer:
    """Stands in for TensorBoard's."""

    made = []

    def __init__(self, folder):
        self.folder, self.scalars, self.histograms, self.flushed = folder, {}, {}, 0
        Writer.made.append(self)

    def add_scalar(self, name, number, step):
        self.scalars[name, step] = number

    def add_histogram_raw(self, name, low, high, num, total, squares, limits, counts, step):
        assert len(limits) == len(counts) == BINS
        self.histograms[name, step] = (low, high, num, total / num)

    def flush(self):
        self.flushed += 1


@pytest.fixture
def writers(monkeypatch):
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(Writer, "made", [])
    return Writer.made


def test_what_is_written_for_tensorboard(writers, tmp_path):
    loop = Loop(LiveView.to_tensorboard(tmp_path / "board", every=2))
    assert writers == []
    loop.topk.end_epoch()
    with attach(loop.critic, loop.topk):
        for _ in range(4):
            loop.step()
    [writer] = writers
    assert (writer.folder, writer.flushed) == (str(tmp_path / "board"), 2)
    assert writer.scalars["top-k/k", 2] == 6
    assert writer.scalars["top-k/batch", 4] == 12
    assert ("top-k/classes/kept of 2", 4) in writer.scalars
    kept, dropped = (writer.histograms[f"top-k/scores/{name}", 4] for name in ("kept", "dropped"))
    assert kept[2] == dropped[2] == 12
    assert kept[3] > dropped[3]


def test_a_fork_writes_into_a_folder_of_its_own(writers, tmp_path, monkeypatch):
    view = LiveView.to_tensorboard(tmp_path, every=1)
    loop = Loop(view)
    with attach(loop.critic, loop.topk):
        loop.step()
        monkeypatch.setattr(os, "getpid", lambda: 77)
        loop.step()
    assert [writer.folder for writer in writers] == [str(tmp_path), str(tmp_path / "process-77")]


def test_a_process_that_was_started_writes_into_a_folder_of_its_own(writers, tmp_path):
    loop = Loop(LiveView.of_child(tmp_path))
    assert [*tmp_path.iterdir()] == []  # it may never train
    with attach(loop.critic, loop.topk):
        for _ in range(100):
            loop.step()
    [writer] = writers
    assert writer.folder == str(tmp_path / f"process-{os.getpid()}")


def test_a_folder_that_cannot_be_made(writers, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot make the folder .*; give another"):
        LiveView.to_tensorboard(tmp_path / "file" / "board")


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_what_is_not_installed(name, monkeypatch, tmp_path):
    module = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}[name]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=f"--{name}: .*pip install {name}"):
        LiveView.to_wandb() if name == "wandb" else LiveView.to_tensorboard(tmp_path)


def test_other_ranks_write_nothing(writers, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    loop = Loop(LiveView.to_tensorboard(tmp_path, every=1))
    with attach(loop.critic, loop.topk):
        loop.step()
    assert writers == []


CONDITIONAL = """
from gan import *

class Conditional(Critic):
    def forward(self, x, y):
        return self.net(x) + y[:, None] * 9.0

D, G = Conditional(), make_generator()
optG = torch.optim.Adam(G.parameters(), 1e-2)
for _ in range(3):
    for x in loader:
        y = torch.arange(8) % 2
        optG.zero_grad()
        (-D(G(torch.randn(8, 3)), y)).mean().backward()
        optG.step()
"""


def test_a_run_in_tensorboard(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    script(with_gan(tmp_path), CONDITIONAL)
    flags = ["--gamma", "0.5", "--nu", "0.25", "--tensorboard", "board"]
    done = topk_run(tmp_path, "train.py", flags=flags, critic="__main__:Conditional")
    assert done.status == 0, done.err
    board = events.EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    [k] = board.Scalars("top-k/k")
    assert (k.step, k.value) == (12, pytest.approx((8 + 4 + 2) / 3))
    shares = [board.Scalars(f"top-k/classes/kept of {name}")[0].value for name in (0, 1)]
    assert shares == pytest.approx([1 / 3, 5 / 6])
    [scores] = board.Histograms("top-k/scores/kept")
    assert scores.histogram_value.num == 56


# --- Weights & Biases ---------------------------------------------------------------------------


def test_what_an_open_run_of_wandb_is_given(monkeypatch):
    logged = []
    run = types.SimpleNamespace(log=lambda numbers, commit: logged.append((numbers, commit)))
    wandb = types.ModuleType("wandb")
    wandb.run, wandb.Histogram = None, lambda np_histogram: np_histogram
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    loop = Loop(LiveView.to_wandb(every=1))
    loop.topk.end_epoch()
    with attach(loop.critic, loop.topk):
        loop.step()  # no run is open
        wandb.run = run
        loop.step()
    [(numbers, commit)] = logged
    assert commit is False  # the script's own steps count
    assert numbers["top-k/k"] == 6
    counts, edges = numbers["top-k/scores/kept"]
    assert (sum(counts), len(edges)) == (6, BINS + 1)
