"""Which plugins there are: installed, by name and objects; their order, and what is none."""

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
from losses import error
from plugged import BROKEN, GAN, HOOKS, KeepBest, entry_points, fraction, plugin, write

from topk_plugin import TopK, hooks
from topk_plugin.core.ranking import kept_rows
from topk_plugin.errors import ConfigError, HookError, ResumeMismatch
from topk_plugin.hooks import Hooks, Progress, hookimpl
from topk_plugin.plugins import bundled, manager
from topk_plugin.plugins.manager import plugin_manager

TESTS = Path(__file__).parents[1]
README = TESTS.parent / "README.md"


def test_every_hook_has_a_test_and_is_documented():
    assert len(HOOKS) == 6
    files = [path.read_text() for path in TESTS.rglob("test_*.py")]
    section = README.read_text().split("\n## Plugins\n")[1].split("\n## ")[0]
    for hook in HOOKS:
        assert any(f"\ndef test_{hook}_" in text for text in files), hook
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


@pytest.mark.parametrize(
    ("disabled", "gradient", "kept"),
    [
        ("", [-0.5, 0.0, -0.5, 0.0], [0, 2]),
        pytest.param("even-rows", [0.0, -0.5, -0.5, 0.0], [1, 2], marks=pytest.mark.slow),
        pytest.param("even-rows,watch", [0.0, -0.5, -0.5, 0.0], None, marks=pytest.mark.slow),
    ],
    ids=["both", "observer", "none"],
)
def test_installed_plugins_in_a_loop_of_ones_own(installed, tmp_path, disabled, gradient, kept):
    write(tmp_path, "loop.py", OWN_LOOP)
    done = python(tmp_path, "loop.py", PYTHONPATH=installed, TOPK_DISABLE_PLUGINS=disabled)
    assert said(done, "gradient") == [[-0.25] * 4, gradient]
    expected = [[0, [[0, 1, 2, 3]]], [1, [kept]]]
    assert said(done, "kept") == (expected if kept is not None else [])


@pytest.mark.slow
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


# Order


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
