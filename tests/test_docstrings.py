"""Every public name says what it takes, in which range or shape, and what it raises."""

import ast
import dataclasses
import inspect
import re
import textwrap

import pytest

import topk_plugin
from topk_plugin import errors
from topk_plugin.hooks import Call, Hooks, Progress, Selection
from topk_plugin.plugins.figures import Figures, Histogram, Kept

PUBLIC = {name: getattr(topk_plugin, name) for name in topk_plugin.__all__}
TOLD = [Call, Progress, Selection, Figures, Histogram, Kept]
"""What hooks and plugins are given."""

CLASSES = [value for value in [*PUBLIC.values(), Hooks] if inspect.isclass(value)]
ERRORS = [name for name, value in vars(errors).items() if inspect.isclass(value)]


def functions():
    """Public functions and methods, each with the docstrings that a reader of it sees."""
    for name, value in PUBLIC.items():
        if inspect.isfunction(value):
            yield name, value, value.__doc__
    for cls in CLASSES:
        for name, value in vars(cls).items():
            function = getattr(value, "__func__", value)
            of_own = name == "__init__" and not dataclasses.is_dataclass(cls)
            if inspect.isfunction(function) and (of_own or name[0] != "_" or name == "__call__"):
                text = cls.__doc__ if name == "__init__" else f"{function.__doc__} {cls.__doc__}"
                yield f"{cls.__name__}.{name}", function, text


FUNCTIONS = {name: (value, text) for name, value, text in functions()}


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_says_what_it_is(name):
    value = PUBLIC[name]
    if inspect.isclass(value) or callable(value):
        assert value.__doc__
        assert not value.__doc__.startswith(f"{name}(")  # what dataclass writes by itself
    else:  # a value: the text below its assignment
        source = inspect.getsource(inspect.getmodule(topk_plugin.core.direction))
        assert name in source


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_says_what_it_takes(name):
    function, text = FUNCTIONS[name]
    assert name.endswith("__init__") or function.__doc__
    for parameter in [*inspect.signature(function).parameters.values()]:
        if parameter.name in ("self", "cls") or parameter.kind is parameter.VAR_KEYWORD:
            continue
        assert re.search(rf"\b{parameter.name}\b", text), parameter


def raised(function) -> set[str]:
    """Errors of the package that a function raises itself, or by a helper of its module."""
    module = ast.parse(inspect.getsource(inspect.getmodule(function)))
    bodies = {node.name: node for node in module.body if isinstance(node, ast.FunctionDef)}
    queue = [ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]]
    found, seen = set(), set()
    while queue:
        for node in ast.walk(queue.pop()):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                found.add(ast.unparse(node.exc.func))
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Name) and called.id in bodies and called.id not in seen:
                seen.add(called.id)
                queue.append(bodies[called.id])
    return found & {*ERRORS}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_says_what_it_raises(name):
    function, text = FUNCTIONS[name]
    said = re.split("Raises", text or "", maxsplit=1)
    for error in raised(function):
        assert len(said) == 2, error
        assert error in said[1], error


@pytest.mark.parametrize("cls", [c for c in [*CLASSES, *TOLD] if hasattr(c, "__annotations__")])
def test_a_field_says_what_it_is(cls):
    """By a comment beside it, a text of its own, or in the docstring of its class."""
    source = inspect.getsource(cls)
    names = [*getattr(cls, "_fields", [field.name for field in dataclasses.fields(cls)]
                      if dataclasses.is_dataclass(cls) else [])]  # fmt: skip
    for name in names:
        beside = re.search(rf"^    {name}: [^#\n]*  # \S", source, re.MULTILINE)
        below = re.search(rf"^    {name}: .*\n    \"\"\"", source, re.MULTILINE)
        above = re.search(rf"^    # .*\n    {name}: ", source, re.MULTILINE)
        helped = re.search(rf"^    {name}: .* = _setting\(", source, re.MULTILINE)
        assert (
            beside
            or above
            or below
            or helped
            or re.search(rf"\b{name}\b", words(cls.__doc__ or ""))
        ), name
