"""Plugins: installed ones work, each hook does what it says, and whoever errs is named."""

import dataclasses
import importlib.metadata
import json
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import launched
import pytest
import torch
from launched import topk_run
from losses import (
    BATCH,
    LATENT,
    LOSSES,
    Critic,
    assert_same,
    best_rows,
    clear,
    error,
    gradients,
    make_generator,
    make_topk,
)
from torch import nn
from torch.utils import _pytree as pytree

from topk_plugin import Adapter, TopK, attach, cli, hooks
from topk_plugin.config import TopKConfig
from topk_plugin.core.choice import KEPT, ROWS
from topk_plugin.core.ranking import kept_rows
from topk_plugin.errors import ConfigError, HookError, ResumeMismatch, ScoreShapeError
from topk_plugin.hooks import Hooks, Progress, hookimpl
from topk_plugin.plugins import bundled, calls, manager
from topk_plugin.plugins.manager import plugin_manager
from topk_plugin.upstream import known

README = Path(__file__).parents[1] / "README.md"
HOOKS = sorted(name for name in vars(Hooks) if name.startswith("topk_"))
LOSS = LOSSES["non-saturating"]


def plugin(hook, body):
    """A plugin of one hook: ``body`` of the hook's arguments, in order."""
    function = {
        "topk_adapters": lambda self: body(),
        "topk_scores": lambda self, output: body(output),
        "topk_fraction": lambda self, progress, config: body(progress, config),
        "topk_select": lambda self, scores, k: body(scores, k),
        "topk_selected": lambda self, selection: body(selection),
        "topk_epoch_ended": lambda self, progress: body(progress),
    }[hook]
    return type("Plugin", (), {hook: hookimpl(function)})()


def noise(batch=BATCH):
    torch.manual_seed(1)
    return torch.randn(batch, LATENT, dtype=torch.float64)


def networks():
    torch.manual_seed(0)
    return make_generator(), Critic("batch")


def test_every_hook_has_a_test_and_is_documented():
    assert len(HOOKS) == 6
    section = README.read_text().split("\n## Plugins\n")[1].split("\n## ")[0]
    for hook in HOOKS:
        assert any(name.startswith(f"test_{hook}_") for name in globals()), hook
        assert f"\n| `{hook}(" in section, hook
        assert (getattr(Hooks, hook).__doc__ or "").strip(), hook
    for name in bundled.BY_NAME:
        assert f"`{name}`" in section, name


# A distribution that somebody else wrote and pip installed

ACME = {
    "acme_topk/__init__.py": "",
    "acme_topk/select.py": """
        import torch
        from topk_plugin import hookimpl

        class EvenRows:
            @hookimpl
            def topk_select(self, scores):
                return torch.arange(len(scores)) % 2 == 0
    """,
    "acme_topk/watch.py": """
        import json
        from topk_plugin import hookimpl

        @hookimpl
        def topk_selected(selection):
            kept = [call.kept.nonzero().flatten().tolist() for call in selection.calls]
            print("kept", json.dumps([selection.epoch, kept]))
    """,
    "acme_topk-2.1.dist-info/METADATA": "Metadata-Version: 2.1\nName: acme-topk\nVersion: 2.1\n",
    "acme_topk-2.1.dist-info/WHEEL": """\
        Wheel-Version: 1.0
        Generator: test
        Root-Is-Purelib: true
        Tag: py3-none-any
    """,
    "acme_topk-2.1.dist-info/entry_points.txt": """\
        [topk_plugin]
        even-rows = acme_topk.select:EvenRows
        watch = acme_topk.watch
    """,
}

OWN_LOOP = """
    import torch
    from topk_plugin import TopK
    topk = TopK(gamma=0.5, nu=0.5)
    for _ in range(2):
        scores = torch.tensor([-1.2, 0.3, 2.0, 0.1], requires_grad=True)
        (-topk(scores)).mean().backward()
        print("gradient", scores.grad.tolist())
        topk.step()
        topk.end_epoch()
"""

GAN = """
    import sys
    import torch
    from torch import nn

    class Critic(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))

        def forward(self, x):
            return self.net(x)

    if __name__ == "__main__":
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float64)
        by_hand = sys.argv[1:] == ["by hand"]
        D = Critic()
        G = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
        optD, optG = (torch.optim.Adam(net.parameters(), 1e-2) for net in (D, G))
        loader = torch.utils.data.DataLoader(torch.randn(16, 2) + 1, batch_size=8)
        for epoch in range(2):
            for x in loader:
                optD.zero_grad()
                (D(G(torch.randn(8, 3)).detach()).mean() - D(x).mean()).backward()
                optD.step()
                optG.zero_grad()
                scores = D(G(torch.randn(8, 3)))
                (-(scores[::2] if by_hand and epoch else scores).mean()).backward()
                optG.step()
        torch.save([D.state_dict(), G.state_dict()], "weights.pt")
"""
RUN = ("-m", "topk_plugin", "run", "--critic", "__main__:Critic", "--gamma", "0.5", "--nu", "0.5")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder into which pip installed a wheel with two plugins."""
    folder = tmp_path_factory.mktemp("acme")
    wheel = folder / "acme_topk-2.1-py3-none-any.whl"
    record = "acme_topk-2.1.dist-info/RECORD"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in ACME.items():
            archive.writestr(name, textwrap.dedent(text))
        archive.writestr(record, "".join(f"{name},,\n" for name in (*ACME, record)))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--target", folder / "site", wheel], check=True, timeout=120)
    return folder / "site"


def python(folder, *arguments, **env):
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env=launched.ENVIRONMENT | {name: str(value) for name, value in env.items()},
    )
    assert done.returncode == 0, done.stderr
    return done


def said(done, word):
    """What followed ``word`` at the beginning of the lines of standard output."""
    lines = [line.split(" ", 1) for line in done.stdout.splitlines()]
    return [json.loads(line[1]) for line in lines if line[0] == word]


def write(folder, name, text):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(textwrap.dedent(text))


@pytest.mark.parametrize(
    ("disabled", "gradient", "kept"),
    [
        ("", [-0.5, 0.0, -0.5, 0.0], [0, 2]),
        ("even-rows", [0.0, -0.5, -0.5, 0.0], [1, 2]),
        ("even-rows,watch", [0.0, -0.5, -0.5, 0.0], None),
    ],
    ids=["both", "observer", "none"],
)
def test_installed_plugins_in_a_loop_of_ones_own(installed, tmp_path, disabled, gradient, kept):
    write(tmp_path, "loop.py", OWN_LOOP)
    done = python(tmp_path, "loop.py", PYTHONPATH=installed, TOPK_DISABLE_PLUGINS=disabled)
    assert said(done, "gradient") == [[-0.25] * 4, gradient]
    expected = [[0, [[0, 1, 2, 3]]], [1, [kept]]]
    assert said(done, "kept") == (expected if kept is not None else [])


def test_installed_plugins_in_a_script_that_is_not_edited(installed, tmp_path):
    write(tmp_path, "train.py", GAN)
    weights = {}
    for name, command in {
        "top-k": (*RUN, "--", "train.py"),
        "even rows": (*RUN, "--", "train.py"),
        "by hand": ("train.py", "by hand"),
    }.items():
        path = "" if name == "top-k" else installed
        done = python(tmp_path, *command, PYTHONPATH=path)
        saved = torch.load(tmp_path / "weights.pt", weights_only=True)
        weights[name] = [value for state in saved for value in state.values()]
        if name == "even rows":
            rows, even = [list(range(8))], [[0, 2, 4, 6]]
            assert said(done, "kept") == [[0, rows], [0, rows], [1, even], [1, even]]
            assert "8 of 32 rows dropped" in done.stderr
        else:
            assert said(done, "kept") == []
    assert error(weights["even rows"], weights["by hand"]) < 1e-12
    assert error(weights["top-k"], weights["by hand"]) > 1e-6


# Who erred is named


def boom(*arguments):
    raise ZeroDivisionError("boom")


def provoke(hook):
    """Lets the hook of a plugin that raises be called."""
    topk = TopK(gamma=0.5, nu=0.5, hooks=[plugin(hook, boom)])
    G, D = networks()
    LOSS.of(topk(D(G(noise())))).backward()
    torch.optim.SGD(G.parameters(), 0.1).step()
    topk.end_epoch()
    known.adapters(plugin_manager(plugins=[plugin(hook, boom)]))


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_raises_names_itself(hook):
    expected = rf"plugin 'hooks\[0\] Plugin': its hook {hook} raised ZeroDivisionError: boom"
    with pytest.raises(HookError, match=expected) as caught:
        provoke(hook)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("gate", ["score", "shielded"])
def test_a_hook_that_raises_in_the_backward_of_an_attached_critic(gate):
    G, D = networks()
    topk = make_topk(4, gate=gate, hooks=[plugin("topk_select", boom)])
    with pytest.raises(HookError, match="topk_select raised ZeroDivisionError"), attach(D, topk):
        LOSS.of(D(G(noise()))).backward()


BROKEN = """
    from topk_plugin import hookimpl

    @hookimpl
    def {}():
        raise ZeroDivisionError("boom")
"""


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_raises_in_a_launched_run(tmp_path, hook):
    """The working folder is on the path, and with it a distribution."""
    write(tmp_path, "train.py", GAN)
    write(tmp_path, "broken.py", BROKEN.format(hook))
    write(tmp_path, "b-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: b\nVersion: 1\n")
    write(tmp_path, "b-1.dist-info/entry_points.txt", "[topk_plugin]\nmine = broken\n")
    if hook == "topk_adapters":
        done = launched.run(tmp_path, ["run", "--adapter", "mimicry", "--", "train.py"])
    else:
        done = topk_run(tmp_path, "train.py", critic="__main__:Critic", flags=["--gamma", "0.5"])
    assert done.status == 3
    assert (
        f"topk: HookError: plugin 'mine': its hook {hook} raised ZeroDivisionError: boom; correct "
        "it, or leave it out with TOPK_DISABLE_PLUGINS=mine"
    ) in done.err
    assert f'broken.py", line 6, in {hook}' in done.err  # where to look

    env = {"TOPK_DISABLE_PLUGINS": "mine"}
    assert topk_run(tmp_path, "train.py", critic="__main__:Critic", env=env).status == 0


# What is no plugin


class Unmarked:
    def topk_select(self, scores, k):
        return scores > 0


class UnmarkedAndMisspelt:
    @hookimpl
    def topk_epoch_ended(self, progress):
        pass

    def topk_selekt(self, scores, k):
        return scores > 0


class Misspelt:
    @hookimpl
    def topk_selekt(self, scores, k):
        return scores > 0


class MisspeltArgument:
    @hookimpl
    def topk_select(self, score, k):
        return score > 0


class Wrapper:
    @hookimpl(wrapper=True)
    def topk_select(self, scores, k):
        return (yield)


class OldWrapper:
    @hookimpl(hookwrapper=True)
    def topk_epoch_ended(self, progress):
        yield


class Lambda:
    topk_select = hookimpl(type("Callable", (), {"__call__": lambda self, scores, k: None})())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Unmarked(), "Unmarked': found topk_select without a mark, expected .*hookimpl"),
        (UnmarkedAndMisspelt(), "UnmarkedAndMisspelt': found topk_selekt without a mark"),
        (Misspelt(), "Misspelt': topk_selekt: unknown hook; did you mean 'topk_select'"),
        (MisspeltArgument(), "MisspeltArgument': .*topk_select.*'score'.*; give the function only"),
        (Wrapper(), "Wrapper': its hook topk_select is a wrapper, expected a plain function"),
        (OldWrapper(), "OldWrapper': its hook topk_epoch_ended is a wrapper"),
        (Lambda(), "Lambda': found topk_select without a mark"),
        (object(), "object': found .*, which implements no hook; expected .*topk_selected"),
        ("bottom-k", "str': found 'bottom-k', which implements no hook"),
    ],
)
def test_what_is_no_plugin(wrong, message):
    with pytest.raises(HookError, match=r"plugin 'hooks\[0\] " + message):
        TopK(hooks=[wrong])


@pytest.mark.parametrize("wrong", ["bottom-k", Unmarked()])
def test_hooks_are_a_list(wrong):
    with pytest.raises(ConfigError, match="hooks: found .*, expected a list"):
        TopK(hooks=wrong)


def test_one_object_twice():
    mine = plugin("topk_select", lambda scores, k: None)
    with pytest.raises(HookError, match=r"'hooks\[1\] Plugin': found twice"):
        TopK(hooks=[mine, mine])


def test_two_objects_of_one_class():
    steps = []
    both = [plugin("topk_epoch_ended", steps.append) for _ in range(2)]
    TopK(hooks=both).end_epoch()
    assert steps == [Progress(1, 0)] * 2


def test_modules_classes_and_objects_are_plugins(tmp_path, monkeypatch):
    write(tmp_path, "a_module.py", BROKEN.format("topk_epoch_ended"))
    monkeypatch.syspath_prepend(tmp_path)
    module = __import__("a_module")
    with pytest.raises(HookError, match=r"hooks\[0\] a_module.*topk_epoch_ended raised"):
        TopK(hooks=[module]).end_epoch()
    with pytest.raises(HookError, match=r"hooks\[0\] KeepBest.*topk_select raised TypeError"):
        TopK(hooks=[KeepBest]).select(torch.zeros(4), torch.tensor(2.0))
    TopK(hooks=[KeepBest(2)]).select(torch.zeros(4), torch.tensor(2.0))


def test_an_argument_with_a_default_is_passed_too():
    class Mine:
        @hookimpl
        def topk_select(self, scores, k=None, margin=0.5):
            return kept_rows(scores, k + margin)

    assert TopK(hooks=[Mine]).select(torch.arange(4.0), torch.tensor(2.0)).sum() == 3


# Installed plugins that do not load


def entry_points(monkeypatch, **values):
    points = [
        importlib.metadata.EntryPoint(name.replace("_", "-"), value, hooks.GROUP)
        for name, value in values.items()
    ]
    monkeypatch.setattr(manager, "_entry_points", lambda: tuple(points))


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("no_such_package.plugin", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("json:NoSuchPlugin", "AttributeError: .*NoSuchPlugin"),
    ],
)
def test_a_plugin_that_cannot_be_imported(monkeypatch, value, why):
    entry_points(monkeypatch, mine=value)
    with pytest.raises(HookError, match=rf"plugin 'mine' \(entry point '{value}'\) .*{why}"):
        TopK()
    monkeypatch.setenv(manager.DISABLE, "mine")
    TopK()


def test_the_distribution_of_a_plugin_that_cannot_be_imported(tmp_path):
    write(tmp_path, "train.py", GAN)
    write(tmp_path, "b-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: b\nVersion: 1\n")
    write(tmp_path, "b-1.dist-info/entry_points.txt", "[topk_plugin]\nmine = no_such_package\n")
    done = topk_run(tmp_path, "train.py", critic="__main__:Critic")
    assert done.status == 3
    assert "plugin 'mine' (entry point 'no_such_package' of b 1) cannot be loaded" in done.err
    assert "TOPK_DISABLE_PLUGINS=mine" in done.err


def test_two_installed_plugins_of_one_name(monkeypatch):
    two = [
        importlib.metadata.EntryPoint("mine", "topk_plugin.plugins.bundled:BottomK", hooks.GROUP)
    ] * 2
    monkeypatch.setattr(manager, "_entry_points", lambda: tuple(two))
    with pytest.raises(HookError, match="two plugins are named 'mine'.*TOPK_DISABLE_PLUGINS=mine"):
        TopK()
    monkeypatch.setenv(manager.DISABLE, "mine")
    TopK()


def test_an_installed_plugin_with_the_name_of_a_bundled_one(monkeypatch):
    entry_points(monkeypatch, bottom_k="topk_plugin.plugins.bundled:RandomK")
    TopK()
    with pytest.raises(HookError, match="two plugins are named 'bottom-k'"):
        TopK(plugins=["bottom-k"])


# The switches


def test_disabling(monkeypatch):
    scores, k = torch.arange(4.0), torch.tensor(1.0)
    entry_points(monkeypatch, mine="topk_plugin.plugins.bundled:BottomK")
    assert TopK().select(scores, k).tolist() == [True, False, False, False]
    monkeypatch.setenv(manager.DISABLE, " mine ,")
    assert TopK().select(scores, k).tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        ("bottem-k", {}, "TOPK_DISABLE_PLUGINS=bottem-k: unknown plugin; did you mean 'bottom-k'"),
        ("top-k", {}, "TOPK_DISABLE_PLUGINS: no plugin is left that implements topk_select"),
        ("bottom-k", {"plugins": ["bottom-k"]}, "plugins: found 'bottom-k', which .* leaves out"),
        ("", {"plugins": ["botom-k"]}, "botom-k: unknown bundled plugin; did you mean 'bottom-k'"),
    ],
)
def test_contradictions(monkeypatch, names, settings, message):
    monkeypatch.setenv(manager.DISABLE, names)
    with pytest.raises(ConfigError, match=message):
        TopK(**settings)


def test_tracing(monkeypatch, capsys):
    monkeypatch.setenv(calls.TRACE, "1")
    topk = make_topk(2, hooks=[plugin("topk_select", lambda scores, k: None)])
    output = torch.zeros(BATCH, 1, requires_grad=True)
    topk(output).mean().backward()
    topk.step()
    assert int(output.grad.count_nonzero()) == 2
    lines = capsys.readouterr().err.splitlines()
    asked = "(scores=float32(8,), k=float64()) -> "
    assert lines[-2:] == [
        f"top-k hook topk_select of 'hooks[0] Plugin'{asked}None",
        f"top-k hook topk_select of 'top-k'{asked}bool(8,)",
    ]
    assert lines[0].startswith(
        "top-k hook topk_fraction of 'top-k'(progress=Progress(epoch=0, steps=0), config=TopKConfig"
    )
    monkeypatch.setenv(calls.TRACE, "0")
    TopK()
    assert not capsys.readouterr().err


def test_tracing_observers_and_adapters(monkeypatch, capsys):
    monkeypatch.setenv(calls.TRACE, "1")
    watch = plugin("topk_selected", lambda selection: None)
    topk = TopK(hooks=[watch])
    topk(torch.zeros(BATCH, 1, requires_grad=True)).mean().backward()
    topk.step()
    assert "topk_selected of 'hooks[0] Plugin'(selection=Selection(step=1, epoch=0, batch=0))" in (
        capsys.readouterr().err
    )
    known.adapters(plugin_manager(plugins=[plugin("topk_adapters", lambda: [adapter()])]))
    assert "top-k hook topk_adapters of 'hooks[0] Plugin'() -> [Adapter]" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["yes", "2"])
def test_tracing_is_one_or_nothing(monkeypatch, value):
    monkeypatch.setenv(calls.TRACE, value)
    with pytest.raises(ConfigError, match=f"TOPK_TRACE_PLUGINS: found '{value}', expected 1 or 0"):
        TopK()


# Order


def fraction(value, asked=None):
    def answer(progress, config):
        if asked is not None:
            asked.append(value)
        return value

    return plugin("topk_fraction", answer)


def test_the_last_registered_answers_first_and_none_passes_on():
    asked = []
    topk = TopK(hooks=[fraction(0.25, asked), fraction(0.5, asked), fraction(None, asked)])
    assert topk.fraction == 0.5
    assert asked == [None, 0.5]
    assert TopK(hooks=[fraction(None)]).fraction == 1.0  # the paper's


def test_plugins_by_name_precede_installed_ones_and_objects_precede_both(monkeypatch):
    entry_points(monkeypatch, mine="topk_plugin.plugins.bundled:RandomK")
    manager = plugin_manager(["bottom-k"], [KeepBest(1)])
    order = [i.plugin_name for i in manager.hook.topk_select.get_hookimpls()]
    assert order == ["top-k", "mine", "bottom-k", "hooks[0] KeepBest"]


def test_hooks_are_resolved_when_topk_is_built():
    manager = plugin_manager()
    ask = calls.first_result(manager, "topk_fraction")
    arguments = {"progress": Progress(0, 0), "config": TopKConfig()}
    manager.register(fraction(0.25), "later")
    assert ask(**arguments) == 1.0
    assert calls.first_result(manager, "topk_fraction")(**arguments) == 0.25


def test_no_step_calls_pluggy(monkeypatch):
    """Its calls cannot be compiled into a graph."""

    def refuse(*arguments, **keywords):
        raise AssertionError("pluggy was called")

    monkeypatch.setattr(manager.PluginManager, "_hookexec", refuse)
    with pytest.raises(AssertionError, match="pluggy was called"):
        plugin_manager(plugins=[plugin("topk_adapters", list)]).hook.topk_adapters()
    watch = Watch()
    topk = make_topk(3, hooks=[KeepBest(2), plugin("topk_scores", lambda output: None), watch])
    generator_step("shielded", topk)
    assert [step.step for step in watch.steps] == [1]
    assert watch.epochs == [Progress(1, 0)]
    assert topk.report().last_k == 2


# topk_select


class KeepBest:
    """The n highest, whatever k is."""

    def __init__(self, n=None):
        self.n = n

    @hookimpl
    def topk_select(self, scores):
        return kept_rows(scores, self.n)


class Rows:
    """Notes the rows that were kept in each generator step's first call."""

    def __init__(self):
        self.kept = []

    def topk_selected(self, selection):
        self.kept.append(selection.calls[0].kept.nonzero().flatten().tolist())


WAYS = ["line A", "score", "shielded", "gather"]


def generator_step(way, topk, loss=LOSS):
    """Gradients of generator and critic in one step, and the rows that were kept."""
    G, D = networks()
    rows = Rows()
    topk.observers.append(rows.topk_selected)
    optimizer = torch.optim.SGD(G.parameters(), 0.1)
    if way in ("score", "shielded"):
        with attach(D, topk):
            loss.of(D(G(noise()))).backward()
            found = gradients(G), gradients(D)
            optimizer.step()
    else:
        scores = D(G(noise()))
        if way == "gather":
            scores, index = topk.gather(scores, torch.arange(BATCH))
        loss.of(topk(scores) if way == "line A" else scores).backward()
        found = gradients(G), gradients(D)
        optimizer.step()
    kept = index.tolist() if way == "gather" else rows.kept[-1]
    return *found, kept


def by_hand(rows, loss=LOSS):
    """The same step of the literal form over ``rows``; and all scores."""
    G, D = networks()
    scores = D(G(noise()))
    loss.of(scores[rows]).backward()
    return gradients(G), gradients(D), scores.flatten().tolist()


def settings(way, direction="high"):
    return {"gate": way if way in ("score", "shielded") else "auto", "direction": direction}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["bottom-k", "random-k", "top-k"])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_topk_select_of_the_bundled_plugins(way, name, k):
    chosen = [] if name == "top-k" else [name]
    topk = make_topk(k, plugins=chosen, **settings(way))
    generator, critic, rows = generator_step(way, topk)
    expected, of_critic, scores = by_hand(rows)
    assert len(set(rows)) == k
    if name != "random-k":
        assert rows == best_rows(scores, k, largest=name == "top-k")
    assert error(generator, expected) < 1e-12
    if way == "shielded":
        of_critic = by_hand(list(range(BATCH)))[1]
        assert_same(critic, of_critic)
    else:
        assert error(critic, of_critic) < 1e-12
    assert topk.report().dropped == BATCH - k


@pytest.mark.parametrize("way", WAYS)
def test_topk_select_gets_scores_of_which_higher_is_more_realistic(way):
    loss = LOSSES["wasserstein-low"]
    topk = make_topk(3, plugins=["bottom-k"], **settings(way, "low"))
    _, _, rows = generator_step(way, topk, loss)
    assert rows == best_rows(by_hand(rows)[2], 3, largest=True)


@pytest.mark.parametrize("scores", ["ties", "nan", "different"])
@pytest.mark.parametrize("name", ["bottom-k", "random-k"])
def test_topk_select_keeps_exactly_k(name, scores):
    values = {
        "ties": [1.0] * BATCH,
        "nan": [3.0, float("nan"), 1.0, float("nan"), 2.0, float("inf"), -1.0, 0.0],
        "different": [3.0, 9.0, 1.0, 4.0, 2.0, 5.0, -1.0, 0.0],
    }[scores]
    select = TopK(plugins=[name]).select
    for k in range(1, BATCH + 1):
        mask = select(torch.tensor(values), torch.tensor(float(k), dtype=torch.float64))
        assert int(mask.sum()) == k
        if name == "bottom-k":
            rows = best_rows(values, k, largest=False)
            assert mask.nonzero().flatten().tolist() == rows


def test_topk_select_random_k_favours_no_row():
    torch.manual_seed(0)
    select, draws = TopK(plugins=["random-k"]).select, 4000
    scores, k = torch.arange(float(BATCH)), torch.tensor(3.0)
    counts = sum(select(scores, k).double() for _ in range(draws))
    # five standard deviations of a binomial count
    share = 3 / BATCH
    assert (counts - draws * share).abs().max() < 5 * (draws * share * (1 - share)) ** 0.5


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mine", ["bottom-k", "random-k", "one row"])
def test_topk_select_at_k_of_the_whole_batch(way, mine):
    """Bit-identical to not being there, whatever the plugin says."""
    chosen = {"hooks": [KeepBest(1)]} if mine == "one row" else {"plugins": [mine]}
    topk = TopK(**chosen, **settings(way))
    generator, critic, rows = generator_step(way, topk)
    expected, of_critic, _ = by_hand(slice(None))
    assert rows == list(range(BATCH))
    assert_same(generator, expected)
    assert_same(critic, of_critic)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("n", [2, 6])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_topk_select_may_keep_fewer_or_more_than_k(way, n, reduction):
    """Kept rows weigh B over their number."""
    loss = LOSSES["sum"] if reduction == "sum" else LOSS
    topk = make_topk(4, hooks=[KeepBest(n)], reduction=reduction, **settings(way))
    generator, _, rows = generator_step(way, topk, loss)
    expected, _, scores = by_hand(rows, loss)
    assert rows == best_rows(scores, n)
    assert error(generator, expected) < 1e-12
    report = topk.report()
    assert (report.rows, report.dropped) == (BATCH, BATCH - n)
    assert (report.last_batch, report.last_k) == (BATCH, n)


@pytest.mark.parametrize("way", WAYS[:-1])
def test_topk_select_may_keep_none(way):
    topk = make_topk(4, hooks=[KeepBest(0)], **settings(way))
    G, D = networks()
    with attach(D, topk) if way != "line A" else torch.enable_grad():
        LOSS.of((topk if way == "line A" else nn.Identity())(D(G(noise())))).backward()
        assert not any(gradient.any() for gradient in gradients(G))
        torch.optim.SGD(G.parameters(), 0.1).step()
    assert topk.report().dropped == BATCH


def test_topk_select_is_asked_once_by_gather():
    """What observers are told, and what is counted, is what was gathered."""
    asked = []

    def fewer_each_time(scores, k):
        asked.append(k)
        return kept_rows(scores, k - len(asked))

    watch = Watch()
    topk = make_topk(4, hooks=[plugin("topk_select", fewer_each_time), watch], **settings("gather"))
    _, _, rows = generator_step("gather", topk)
    assert len(rows) == 3
    assert len(asked) == 1
    assert watch.steps[0].calls[0].kept.nonzero().flatten().tolist() == rows
    assert topk.report().dropped == BATCH - 3


@pytest.mark.parametrize(
    "wrong",
    [
        lambda scores, k: scores,
        lambda scores, k: (scores > 0).long(),
        lambda scores, k: (scores > 0)[:-1],
        lambda scores, k: (scores > 0)[:, None],
        lambda scores, k: (scores > 0).to("meta"),
        lambda scores, k: (scores > 0).tolist(),
        lambda scores, k: 3,
    ],
    ids=["scores", "long", "rows", "dims", "device", "list", "number"],
)
@pytest.mark.parametrize("way", WAYS)
def test_topk_select_wrong_results(way, wrong):
    topk = make_topk(4, hooks=[plugin("topk_select", wrong)], **settings(way))
    message = (
        r"plugin 'hooks\[0\] Plugin': its hook topk_select returned .* for scores=float64\(8,\)"
        ".*, expected a bool mask of the scores' shape"
    )
    with pytest.raises(HookError, match=message):
        generator_step(way, topk)


def test_topk_select_that_nobody_answers(monkeypatch):
    monkeypatch.setenv(manager.DISABLE, "top-k")
    mine = [plugin("topk_select", lambda scores, k: None), fraction(0.5)]
    topk = TopK(hooks=mine)
    with pytest.raises(HookError, match="no plugin answered the hook topk_select"):
        topk(torch.zeros(4, requires_grad=True)).mean().backward()


@pytest.mark.parametrize("mine", ["best 3", "bottom-k", "random-k"])
def test_topk_select_in_one_graph_for_all_values_of_k(mine):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    G, D = networks()
    chosen = {"hooks": [KeepBest(3)]} if mine == "best 3" else {"plugins": [mine]}
    topk = TopK(gamma=0.8, nu=0.01, **chosen)
    step = torch.compile(lambda z: LOSS.of(topk(D(G(z)))), fullgraph=True, backend="aot_eager")
    steps = []
    topk.observers.append(steps.append)
    sizes = [8, 6, 5, 4, 3, 2, 2, 1, 1]
    for k in sizes:
        assert topk.k(BATCH) == k
        clear(G, D)
        step(noise()).backward()
        found = gradients(G)
        topk.step()
        topk.end_epoch()
        kept = 3 if mine == "best 3" and k < BATCH else k
        assert steps[-1].tally[KEPT] == kept
        assert steps[-1].calls == ()
        if mine != "random-k":
            clear(G, D)
            scores = D(G(noise())).flatten()
            rows = best_rows(scores.tolist(), kept, largest=mine == "best 3")
            LOSS.of(scores[rows]).backward()
            assert error(found, gradients(G)) < 1e-12
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_topk_select_that_fails_while_it_is_compiled():
    topk = TopK(hooks=[plugin("topk_select", boom)])
    G, D = networks()
    step = torch.compile(lambda z: LOSS.of(topk(D(G(z)))), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="topk_select raised ZeroDivisionError: boom"):
        step(noise()).backward()


def test_topk_select_by_a_flag(tmp_path):
    """The worst are kept: their mean score is below that of the dropped rows."""
    write(tmp_path, "train.py", GAN)
    flags = ["--gamma", "0.5", "--nu", "0.5", "--log", "log.jsonl"]
    means = {}
    for name, more in {"top-k": [], "bottom-k": ["--plugins", "bottom-k"]}.items():
        done = topk_run(tmp_path, "train.py", critic="__main__:Critic", flags=[*flags, *more])
        assert done.status == 0, done.err
        lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        assert [line["k"] for line in lines] == [8, 8, 4, 4]
        means[name] = [line["kept_score"] > line["dropped_score"] for line in lines[2:]]
    assert means == {"top-k": [True] * 2, "bottom-k": [False] * 2}


# topk_scores


class Output:
    """What a critic returns that nobody foresaw."""

    def __init__(self, realness, features):
        self.realness, self.features = realness, features


@dataclasses.dataclass
class Registered(Output):
    realness: torch.Tensor
    features: torch.Tensor


pytree.register_dataclass(Registered)

OUTPUTS = {
    "dict": lambda scores: {"a": torch.cat([scores, -scores], 1), "realness": scores},
    "tuple": lambda scores: (torch.cat([scores, -scores], 1), scores),
    "dataclass": lambda scores: Registered(scores, torch.cat([scores, -scores], 1)),
    "object": lambda scores: Output(scores, torch.cat([scores, -scores], 1)),
}


def realness(output):
    if isinstance(output, tuple):
        return output[1]
    return output["realness"] if isinstance(output, dict) else output.realness


class OddCritic(Critic):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        return OUTPUTS[self.kind](super().forward(x))


def odd_step(way, kind, topk):
    torch.manual_seed(0)
    G, D = make_generator(), OddCritic(kind)
    if way == "line A":
        output = topk(D(G(noise())))
        LOSS.of(realness(output)).backward()
        assert type(output) is type(OUTPUTS[kind](torch.zeros(1, 1)))
        return gradients(G)
    with attach(D, topk):
        LOSS.of(realness(D(G(noise())))).backward()
        found = gradients(G)
        torch.optim.SGD(G.parameters(), 0.1).step()
    return found


@pytest.mark.parametrize("way", WAYS[:-1])
@pytest.mark.parametrize("kind", ["dict", "tuple", "dataclass"])
def test_topk_scores_finds_them_in_an_odd_output(way, kind):
    with pytest.raises(ScoreShapeError):  # what is first has two numbers a sample
        odd_step(way, "dict", make_topk(3, **settings(way)))
    mine = plugin("topk_scores", realness)
    found = odd_step(way, kind, make_topk(3, hooks=[mine], **settings(way)))
    torch.manual_seed(0)
    G, D = make_generator(), OddCritic(kind)
    scores = realness(D(G(noise()))).flatten()
    LOSS.of(scores.topk(3).values).backward()
    assert error(found, gradients(G)) < 1e-12


@pytest.mark.parametrize("way", WAYS[:-1])
def test_topk_scores_of_an_object_are_an_error_that_says_what_to_do(way):
    topk = make_topk(3, hooks=[plugin("topk_scores", realness)], **settings(way))
    message = "its hook topk_scores returned float64.8, 1. for .*registered with torch.utils._pytr"
    with pytest.raises(HookError, match=message):
        odd_step(way, "object", topk)


@pytest.mark.parametrize("way", WAYS[:-1])
@pytest.mark.parametrize("container", [list, tuple])
def test_topk_scores_of_several_heads_share_one_ranking(way, container):
    mine = plugin("topk_scores", lambda output: container([output["a"], output["b"]]))
    topk = make_topk(3, hooks=[mine], **settings(way))

    class TwoHeads(Critic):
        def forward(self, x):
            return {"a": super().forward(x), "b": x[:, :1] * 3, "c": x.sum(1)}

    found = {}
    for by_hand in (False, True):
        torch.manual_seed(0)
        G, D = make_generator(), TwoHeads()
        with attach(D, topk) if not by_hand and way != "line A" else torch.enable_grad():
            output = D(G(noise()))
            if by_hand:
                rows = (output["a"] + output["b"]).flatten().topk(3).indices
                output = {name: value[rows] for name, value in output.items()}
            elif way == "line A":
                output = topk(output)
            (LOSS.of(output["a"]) + LOSS.of(output["b"])).backward()
            found[by_hand] = gradients(G)
            torch.optim.SGD(G.parameters(), 0.1).step()
    assert error(found[False], found[True]) < 1e-12


@pytest.mark.parametrize(
    "wrong",
    [
        lambda output: output["realness"] * 2,
        lambda output: output["realness"].flatten(),
        lambda output: "realness",
        lambda output: [],
        lambda output: [output["realness"], None],
        lambda output: output["realness"] > 0,
        lambda output: {"realness": output["realness"]},
    ],
    ids=["computed", "view", "name", "empty", "none", "bool", "dict"],
)
@pytest.mark.parametrize("way", WAYS[:-1])
def test_topk_scores_wrong_results(way, wrong):
    topk = make_topk(3, hooks=[plugin("topk_scores", wrong)], **settings(way))
    message = (
        r"plugin 'hooks\[0\] Plugin': its hook topk_scores returned .* for output=\{'a': .*, "
        "expected floating tensors of that output"
    )
    with pytest.raises(HookError, match=message):
        odd_step(way, "dict", topk)


def test_topk_scores_compiles_into_one_graph():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    topk = make_topk(3, hooks=[plugin("topk_scores", realness)])
    torch.manual_seed(0)
    G, D = make_generator(), OddCritic("tuple")
    step = torch.compile(lambda z: LOSS.of(topk(D(G(z)))[1]), fullgraph=True, backend="aot_eager")
    step(noise()).backward()
    found = gradients(G)
    assert error(found, odd_step("line A", "tuple", topk)) < 1e-12
    assert topk.report().dropped == 2 * (BATCH - 3)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


# topk_fraction


def linear(asked=None):
    def answer(progress, config):
        if asked is not None:
            asked.append(progress)
        return max(config.nu, 1 - progress.epoch / 8)

    return plugin("topk_fraction", answer)


def test_topk_fraction_is_a_schedule():
    topk, sizes = TopK(gamma=0.5, nu=0.5, hooks=[linear()]), []
    for _ in range(6):
        sizes.append(topk.k(BATCH))
        _, _, rows = generator_step("line A", topk)
        assert len(rows) == sizes[-1]
        topk.end_epoch()
    assert sizes == [8, 7, 6, 5, 4, 4]


def test_topk_fraction_is_asked_again_by_a_resumed_run():
    topk = TopK(nu=0.25, hooks=[linear()])
    for _ in range(3):
        generator_step("line A", topk)
        topk.end_epoch()
    asked = []
    resumed = TopK(nu=0.25, hooks=[linear(asked)])
    resumed.load_state_dict(topk.state_dict())
    assert asked == [Progress(0, 0), Progress(3, 3)]
    assert resumed.k(BATCH) == 5
    assert len(generator_step("line A", resumed)[2]) == 5


def test_topk_fraction_every_n_generator_steps():
    asked = []
    topk = TopK(every=2, nu=0.25, hooks=[linear(asked)])
    kept = [len(generator_step("line A", topk)[2]) for _ in range(6)]
    assert kept == [8, 8, 7, 7, 6, 6]
    assert asked == [Progress(0, 0), Progress(1, 2), Progress(2, 4), Progress(3, 6)]


def test_topk_fraction_is_not_asked_where_topk_is_off():
    assert TopK(enabled=False, hooks=[fraction(0.25)]).k(BATCH) == BATCH


@pytest.mark.parametrize("wrong", [0, 2, -0.5, float("nan"), "x", "0.5", [0.5]])
def test_topk_fraction_wrong_results(wrong):
    message = (
        r"plugin 'hooks\[0\] Plugin': its hook topk_fraction returned .* for progress=Progress"
        r".*, expected a number in \(0, 1\]"
    )
    with pytest.raises(HookError, match=message):
        TopK(hooks=[fraction(wrong)])


# topk_selected and topk_epoch_ended


class Watch:
    def __init__(self, parameter=None):
        self.parameter, self.steps, self.epochs, self.weights = parameter, [], [], []

    @hookimpl
    def topk_selected(self, selection):
        self.steps.append(selection)
        if self.parameter is not None:
            self.weights.append(self.parameter.detach().clone())

    @hookimpl
    def topk_epoch_ended(self, progress):
        self.epochs.append(progress)


@pytest.mark.parametrize("gate", ["score", "shielded"])
def test_topk_selected_is_called_once_a_generator_step(gate):
    G, D = networks()
    watch = Watch(next(G.parameters()))
    topk = make_topk(3, hooks=[watch], gate=gate)
    optimizers = [torch.optim.SGD(net.parameters(), 0.1) for net in (D, G)]
    scores, weights = [], []
    with attach(D, topk):
        for _ in range(2):
            clear(G, D)
            (D(noise() @ torch.ones(LATENT, 6).double()) - D(G(noise()))).mean().backward()
            optimizers[0].step()
            clear(G, D)
            scores = [D(G(noise())).detach(), D(G(noise() + 1))]
            (LOSS.of(D(G(noise()))) + LOSS.of(scores[1])).backward()
            before = len(watch.steps)
            optimizers[1].step()
            assert len(watch.steps) == before + 1
            weights.append(next(G.parameters()).detach().clone())
    assert [(s.step, s.epoch, s.batch) for s in watch.steps] == [(1, 1, 16), (2, 1, 16)]
    assert_same(watch.weights, weights)  # the optimizer had stepped
    calls = sorted(
        watch.steps[-1].calls, key=lambda call: not torch.equal(call.scores, scores[0].flatten())
    )
    for call, expected in zip(calls, scores, strict=True):
        assert torch.equal(call.scores, expected.detach().flatten())
        assert call.kept.nonzero().flatten().tolist() == best_rows(call.scores.tolist(), 3)
        assert not call.scores.requires_grad
    assert watch.steps[-1].tally[KEPT] == 6


def test_topk_selected_of_line_a():
    watch = Watch()
    topk = make_topk(3, hooks=[watch])
    G, D = networks()
    optimizer = torch.optim.SGD(G.parameters(), 0.1)
    for _ in range(2):
        scores = [D(G(noise())), D(G(noise() + 1))]
        sum(LOSS.of(topk(s)) for s in scores).backward()
        optimizer.step()
    assert [(s.step, s.epoch, s.batch, len(s.calls)) for s in watch.steps] == [
        (1, 1, 0, 2),
        (2, 1, 0, 2),
    ]
    assert watch.steps[-1].tally[ROWS] == 2 * BATCH
    found = sorted(call.scores.tolist() for call in watch.steps[-1].calls)
    assert found == sorted(s.flatten().tolist() for s in scores)
    for call in watch.steps[-1].calls:
        assert call.kept.nonzero().flatten().tolist() == best_rows(call.scores.tolist(), 3)


def test_topk_epoch_ended_counts_it():
    watch = Watch()
    topk = TopK(gamma=0.5, nu=0.25, hooks=[watch])
    seen = []
    topk_seen = plugin("topk_epoch_ended", lambda progress: seen.append(other.k(BATCH)))
    other = TopK(gamma=0.5, nu=0.25, hooks=[topk_seen])
    for _ in range(2):
        generator_step("line A", topk)
        topk.end_epoch()
        other.end_epoch()
    assert watch.epochs == [Progress(1, 1), Progress(2, 2)]
    assert seen == [4, 2]  # k has decayed by then


def test_topk_epoch_ended_of_a_data_loader():
    G, D = networks()
    watch = Watch()
    optimizer = torch.optim.SGD(G.parameters(), 0.1)
    loader = torch.utils.data.DataLoader(noise(16), batch_size=BATCH)
    with attach(D, TopK(hooks=[watch]), loader=loader):
        assert len([*loader, *loader]) == 4  # passes that feed no generator step are none
        for _ in range(2):
            for z in loader:
                clear(G, D)
                LOSS.of(D(G(z))).backward()
                optimizer.step()
    assert watch.epochs == [Progress(1, 2), Progress(2, 4)]


def test_topk_epoch_ended_that_raises_where_a_pass_is_left_early():
    """The iterator is discarded there, and Python only prints what a finalizer raises."""
    G, D = networks()
    topk = TopK(hooks=[plugin("topk_epoch_ended", boom)])
    optimizer = torch.optim.SGD(G.parameters(), 0.1)
    loader = torch.utils.data.DataLoader(noise(16), batch_size=4)

    def train():
        for z, _ in zip(loader, range(2), strict=False):
            clear(G, D)
            LOSS.of(D(G(z))).backward()
            optimizer.step()

    with attach(D, topk, loader=loader):
        train()
        with pytest.raises(HookError, match="topk_epoch_ended raised ZeroDivisionError"):
            train()


# topk_adapters


def adapter(name="mine", upstream="somebody/gan"):
    return Adapter(
        name=name,
        upstream=upstream,
        versions=("1.0",),
        seam="call",
        wraps=(),
        epoch="a pass",
        counter="none",
        tested="not",
    )


def test_topk_adapters_are_listed(tmp_path):
    write(
        tmp_path,
        "mine.py",
        """
        from topk_plugin import Adapter, hookimpl

        @hookimpl
        def topk_adapters():
            return [Adapter(name="mine", upstream="somebody/gan", versions=("7.5",), seam="call",
                            wraps=(), epoch="a pass", counter="none", tested="never")]
    """,
    )
    write(tmp_path, "m-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: m\nVersion: 1\n")
    write(tmp_path, "m-1.dist-info/entry_points.txt", "[topk_plugin]\nmine = mine\n")
    done = launched.run(tmp_path, ["adapters"], env={"COLUMNS": "200"})
    assert done.status == 0, done.err
    for word in ("mine", "somebody/gan", "7.5", "mimicry"):
        assert word in done.out


def test_topk_adapters_may_be_none_and_order_is_that_of_registration():
    lists = [[adapter("a")], None, (), (adapter("c"), adapter("b"))]
    mine = [plugin("topk_adapters", lambda answer=answer: answer) for answer in lists]
    bundled = list(known.adapters(plugin_manager()))
    assert list(known.adapters(plugin_manager(plugins=mine))) == [*bundled, "a", "c", "b"]


def test_topk_adapters_of_one_name():
    two = [plugin("topk_adapters", lambda up=up: [adapter(upstream=up)]) for up in ("a/x", "b/x")]
    with pytest.raises(HookError, match="two adapters are named 'mine', for a/x and b/x"):
        known.adapters(plugin_manager(plugins=two))


@pytest.mark.parametrize("wrong", [3, "mimicry", ["mimicry"], adapter(), [adapter(), None]])
def test_topk_adapters_wrong_results(wrong):
    mine = plugin("topk_adapters", lambda: wrong)
    message = r"'hooks\[0\] Plugin': its hook topk_adapters returned .* expected a list of topk_plu"
    with pytest.raises(HookError, match=message):
        known.adapters(plugin_manager(plugins=[mine]))


def test_topk_adapters_wrong_results_end_the_command(monkeypatch, capsys):
    entry_points(monkeypatch, mine="json")
    assert cli.main(["adapters"]) == 3
    assert "plugin 'mine': found <module 'json'" in capsys.readouterr().err


def test_a_plugin_that_asks_to_be_tried_last_goes_before_the_built_in_rule():
    class Last:
        @hookimpl(trylast=True)
        def topk_select(self, scores, k):
            return scores < 0

    topk = TopK(gamma=0.5, hooks=[Last()])
    topk.end_epoch()
    scores = torch.tensor([1.0, -1.0, 2.0, 3.0], requires_grad=True)
    (-topk(scores)).mean().backward()
    assert scores.grad.tolist() == [0.0, -1.0, 0.0, 0.0]


def test_an_observer_beside_it_does_not_change_what_the_record_calls_a_plugin():
    class Low:
        @hookimpl
        def topk_select(self, scores, k):
            return scores <= scores.median()

    class Watching:
        @hookimpl
        def topk_epoch_ended(self, progress):
            pass

    first = TopK(hooks=[Low()])
    assert first.plugins == ["Low"]
    TopK(hooks=[Watching(), Low()]).load_state_dict(first.state_dict())
    with pytest.raises(ResumeMismatch, match="plugins"):
        TopK(hooks=[Watching()]).load_state_dict(first.state_dict())


def test_a_class_that_needs_arguments_is_said():
    class Needs:
        def __init__(self, value):
            pass

    with pytest.raises(HookError, match="Needs.* cannot be called without arguments"):
        TopK(hooks=[Needs])


def test_the_first_failure_is_kept_for_the_verdict():
    topk = TopK(gamma=0.5, hooks=[plugin("topk_select", boom)])
    assert topk.hook_errors == []
    for _ in range(2):
        scores = torch.zeros(4, requires_grad=True)
        with pytest.raises(HookError) as raised:
            topk(scores).mean().backward()
        assert len(topk.hook_errors) == 1
    assert topk.hook_errors[0] is not raised.value
    assert "ZeroDivisionError" in str(topk.hook_errors[0])
