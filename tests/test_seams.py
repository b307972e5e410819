"""The call seam and its patch log on toy packages: every order, every refusal, nothing left."""

import copy
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import itertools
import json
import pickle
import subprocess
import sys
import textwrap
import threading
import warnings
from dataclasses import replace

import launched
import pytest
import torch
import wrapt
from contract import OFFERED, UPSTREAMS, TestContract, TestDeclaration, TestPatch  # noqa: F401
from losses import make_topk

from topk_plugin import Adapter, TopK, Wrap, scores_argument
from topk_plugin.core.optimizers import unlisten
from topk_plugin.errors import ConfigError, NoEffectError, SeamNotFound, UnsupportedUpstream
from topk_plugin.loop.resume import ResumeRecord
from topk_plugin.monkeypatch import PatchLog
from topk_plugin.seams.call import CallSeam
from topk_plugin.upstream.stubs import Stubs

LOSSES = '''
"""A toy upstream: each way a loss can be reached."""

def generator_loss(scores, weight=1.0):
    return -(weight * scores).mean()

def outer_loss(scores):
    return generator_loss(scores) + inner_loss(scores=scores)

def inner_loss(scores):
    if len(scores) == 3:
        raise RuntimeError("not 3")
    return -scores.mean()

class Base:
    def method(self, scores):
        return -scores.mean()

class Losses(Base):
    @staticmethod
    def static(scores):
        return -scores.mean()

    @classmethod
    def of_class(cls, scores):
        return -scores.mean()

    def own(self, scores):
        return -scores.mean()
'''
TRAINER = '''
"""Looks the loss up under an alias of its own."""
from toygan.losses import generator_loss as alias

def loss_by_alias(scores):
    return alias(scores)
'''
NAMES = {
    "generator_loss": "(scores, weight=1.0)",
    "outer_loss": "(scores)",
    "inner_loss": "(scores)",
    "Losses.method": "(self, scores)",  # inherited
    "Losses.static": "(scores)",
    "Losses.of_class": "(scores)",
    "Losses.own": "(self, scores)",
}
GATE = scores_argument("scores")
ADAPTER = Adapter(
    name="toy",
    upstream="someone/toygan",
    versions=("1.0",),
    seam="call",
    wraps=(
        *(Wrap("toygan.losses", name, signature, GATE) for name, signature in NAMES.items()),
        Wrap("toygan.trainer", "alias", "(scores, weight=1.0)", GATE),
    ),
    epoch="a pass",
    counter="none",
    tested="here",
)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The checkout's folder, on sys.path."""
    write(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    finders = list(sys.meta_path)
    yield tmp_path
    left = [finder for finder in sys.meta_path if isinstance(finder, Stubs)]
    sys.meta_path[:] = [f for f in sys.meta_path if f in finders or "wrapt" in type(f).__module__]
    forget()
    assert left == []


def write(folder, losses=LOSSES):
    (folder / "toygan").mkdir(parents=True, exist_ok=True)
    (folder / "toygan/__init__.py").write_text("__version__ = '1.0'\n")
    (folder / "toygan/losses.py").write_text(losses)
    (folder / "toygan/trainer.py").write_text(TRAINER)


TOY = ("toygan", "outsider", "present", "lost")


def forget():
    """As if nothing of the toy had been imported."""
    for name in [n for n in sys.modules if n.partition(".")[0] in TOY]:
        del sys.modules[name]


def load():
    return importlib.import_module("toygan.losses"), importlib.import_module("toygan.trainer")


def make_seam(root, adapter=ADAPTER, topk=None, **arguments):
    return CallSeam(adapter, topk or make_topk(2, batch=4), [root], **arguments)


def functions(losses, trainer):
    """What the toy's modules and classes themselves define, by name."""
    return {
        (owner.__name__, name): value
        for owner in (losses, trainer, losses.Base, losses.Losses)
        for name, value in vars(owner).items()
        if not name.startswith("__")
    }


def is_ours(function):
    return isinstance(function, wrapt.FunctionWrapper)


def is_gated(loss):
    """Whether a loss of 4 scores sends 2 of them a gradient."""
    scores = torch.tensor([3.0, 1.0, 2.0, 4.0], requires_grad=True)
    loss(scores).backward()
    kept = scores.grad.nonzero().flatten().tolist()
    assert kept in ([0, 3], [0, 1, 2, 3])
    return kept == [0, 3]


def every_loss(losses, trainer):
    thing = losses.Losses()
    return [
        *(losses.generator_loss, losses.outer_loss, losses.inner_loss),
        *(thing.method, thing.static, thing.of_class, thing.own),
        *(losses.Losses.static, losses.Losses.of_class),
        *(trainer.loss_by_alias, lambda scores: losses.generator_loss(weight=2, scores=scores)),
    ]


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


def test_the_log_undoes_what_was_replaced_twice():
    class Owner:
        value = 1

    log = PatchLog()
    log.replace(Owner, "value", 2)
    log.replace(Owner, "value", 3)
    log.replace(Owner, "new", 4)
    assert log.verify() == []
    assert log.holds(Owner, "value")
    assert log.undo() == []
    assert Owner.value == 1
    assert not hasattr(Owner, "new")
    assert not log.holds(Owner, "value")
    log.replace(Owner, "value", 2)
    log.replace(Owner, "value", 3)
    Owner.value = 5
    assert log.undo() == ["Owner.value"]
    assert Owner.value == 5


def test_what_cannot_be_replaced_is_not_in_the_log():
    log = PatchLog()
    with pytest.raises(TypeError):
        log.replace(int, "bit_length", None)
    assert log.undo() == []


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


# --- upstream's own counter -----------------------------------------------------------------------


def test_a_counter_tells_where_a_run_goes_on(toy):
    topk = TopK(gamma=0.5, nu=0.1)
    seam = make_seam(toy, topk=topk)
    seam.begin_at(0, 0)
    seam.reach_epoch(1)
    seam.reach_epoch(1, complete=True)
    assert (topk.epoch, topk.progress.pass_complete) == (1, True)
    seam.begin_at(3, 40)
    assert (topk.epoch, topk.steps, topk.progress.pass_complete) == (3, 40, False)
    assert topk.epoch - topk.progress.first_epoch == 2, "two epochs ended in this process"
    seam.reach_epoch(5)
    assert topk.epoch == 5


def test_a_counter_and_start_epoch(toy):
    topk = TopK(start_epoch=4)
    seam = make_seam(toy, topk=topk)
    seam.begin_at(0, 0)
    assert topk.epoch == 4
    seam.reach_epoch(2)
    assert topk.epoch == 6
    seam.begin_at(4, 9)
    assert topk.epoch == 4, "start_epoch repeats what the counter says"
    with pytest.raises(ConfigError, match="found 4, but someone/toygan goes on .* after 5 epochs"):
        seam.begin_at(5, 11)


def test_a_record_knows_of_epochs_before_the_counter(toy):
    critic, first = torch.nn.Linear(2, 1), TopK(start_epoch=4)
    record = ResumeRecord(critic, first)
    first.begin_at(6, 9)
    saved = critic.state_dict()
    record.remove()

    topk = TopK()
    seam = make_seam(toy, topk=topk)
    seam.keep_record(critic)
    critic.load_state_dict(saved)
    seam.begin_at(2, 9)
    assert topk.epoch == 6
    seam.reach_epoch(3)
    assert topk.epoch == 7
    seam.undo()


def test_steps_instead_of_epochs(toy):
    topk = TopK(every=5)
    seam = make_seam(toy, topk=topk)
    seam.begin_at(1, 13)
    assert topk.epoch == 2
    seam.reach_epoch(7, complete=True)
    assert (topk.epoch, topk.progress.pass_complete) == (2, False)


# --- what belongs to the upstream, and which version it is ----------------------------------------


def install(folder, version="1.0", editable=None, record=True):
    """A dist-info folder, as installers write it."""
    info = folder / f"toy_gan-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: toy-gan\nVersion: {version}\n")
    files = ["toygan/__init__.py", "toygan/losses.py", "toygan/trainer.py"]
    if record:
        (info / "RECORD").write_text("".join(f"{f},,\n" for f in files if editable is None))
    if editable is not None:
        url = {"url": editable.as_uri(), "dir_info": {"editable": True}}
        (info / "direct_url.json").write_text(json.dumps(url))


INSTALLED = replace(ADAPTER, distribution="toy-gan", install="pip install toy-gan==1.0")


def test_an_installed_distribution_belongs(toy, tmp_path):
    install(toy)
    seam = make_seam(tmp_path / "elsewhere", INSTALLED)
    seam.apply()
    assert is_gated(load()[0].generator_loss)
    assert str(seam) == "toy (toy-gan 1.0)"
    assert seam.notes == []
    seam.undo()


def test_an_editable_distribution_belongs(toy, tmp_path, monkeypatch):
    site = tmp_path / "site"
    install(site, editable=toy)
    monkeypatch.syspath_prepend(str(site))
    seam = make_seam(tmp_path / "elsewhere", INSTALLED)
    seam.apply()
    assert is_gated(load()[0].generator_loss)
    assert str(seam) == "toy (toy-gan 1.0)"
    seam.undo()


def test_another_version_with_the_same_signatures_is_named(toy, tmp_path):
    install(toy, version="1.7")
    seam = make_seam(tmp_path / "elsewhere", INSTALLED)
    seam.apply()
    load()
    assert seam.notes == [
        "note: toy-gan 1.7 is not what the adapter toy was tested with (1.0); what it relies "
        "on matches"
    ]
    seam.undo()


def test_a_checkout_goes_before_the_installed_one(toy, tmp_path, monkeypatch):
    site = tmp_path / "site"
    write(site)
    install(site, version="0.5")
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
    seam = make_seam(toy, INSTALLED)
    seam.apply()
    assert is_gated(load()[0].generator_loss)
    assert str(seam) == "toy (someone/toygan 1.0)"
    assert seam.notes == []
    seam.undo()


def test_what_is_not_installed_says_how_to_install_it(toy, tmp_path):
    seam = make_seam(tmp_path / "elsewhere", INSTALLED)
    with pytest.raises(SeamNotFound, match=r"toy-gan is not installed here.*toy-gan==1\.0"):
        seam.apply()
    make_seam(toy, INSTALLED).apply()  # a checkout needs no distribution


def test_a_module_of_the_same_name_from_elsewhere_is_not_touched(toy, tmp_path):
    (tmp_path / "checkout").mkdir()
    seam = make_seam(tmp_path / "checkout")
    seam.apply()
    losses, trainer = load()
    assert not any(map(is_ours, functions(losses, trainer).values()))
    seam.topk.ledger.optimizer_steps = 7
    error = seam.no_effect()
    assert isinstance(error, SeamNotFound)
    assert f"toygan.losses came from {losses.__file__}, which is not of the launched" in str(error)
    assert "7 optimizer steps ran" in str(error)
    seam.undo()


def test_a_virtual_environment_in_the_checkout_is_not_the_checkout(tmp_path, monkeypatch):
    site = tmp_path / ".venv/lib/python3/site-packages"
    write(site)
    monkeypatch.syspath_prepend(str(site))
    seam = make_seam(tmp_path)
    seam.apply()
    losses, _ = load()
    assert not is_ours(losses.generator_loss)
    seam.undo()
    forget()


def test_a_checkout_that_lies_in_site_packages_is_a_checkout(tmp_path, monkeypatch):
    """Only folders below the checkout are somebody else's."""
    checkout = tmp_path / "site-packages/checkout"
    write(checkout)
    monkeypatch.syspath_prepend(str(checkout))
    seam = make_seam(checkout)
    seam.apply()
    assert is_gated(load()[0].generator_loss)
    seam.undo()
    forget()


# --- fingerprints -------------------------------------------------------------------------------

OTHER = {
    "renamed": (
        ("def inner_loss", "def inner"),
        r"there is no inner_loss\(scores\)",
    ),
    "another argument": (
        ("weight", "scale"),
        r"found generator_loss\(scores, scale=1.0\), expected generator_loss\(scores, weight=1.0\)",
    ),
    "another default": (("weight=1.0", "weight=2.0"), r"found generator_loss\(scores, weight=2.0"),
    "no class": (("class Losses(Base)", "class Lost(Base)"), r"there is no Losses\.method"),
    "no function": (
        ("    def own(self, scores):\n        return -scores.mean()", "    own = 3"),
        r"Losses\.own is a int, expected Losses\.own\(self, scores\)",
    ),
}


@pytest.mark.parametrize(("change", "match"), OTHER.values(), ids=OTHER)
def test_another_fingerprint_is_refused(toy, change, match):
    write(toy, LOSSES.replace(*change))
    seam = make_seam(toy)
    seam.apply()
    with pytest.raises(UnsupportedUpstream, match=match) as refusal:
        load()
    text = str(refusal.value)
    assert text.startswith("adapter toy: someone/toygan 1.0 is not what it was written for (1.0)")
    assert str(toy / "toygan/losses.py") in text
    assert "--critic module:Class" in text
    assert "--force" in text
    assert "toygan.losses" not in sys.modules


@pytest.mark.parametrize("change", [change for change, _ in OTHER.values()][:4], ids=[*OTHER][:4])
def test_force_wraps_what_there_is(toy, change):
    write(toy, LOSSES.replace(*change))
    seam = make_seam(toy, force=True)
    seam.apply()
    losses, _ = load()
    assert is_gated(losses.generator_loss)
    assert "ignored (--force): " in seam.notes[0]
    seam.undo()
    assert inspect.isfunction(losses.generator_loss)


def test_annotations_and_decorators_do_not_matter(toy):
    text = LOSSES.replace("(scores, weight=1.0):", "(scores: 'T', weight: float = 1.0) -> 'T':")
    write(toy, text.replace("def inner_loss", "import torch\n@torch.enable_grad()\ndef inner_loss"))
    seam = make_seam(toy)
    seam.apply()
    assert is_gated(load()[0].inner_loss)
    seam.undo()


def test_never_imported_and_never_called(toy):
    seam = make_seam(toy)
    seam.apply()
    seam.topk.ledger.optimizer_steps = 3
    error = seam.no_effect()
    assert isinstance(error, SeamNotFound)
    assert "found no import of toygan.losses, toygan.trainer, while 3 optimizer steps" in str(error)
    importlib.import_module("toygan.losses")  # not every module has to be
    error = seam.no_effect()
    assert isinstance(error, NoEffectError)
    assert "its loss was never called" in str(error)
    sys.modules["toygan.losses"].generator_loss(torch.zeros(4))
    assert "no gradient of its scores came back" in str(seam.no_effect())
    sys.modules["toygan.losses"].generator_loss = None
    assert "toygan.losses.generator_loss was replaced after" in str(seam.no_effect())
    with pytest.warns(UserWarning, match="replaced by somebody"):
        seam.undo()


# --- stubs --------------------------------------------------------------------------------------


def stubbed(toy, imports):
    (toy / "toygan/__init__.py").write_text(textwrap.dedent(imports))
    stubs = {"lost": {"NAME": 1}, "torch._lost": {"NAME": 2}, "present": {"NAME": 3}}
    importlib.invalidate_caches()
    seam = make_seam(toy, replace(ADAPTER, stubs=stubs))
    seam.apply()
    return seam


def test_only_the_upstream_finds_a_stub(toy):
    (toy / "present.py").write_text("")
    (toy / "outsider.py").write_text(
        "try:\n    import lost\nexcept ImportError:\n    lost = None\n"
    )
    seam = stubbed(
        toy,
        """
        import lost
        import outsider
        import lost as again
        from torch._lost import NAME
        import torch._lost as other
        import present
        """,
    )
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("lost")
    toygan = importlib.import_module("toygan")
    assert toygan.lost.NAME == toygan.again.NAME == 1
    assert toygan.NAME == toygan.other.NAME == 2
    assert toygan.outsider.lost is None, "imported while the upstream's stub was in use"
    assert not hasattr(toygan.present, "NAME"), "the real module wins"
    assert toygan.lost.__spec__.name == "lost"
    for name in ("lost", "torch._lost"):
        assert name not in sys.modules
        assert importlib.util.find_spec(name) is None
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(name)
    seam.undo()
    assert not hasattr(torch, "_lost")
    assert toygan.lost.NAME == 1, "the upstream keeps its names"


def test_a_stub_is_gone_after_an_import_that_failed(toy):
    seam = stubbed(toy, "import torch._lost\nimport lost\nraise KeyError('broken')\n")
    with pytest.raises(KeyError):
        importlib.import_module("toygan")
    seam.undo()
    assert not {"lost", "torch._lost"} & sys.modules.keys()
    assert not hasattr(torch, "_lost")


def test_after_undo_the_upstream_finds_no_stub(toy):
    stubbed(toy, "import lost\n").undo()
    with pytest.raises(ModuleNotFoundError, match="lost"):
        importlib.import_module("toygan")


def test_a_stub_may_lie_in_a_package_that_is_absent(toy):
    (toy / "toygan/__init__.py").write_text("from gone.parts.deep import NAME\nimport gone.parts\n")
    importlib.invalidate_caches()
    seam = make_seam(toy, replace(ADAPTER, stubs={"gone.parts.deep": {"NAME": 4}}))
    seam.apply()
    toygan = importlib.import_module("toygan")
    assert toygan.NAME == 4
    assert toygan.gone.parts.__path__ == []
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("gone.parts")
    seam.undo()
    assert not [name for name in sys.modules if name.startswith("gone")]


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
        "last k 2 of 4, 0 non-finite scores\n"
    )


def test_a_renamed_loss_ends_in_exit_status_3(toy, plugin):
    (toy / "train.py").write_text(SCRIPT)
    write(toy, LOSSES.replace("generator_loss", "loss_of_generator"))
    (toy / "toygan/trainer.py").unlink()
    done = topk(plugin, toy, *RUN, "train.py")
    assert done.status == 3
    assert done.err.startswith("topk: UnsupportedUpstream: adapter toy: someone/toygan 1.0 ")
    assert "there is no generator_loss(scores, weight=1.0)" in done.err


def test_an_unknown_adapter_ends_in_exit_status_2(toy, plugin):
    (toy / "train.py").write_text(SCRIPT)
    done = topk(plugin, toy, "run", "--adapter", "tooy", "train.py")
    assert done.status == 2
    assert "did you mean 'toy'? Known: " in done.err


# --- every adapter there is -----------------------------------------------------------------------


def test_every_adapter_has_a_script_for_the_contract():
    assert {path.stem for path in UPSTREAMS.glob("*.py")} == set(OFFERED)


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


def test_a_record_knows_of_steps_that_were_skipped(toy):
    critic, first = torch.nn.Linear(2, 1), TopK(every=4)
    record = ResumeRecord(critic, first)
    first.begin_at(1, 7)  # two steps of the generator for each one that upstream counts
    saved = critic.state_dict()
    record.remove()

    topk = TopK(every=4)
    seam = make_seam(toy, topk=topk)
    seam.keep_record(critic)
    critic.load_state_dict(saved)
    seam.begin_at(0, 4)
    assert (topk.epoch, topk.steps) == (1, 7)
    seam.undo()


def test_a_second_training_goes_by_its_own_checkpoint(toy):
    topk = TopK()
    seam = make_seam(toy, topk=topk)
    seam.keep_record(torch.nn.Linear(2, 1))
    seam.begin_at(2, 9)  # resumed from a plain checkpoint, with nothing left to do
    seam.begin_at(5, 21)  # and so is the next one
    assert (topk.epoch, topk.steps) == (5, 21)
    seam.undo()
