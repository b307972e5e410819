"""Source rules: where they find their places, what they write, and what they refuse."""

import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topk_plugin.errors import UnsupportedUpstream
from topk_plugin.source.edits import rewritten
from topk_plugin.source.rules import IMPORT, Argument, Enclose, Insert, Place, Replace
from topk_plugin.source.text import Source, digest

F = "train.py"
SOURCE = '''\
"""A trainer."""
from __future__ import annotations

import torch


class Trainer:
    def train(self):
        """Trains."""
        for step in range(3):
            fake = self.D(self.G(step))  # critic step
            fake = -self.D(
                self.G(step),
            ).mean()  # generator step

        def later():
            return self.D(1)

        while fake:
            fake -= 1
        return fake


device = "cuda"
'''


def edited(source: str, *rules, force: bool = False) -> str:
    return rewritten(textwrap.dedent(source), rules, F, force).text


def lines_added(*rules, source: str = SOURCE) -> list[tuple[int, str]]:
    """The lines that were put in, each after how many lines of the original."""
    found = rewritten(source, rules, F)
    old = source.splitlines()
    added, i = [], 0
    for line in found.text.splitlines():
        if i < len(old) and line == old[i]:
            i += 1
        else:
            added.append((i, line))
    assert i == len(old)
    return added


# --- places ---------------------------------------------------------------------------------------


def test_a_call_is_enclosed_over_several_lines():
    rule = Enclose(Place(F, "Trainer.train", "self.D", 2, 2))
    text = edited(SOURCE, rule)
    assert "fake = -topk(self.D(\n                self.G(step),\n            )).mean()" in text
    assert text.count("topk(") == 1
    assert f"annotations\n\n{IMPORT}\nimport torch\n" in text


def test_scopes_exclude_inner_functions_and_name_them():
    with pytest.raises(UnsupportedUpstream, match="found 2 calls of self.D, expected 3"):
        edited(SOURCE, Enclose(Place(F, "Trainer.train", "self.D", 1, 3)))
    text = edited(SOURCE, Enclose(Place(F, "Trainer.train.later", "self.D"), by="topk.follow"))
    assert "return topk.follow(self.D(1))" in text


@pytest.mark.parametrize(
    ("place", "where", "after", "indent"),
    [
        (Place(F, "Trainer.train", "for"), "first", 10, 12),
        (Place(F, "Trainer.train", "for"), "last", 14, 12),
        (Place(F, "Trainer.train", "for"), "before", 9, 8),
        (Place(F, "Trainer.train", "for"), "after", 14, 8),
        (Place(F, "Trainer.train", "while"), "first", 19, 12),
        (Place(F, "Trainer.train", "def"), "first", 9, 8),
        (Place(F, "Trainer.train", "def"), "last", 21, 8),
        (Place(F, "Trainer.train.later", "def"), "before", 15, 8),
        (Place(F, "Trainer.train", "self.D", 2, 2), "after", 14, 12),
        (Place(F, "Trainer.train", "range"), "after", 14, 8),
        (Place(F, "", "import"), "after", 4, 0),
    ],
)
def test_where_a_line_is_put(place, where, after, indent):
    rule = Insert(place, "pass", where)
    assert lines_added(rule) == [(after, " " * indent + "pass")]


def test_what_ends_a_loop_comes_before_what_follows_it():
    loop = Place(F, "Trainer.train", "for")
    found = lines_added(Insert(loop, "second()"), Insert(loop, "first()", "last"))
    assert [line.strip() for _, line in found] == ["first()", "second()"]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (Place(F, "Trainer.fit", "self.D"), "found no Trainer.fit, expected one"),
        (Place(F, "Trainer.train", "self.E"), "found no calls of self.E, expected 1"),
        (Place(F, "Trainer.train", "for", 1, 2), "found 1 for loops, expected 2"),
        (Place(F, "", "while"), "the module: found no while loops, expected 1"),
    ],
)
def test_a_place_that_is_not_there(place, message):
    with pytest.raises(UnsupportedUpstream) as caught:
        edited(SOURCE, Insert(place, "pass"))
    assert message in str(caught.value)
    assert str(caught.value).startswith(F)


def test_a_function_that_is_defined_twice_is_refused():
    twice = "if 1:\n    def f():\n        g()\nelse:\n    def f():\n        g()\n"
    with pytest.raises(UnsupportedUpstream, match="found 2 functions f, expected one"):
        edited(twice, Enclose(Place(F, "f", "g")))


@pytest.mark.parametrize("source", ["a = D(1); b = 2\n", "if 1: D(1)\n", "b = 2; D(1)\n"])
def test_several_statements_on_a_line_are_refused(source):
    with pytest.raises(UnsupportedUpstream, match="several statements on a line"):
        edited(source, Insert(Place(F, "", "D"), "topk.end_epoch()"))


def test_python_2_is_refused():
    with pytest.raises(UnsupportedUpstream, match="found a file that this Python cannot read"):
        edited("print 'epoch'\n", Enclose(Place(F, "", "D")))


# --- digests --------------------------------------------------------------------------------------


def test_a_digest_does_not_see_layout_and_sees_everything_else():
    assert digest("-D( G(z) ).mean()  # top\n") == digest("-D(\n    G(z)).mean()")
    assert digest("-D(G(z)).mean()") != digest("D(G(z)).mean()")
    assert digest("for x in y:\r\n") == digest("for x in y:  # each\n")
    assert digest("f'{a} b'") != digest("f'{a} c'")


def test_another_statement_is_refused_unless_forced():
    place = Place(F, "Trainer.train", "self.D", 1, 2)
    right = digest("fake = self.D(self.G(step))")
    assert "topk(self.D(self.G(step)))" in edited(
        SOURCE, Enclose(Place(**vars(place) | {"digest": right}))
    )
    wrong = Enclose(Place(**vars(place) | {"digest": "0" * 12}))
    with pytest.raises(UnsupportedUpstream) as caught:
        edited(SOURCE, wrong)
    assert str(caught.value) == (
        "train.py, line 11: found self.D in Trainer.train in a statement that differs from the one "
        f"that the rule was written for (digest {right}, expected 000000000000)"
    )
    assert "topk(self.D(self.G(step)))" in edited(SOURCE, wrong, force=True)


def test_of_a_loop_the_digest_is_that_of_its_first_line():
    place = Place(F, "Trainer.train", "for", digest=digest("for step in range(3):"))
    changed = SOURCE.replace("# critic step", "# changed").replace("self.G(step))", "self.G(0))")
    assert "topk.end_epoch()" in edited(changed, Insert(place, "topk.end_epoch()"))


# --- replacements ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "rule", "after"),
    [
        ("x = D().cuda()", Replace(F, "_.cuda()", "_.to(dev)"), "x = D().to(dev)"),
        ("(a + b).cuda()", Replace(F, "_.cuda()", "_.to(dev)"), "(a + b).to(dev)"),
        ("((a)\n  ).cuda()", Replace(F, "_.cuda()", "_.to(dev)"), "((a)\n  ).to(dev)"),
        ("f(D().cuda()).cuda()", Replace(F, "_.cuda()", "_.to(dev)"), "f(D().to(dev)).to(dev)"),
        ("a.cuda(0)", Replace(F, "_.cuda()", "_.to(dev)"), "a.cuda(0)"),
        ("f(l.data[0], m.data[1])", Replace(F, "_.data[0]", "_.item()"), "f(l.item(), m.data[1])"),
        ("x = it().next()", Replace(F, "_.next()", "next(_)"), "x = next(it())"),
        ("np.float(1) + np.float64", Replace(F, "np.float", "float"), "float(1) + np.float64"),
        ("d = 'cuda'; e = \"cuda\"", Replace(F, "'cuda'", "'cpu'"), "d = 'cpu'; e = 'cpu'"),
        ("é = 'ü'; é.cuda()", Replace(F, "_.cuda()", "_.to(dev)"), "é = 'ü'; é.to(dev)"),
        ("load(f)", Argument(F, "load", "weights_only=False"), "load(f, weights_only=False)"),
        ("load()", Argument(F, "load", "weights_only=False"), "load(weights_only=False)"),
        ("load(f, )", Argument(F, "load", "weights_only=False"), "load(f,  weights_only=False)"),
        ("load(g(1))", Argument(F, "load", "a=1"), "load(g(1), a=1)"),
        ("load(f, a=2)", Argument(F, "load", "a=1"), "load(f, a=2)"),
        ("x.load(f)", Argument(F, "load", "a=1"), "x.load(f)"),
    ],
)
def test_expressions_are_replaced_wherever_they_are(before, rule, after):
    assert edited(before, rule) == after


def test_a_replacement_may_be_limited_to_a_scope():
    source = "x = 'cuda'\ndef f(a='cuda'):\n    y = 'cuda'\n    def g():\n        return 'cuda'\n"
    found = edited(source, Replace(F, "'cuda'", "'cpu'", scope="f"))
    assert found == source.replace("a='cuda'", "a='cpu'").replace("y = 'cuda'", "y = 'cpu'")
    assert edited(source, Replace(F, "'cuda'", "'cpu'", scope="")).startswith(
        "x = 'cpu'\ndef f(a='cuda')"
    )
    assert edited(source, Replace(F, "'cuda'", "'cpu'", scope="h")) == source


def test_what_is_found_nowhere_changes_nothing():
    found = rewritten(SOURCE, [Replace(F, "_.cuda()", "topk(_)")], F)
    assert found.text == SOURCE
    assert found.applied == ()


# --- text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("ended", [True, False])
def test_line_ends_stay(newline, ended):
    source = newline.join(["import torch", "while D(1):", "    pass"]) + (newline if ended else "")
    loop = Place(F, "", "while")
    text = edited(source, Insert(loop, "topk.end_epoch()"), Insert(loop, "step()", "last"))
    expected = [IMPORT, "import torch", "while D(1):", "    pass", "    step()", "topk.end_epoch()"]
    assert text == newline.join(expected) + (newline if ended else "")


@pytest.mark.parametrize("head", ["", "\ufeff", "# -*- coding: latin-1 -*-\n"])
def test_encodings_stay(tmp_path, head):
    encoding = "latin-1" if "latin" in head else "utf-8"
    path = tmp_path / F
    path.write_bytes((head + "é = D(1)\n").encode(encoding))
    source = Source.read(path)
    new = edited(source.text, Enclose(Place(F, "", "D")))
    data = Source(new, source.encoding).encode()
    assert data.decode(encoding).replace(f"{IMPORT}\n", "") == head + "é = topk(D(1))\n"
    compile(data, F, "exec")


def test_a_binary_file_is_refused(tmp_path):
    (tmp_path / F).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UnsupportedUpstream, match="found no Python source"):
        Source.read(tmp_path / F)


names = st.sampled_from(["D", "G", "x"])
expressions = st.recursive(
    names | st.sampled_from(["'é\\n'", "1", "x[0]"]),
    lambda inner: (
        st.builds("{}({})".format, names, inner)
        | st.builds("({} + {})".format, inner, inner)
        | st.builds("({}\n   ).real".format, inner)
        | st.builds("{} (  {},\n  {})".format, names, inner, inner)
    ),
    max_leaves=6,
)


@given(st.lists(expressions, min_size=1, max_size=4), st.data())
def test_enclosing_any_call_is_what_a_visitor_does(parts, data):
    """Against Python's own tree: unparsed, the text with its edits is the tree with its edits."""
    import ast

    source = "".join(f"y = ({part})\n" for part in parts)
    tree = ast.parse(source)
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "D"]
    if not calls:
        return
    calls.sort(key=lambda n: (n.lineno, n.col_offset, n.end_lineno, n.end_col_offset))
    nth = data.draw(st.integers(1, len(calls)))

    class Enclosing(ast.NodeTransformer):
        def visit_Call(self, node):
            mine = node is calls[nth - 1]
            node = self.generic_visit(node)
            return ast.Call(ast.Name("topk"), [node], []) if mine else node

    text = edited(source, Enclose(Place(F, "", "D", nth, len(calls))))
    expected = ast.unparse(ast.fix_missing_locations(Enclosing().visit(tree)))
    assert ast.unparse(ast.parse(text.removeprefix(f"{IMPORT}\n"))) == expected
