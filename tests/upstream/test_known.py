"""The adapters that are known: those of plugins beside those of this package."""

import re
import sys

import launched
import pytest
from plugged import adapter, entry_points, plugin, write

import topk_plugin.adapters
from topk_plugin import cli
from topk_plugin.errors import ConfigError, HookError
from topk_plugin.plugins.manager import DISABLE, plugin_manager
from topk_plugin.upstream import known


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
    bundled = list(known.adapters())
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


ADAPTER = """
from topk_plugin import Adapter

ADAPTER = Adapter(name="mine", upstream="somebody/gan", versions=("1.0",), seam="call", wraps=(),
                  epoch="a pass", counter="none", tested="not")
"""


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Stands beside the folder of adapters that come along."""
    monkeypatch.setattr(
        topk_plugin.adapters.__spec__,
        "submodule_search_locations",
        [*topk_plugin.adapters.__path__, str(tmp_path)],
    )
    monkeypatch.setattr(topk_plugin.adapters, "__path__", [str(tmp_path)])
    yield tmp_path
    sys.modules.pop("topk_plugin.adapters.mine", None)


def test_an_adapter_is_one_file(monkeypatch, folder):
    bundled = list(known.adapters())
    (folder / "mine.py").write_text(ADAPTER)
    assert list(known.adapters()) == sorted([*bundled, "mine"])
    assert known.find_adapter("mine").upstream == "somebody/gan"
    monkeypatch.setenv(DISABLE, "mine")
    assert list(known.adapters()) == bundled
    monkeypatch.setenv(DISABLE, "mime")
    with pytest.raises(ConfigError, match="TOPK_DISABLE_PLUGINS=mime: .* did you mean 'mine'"):
        known.adapters()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "found None as ADAPTER in .*mine.py"),
        ("ADAPTER = 3", "found 3 as ADAPTER"),
        (ADAPTER.replace('"mine"', '"yours"'), "found one named 'yours'"),
    ],
)
def test_a_file_without_the_adapter_of_its_name(folder, text, found):
    (folder / "mine.py").write_text(text)
    with pytest.raises(HookError, match=rf"adapter 'mine': {found}.*\(name='mine', .*=mine"):
        known.adapters()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ADAPTER = ", "SyntaxError: invalid syntax"),
        (ADAPTER.replace('counter="none",', ""), "TypeError: .*'counter'"),
        (ADAPTER.replace('"call"', '"cal"'), "found seam='cal', expected one of 'call', 'source'"),
        (ADAPTER.replace("wraps=", "direction='hihg', wraps="), "found direction='hihg', .* None"),
        (
            ADAPTER.replace("import Adapter", "import Adapter, Wrap, scores_argument").replace(
                "wraps=()", "wraps=(Wrap('m', 'loss', '(fake, w=1)', scores_argument('scores')),)"
            ),
            r"found scores_argument\('scores'\) for loss\(fake, w=1\), expected one of its",
        ),
        (ADAPTER.replace("wraps=", "companions='auto', wraps="), "'auto', .* 'follow', 'keep'"),
    ],
)
def test_a_file_that_cannot_be_imported(folder, capsys, text, found):
    (folder / "mine.py").write_text(text)
    message = f"adapter 'mine': its file cannot be imported, .*{found}.*=mine"
    with pytest.raises(HookError, match=message):
        known.adapters()
    assert cli.main(["adapters"]) == 3
    assert re.search(message, capsys.readouterr().err)


def test_all_that_an_adapter_states_is_shown(capsys):
    assert cli.main(["adapters", "mimicry"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    adapter = known.find_adapter("mimicry")
    for text in (adapter.upstream, adapter.epoch, adapter.counter, adapter.tested):
        assert text in shown
    assert cli.main(["adapters", "mimcry"]) == 2
    assert (
        "topk adapters mimcry: unknown adapter; did you mean 'mimicry'" in capsys.readouterr().err
    )
