"""The adapters that are known: those of plugins beside those of this package."""

import launched
import pytest
from plugged import entry_points, plugin, write

from topk_plugin import Adapter, cli, hooks
from topk_plugin.errors import HookError
from topk_plugin.hooks import plugin_manager


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
    bundled = list(hooks.adapters(plugin_manager()))
    assert list(hooks.adapters(plugin_manager(plugins=mine))) == [*bundled, "a", "c", "b"]


def test_topk_adapters_of_one_name():
    two = [plugin("topk_adapters", lambda up=up: [adapter(upstream=up)]) for up in ("a/x", "b/x")]
    with pytest.raises(HookError, match="two adapters are named 'mine', for a/x and b/x"):
        hooks.adapters(plugin_manager(plugins=two))


@pytest.mark.parametrize("wrong", [3, "mimicry", ["mimicry"], adapter(), [adapter(), None]])
def test_topk_adapters_wrong_results(wrong):
    mine = plugin("topk_adapters", lambda: wrong)
    message = r"'hooks\[0\] Plugin': its hook topk_adapters returned .* expected a list of topk_plu"
    with pytest.raises(HookError, match=message):
        hooks.adapters(plugin_manager(plugins=[mine]))


def test_topk_adapters_wrong_results_end_the_command(monkeypatch, capsys):
    entry_points(monkeypatch, mine="json")
    assert cli.main(["adapters"]) == 3
    assert "plugin 'mine': found <module 'json'" in capsys.readouterr().err
