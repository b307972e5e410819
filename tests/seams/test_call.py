"""The call seam on a toy upstream: every order, overrides, whatever calls whom; nothing left."""

import copy
import functools
import importlib
import inspect
import itertools
import pickle
import subprocess
import sys
import threading
import warnings
from dataclasses import replace

import launched
import pytest
import torch
import wrapt
from torches import UNREAD
from toy_upstream import (
    ADAPTER,
    GATE,
    LOSSES,
    NAMES,
    every_loss,
    forget,
    functions,
    is_gated,
    is_ours,
    load,
    make_seam,
    write,
)

from topk_plugin import TopK, Wrap
from topk_plugin.core.optimizers import unlisten
from topk_plugin.errors import ConfigError, UnsupportedUpstream

# --- orders -------------------------------------------------------------------------------------

ORDERS = [
    order
    for length in range(1, 6)
    for order in itertools.product(["import", "apply", "undo"], repeat=length)
    if order.count("import") == 1
]


@pytest.mark.parametrize("first_load", [0, 1], ids=["losses first", "trainer first"])
def test_every_order_of_import_apply_and_undo(toy, first_load):
    """All sequences of up to five with one import: gated after an apply, identical after undo."""
    modules = ["toygan.losses", "toygan.trainer"]
    assert len(ORDERS) == 1 + 4 + 12 + 32 + 80
    for order in ORDERS:
        seam, applied, imported = make_seam(toy), False, None
        for action in order:
            if action == "import":
                importlib.import_module(modules[first_load])
                imported = load()
            elif action == "apply":
                seam.apply()
                applied = True
            else:
                seam.undo()
                applied = False
            if imported is not None:
                gated = {is_gated(loss) for loss in every_loss(*imported)}
                assert gated == {applied}, (order, action)
        seam.undo()
        if imported is not None:
            originals = functions(*imported)
            assert not any(map(is_ours, originals.values())), order
            assert "method" not in vars(imported[0].Losses)
        unlisten(seam.topk.ledger)
        forget()


def test_undo_restores_the_very_objects(toy):
    before = functions(*load())
    seam = make_seam(toy)
    for _ in range(2):
        seam.apply()
        seam.apply()  # twice is as once
        during = functions(*load())
        assert {key for key in during if during[key] is not before.get(key)} == {
            ("toygan.trainer", "alias"),
            *(("toygan.losses", name) for name in NAMES if "." not in name),
            *(("Losses", name.partition(".")[2]) for name in NAMES if "." in name),
        }
        seam.undo()
        seam.undo()
        after = functions(*load())
        assert after.keys() == before.keys()
        assert all(after[key] is before[key] for key in before)
    assert isinstance(vars(load()[0].Losses)["static"], staticmethod)


def test_undo_within_a_module_that_is_never_imported_leaves_no_hook_that_acts(toy):
    seam = make_seam(toy)
    seam.apply()
    seam.undo()
    losses, trainer = load()
    assert not any(map(is_ours, functions(losses, trainer).values()))
    assert inspect.isfunction(losses.generator_loss)


def test_undo_after_an_exception_inside_a_wrapped_function(toy):
    losses, trainer = load()
    before = functions(losses, trainer)
    seam = make_seam(toy)
    seam.apply()
    with pytest.raises(RuntimeError, match="not 3"):
        losses.inner_loss(torch.zeros(3, requires_grad=True))
    assert is_gated(losses.outer_loss), "the exception left the seam inside a loss"
    seam.undo()
    assert functions(losses, trainer) == before


def test_what_half_matches_is_not_wrapped_at_all(toy):
    adapter = replace(ADAPTER, wraps=(*ADAPTER.wraps, Wrap("toygan.trainer", "gone", "()", GATE)))
    losses, trainer = load()
    before = functions(losses, trainer)
    seam = make_seam(toy, adapter)
    with pytest.raises(UnsupportedUpstream, match=r"there is no gone\(\)"):
        seam.apply()
    assert functions(losses, trainer) == before
    forget()

    seam = make_seam(toy, adapter)  # and the same as the second module is imported
    seam.apply()
    losses = importlib.import_module("toygan.losses")
    assert is_ours(losses.generator_loss)
    with pytest.raises(UnsupportedUpstream):
        importlib.import_module("toygan.trainer")
    assert not is_ours(losses.generator_loss)
    assert "toygan.trainer" not in sys.modules
    importlib.import_module("toygan.trainer")  # the script caught it, and goes on
    assert isinstance(seam.no_effect(), UnsupportedUpstream)


def test_a_replaced_function_is_left_as_it_is(toy):
    losses, _ = load()
    seam = make_seam(toy)
    seam.apply()
    assert seam.log.verify() == []
    ours = losses.generator_loss

    def theirs(scores):
        return ours(scores)

    losses.generator_loss = theirs
    assert is_gated(losses.generator_loss)
    assert seam.log.verify() == ["toygan.losses.generator_loss"]
    with pytest.warns(UserWarning, match=r"toygan\.losses\.generator_loss: replaced by somebody"):
        seam.undo()
    assert losses.generator_loss is theirs
    assert not is_gated(theirs)
    assert not is_gated(losses.inner_loss)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seam.undo()


# --- gated losses -------------------------------------------------------------------------------


def test_losses_that_call_each_other_gate_once(toy):
    losses, _ = load()
    seam = make_seam(toy)
    seam.apply()
    scores = torch.tensor([3.0, 1.0, 2.0, 4.0], requires_grad=True)
    losses.outer_loss(scores).backward()
    assert seam.called == 1
    assert scores.grad.tolist() == [-1.0, 0.0, 0.0, -1.0]  # two means over the 2 kept rows
    seam.undo()


def test_threads_do_not_see_each_others_losses(toy):
    losses, _ = load()
    seam = make_seam(toy)
    inside, done = threading.Event(), threading.Event()

    def loss(scores):
        inside.set()
        assert done.wait(10)
        return -scores.mean()

    first = threading.Thread(
        target=seam.gated_loss, args=(loss, torch.zeros(4, requires_grad=True))
    )
    first.start()
    assert inside.wait(10)
    seam.apply()
    assert is_gated(losses.inner_loss)
    done.set()
    first.join()
    assert seam.called == 2
    seam.undo()


def test_a_wrong_call_fails_as_it_would_without_top_k(toy):
    losses, _ = load()
    seam = make_seam(toy)
    seam.apply()
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'scores'"):
        losses.generator_loss()
    assert seam.called == 0
    seam.undo()


def test_every_override_is_wrapped_once(toy):
    losses, _ = load()

    class Own(losses.Losses):
        def own(self, logits):
            return 3 * super().own(logits)

    seam = make_seam(toy)
    seam.apply()
    for _ in range(2):
        seam.wrap_overrides(Own, "own", GATE)
    own = vars(Own)["own"]
    assert not is_ours(own.__wrapped__)
    assert is_gated(Own().own)
    assert seam.called == 1
    seam.undo()
    assert inspect.isfunction(vars(Own)["own"])
    assert not is_gated(Own().own)


def test_the_shielded_gate_is_refused(toy):
    seam = make_seam(toy, topk=TopK(gate="shielded"))
    with pytest.raises(ConfigError, match="'shielded' with the adapter toy.*--critic"):
        seam.apply()


def test_undo_stops_the_records(toy):
    critic = torch.nn.Linear(2, 1)
    seam = make_seam(toy)
    seam.apply()
    seam.keep_record(critic)
    assert "topk_plugin" in critic.state_dict()._metadata[""]
    seam.undo()
    assert "topk_plugin" not in critic.state_dict()._metadata[""]


# --- topk run --adapter, with a plugin that is really installed ---------------------------------

PLUGIN = """
from topk_plugin import Adapter, Wrap, hookimpl, scores_argument

@hookimpl
def topk_adapters():
    gate = scores_argument("scores")
    wrap = Wrap("toygan.losses", "generator_loss", "(scores, weight=1.0)", gate)
    return [Adapter(name="toy", upstream="someone/toygan", versions=("1.0",), seam="call",
                    wraps=(wrap,), epoch="a pass", counter="none", tested="here")]
"""
SCRIPT = """
import torch
from torch import nn
from torch.utils.data import DataLoader
from toygan import losses

critic, generator = nn.Linear(2, 1), nn.Linear(3, 2)
of_critic = torch.optim.SGD(critic.parameters(), 0.1)
of_generator = torch.optim.SGD(generator.parameters(), 0.1)
for _ in range(3):
    for real in DataLoader(torch.ones(8, 2), batch_size=4):
        of_critic.zero_grad()
        (critic(generator(torch.randn(4, 3)).detach()) - critic(real)).mean().backward()
        of_critic.step()
        of_generator.zero_grad()
        losses.generator_loss(critic(generator(torch.randn(4, 3)))).backward()
        of_generator.step()
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """A folder with an installed distribution that offers the adapter "toy"."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "toy_plugin.py").write_text(PLUGIN)
    info = folder / "toy_plugin-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-plugin\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text("[topk_plugin]\ntoy = toy_plugin\n")
    return folder


def topk(plugin, folder, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "topk_plugin", *arguments],
        cwd=folder,
        env=launched.ENVIRONMENT | {"PYTHONPATH": str(plugin)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return launched.Done(done.returncode, done.stdout, done.stderr)


RUN = ("run", "--adapter", "toy", "--gamma", "0.5")


def test_an_adapter_of_an_installed_plugin(toy, plugin):
    (toy / "train.py").write_text(SCRIPT)
    done = topk(plugin, toy, *RUN, "train.py")
    assert done.status == 0, done.err
    assert done.err == (
        "top-k ACTIVE: toy (someone/toygan 1.0), direction high, k 4 of 4, "
        "decays x0.5 each epoch to 2\n"
        "top-k verdict: 6 generator steps gated, 8 of 24 rows dropped, 3 epochs ended, "
        "last k 2 of 4, 0 non-finite scores; epochs counted "
        f"by passes of a DataLoader over 8 samples; direction high, by 6 of 6 votes{UNREAD}\n"
    )


@pytest.mark.slow
def test_a_renamed_loss_ends_in_exit_status_3(toy, plugin):
    (toy / "train.py").write_text(SCRIPT)
    write(toy, LOSSES.replace("generator_loss", "loss_of_generator"))
    (toy / "toygan/trainer.py").unlink()
    done = topk(plugin, toy, *RUN, "train.py")
    assert done.status == 3
    assert done.err.startswith("topk: UnsupportedUpstream: adapter toy: someone/toygan 1.0 ")
    assert "there is no generator_loss(scores, weight=1.0)" in done.err


@pytest.mark.slow
def test_an_unknown_adapter_ends_in_exit_status_2(toy, plugin):
    (toy / "train.py").write_text(SCRIPT)
    done = topk(plugin, toy, "run", "--adapter", "tooy", "train.py")
    assert done.status == 2
    assert "did you mean 'toy'? Known: " in done.err


# --- a user's own overrides and copies ------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "call"),
    [
        (lambda logits, weight=1.0: -logits.mean() * weight, lambda f, s: f(weight=2.0, logits=s)),
        (lambda images, scores: -scores.mean(), lambda f, s: f(torch.ones(len(s), 3), s)),
        (lambda *, scores: -scores.mean(), lambda f, s: f(scores=s)),
    ],
    ids=["another name, by keyword", "not the first", "keyword only"],
)
def test_the_scores_are_found_wherever_an_override_has_them(toy, function, call):
    seam = make_seam(toy)
    wrapped = wrapt.FunctionWrapper(
        function, lambda wrapped, instance, args, kwargs: GATE(seam, wrapped, None, args, kwargs)
    )
    scores = torch.tensor([0.3, -1.2, 2.0, 0.1], requires_grad=True)
    call(wrapped, scores).backward()
    assert scores.grad.ne(0).tolist() == [True, False, True, False]


def test_a_function_without_a_place_for_scores_is_said(toy):
    with pytest.raises(UnsupportedUpstream, match="expected an argument 'scores'"):
        GATE(make_seam(toy), lambda: None, None, (), {})


def test_copies_and_pickles_are_those_of_the_original(toy):
    seam = make_seam(toy)
    seam.apply()
    losses = importlib.import_module("toygan.losses")
    holder = losses.Losses()
    holder.criterion = holder.own
    twin = copy.deepcopy(holder)
    assert twin.criterion.__self__ is twin
    assert copy.deepcopy(losses.generator_loss) is losses.generator_loss
    assert pickle.loads(pickle.dumps(losses.generator_loss)) is losses.generator_loss
    assert isinstance(pickle.loads(pickle.dumps(holder.own)).__self__, losses.Losses)
    seam.undo()


def test_what_is_pushed_out_in_mid_run_is_said_and_what_is_wrapped_is_not(toy):
    seam = make_seam(toy)
    seam.apply()
    losses = importlib.import_module("toygan.losses")
    assert seam.broken() is None
    ours = losses.generator_loss

    @functools.wraps(ours)  # calls what it wraps, and says so
    def around(*args):
        return ours(*args)

    losses.generator_loss = around
    assert seam.broken() is None
    losses.generator_loss = lambda scores: scores.mean()
    assert "toygan.losses.generator_loss was replaced" in str(seam.broken())
    with pytest.warns(UserWarning, match="replaced by somebody else"):
        seam.undo()
