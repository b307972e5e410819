"""What is to be said of a name under which no critic was built."""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.util
import inspect
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from topk_plugin.loop.wrappers import unwrapped
from topk_plugin.seams.names import MISSING, CriticPath, Found, class_of, title, walk


class Built:
    """The classes of all modules that were built."""

    def __init__(self) -> None:
        self._classes: dict[str, weakref.ref[type]] = {}

    def add(self, cls: type) -> None:
        """A module of that class was built."""
        self._classes.setdefault(title(cls), weakref.ref(cls))

    def __iter__(self) -> Iterator[str]:
        """Titles of those that are not torch's."""
        return (name for name in self._classes if not name.startswith(("torch.", "torchvision.")))

    def that(self, holds: Callable[[type], bool]) -> list[str]:
        """Titles of those for which it holds, as far as they are alive."""
        alive = {name: reference() for name, reference in self._classes.items()}
        return [name for name, cls in alive.items() if cls is not None and holds(cls)]


def pending(path: CriticPath, built: Built) -> str:
    """What is known of a critic that was not built, where one still may be; ends a sentence."""
    missing = "" if path.modules() else f": no module {path.module} is imported"
    return f"{missing}.{_choice(path, built)}"


def nearest(path: CriticPath, built: Built) -> str:
    """A class that may have been meant, as a question, of those built or in the module named."""
    there = {
        f"{path.module}:{name}"
        for module in path.modules()
        for name, value in vars(module).items()
        if _own(value)
    }
    whole, first = ".".join(path.names), ".".join(path.names[:-1])

    def closeness(candidate: str) -> tuple[float, bool, float]:
        module, _, name = candidate.partition(":")
        alike = max(_alike(name, whole), _alike(name, first))
        return alike, candidate in built, _alike(module, path.module)

    itself = {str(path)} | ({f"{path.module}:{first}"} - {*built})  # whose attribute is named
    near = max(sorted({*built, *there} - itself), key=closeness, default=None)
    return f" Did you mean {near}?" if near is not None and closeness(near)[0] > 0.6 else ""


def _choice(path: CriticPath, built: Built) -> str:
    """The class that may have been meant, or all that there are."""
    return nearest(path, built) or listed(built)


def listed(built: Iterable[str], what: str = "Modules that were built") -> str:
    """All of them, as a sentence, if there are some."""
    names = ", ".join(sorted(built))
    return f" {what}: {names}." if names else ""


def _alike(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a.lower(), b.lower()).ratio()


def _own(value: Any) -> bool:
    """Whether it is a class of modules, and none of torch's."""
    cls = class_of(value)
    return cls is not None and issubclass(cls, nn.Module) and not cls.__module__.startswith("torch")


def mistake(path: CriticPath, built: Built) -> str | None:
    """Why no critic can ever be built under that name, and what to do; None: one may be."""
    if not path.modules() and not _can_be_imported(path.module):
        near = nearest(
            path, built
        )  # without one it may be a module that is made as the script runs
        return f"there is no module {path.module}.{near}" if near else None
    reasons = [_mistake(path, walk(module, path.names), built) for module in path.modules()]
    return reasons[0] if reasons and all(reasons) else None


def _can_be_imported(module: str) -> bool:
    """Whether there is a module of that name, as far as is known without importing any."""
    parent = module.rpartition(".")[0]
    name = module if not parent or parent in sys.modules else module.partition(".")[0]
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:  # the parent is no package
        return False
    except ValueError:  # something stands in its place
        return True


def _mistake(path: CriticPath, found: Found, built: Built) -> str | None:
    """The same, of the name as one module has it."""
    value, owner, part = found
    if isinstance(owner, type) and issubclass(owner, nn.Module) and part == path.names[-1]:
        return None  # an attribute, of a class that was not built yet
    if isinstance(owner, nn.Module):
        return f"what has {part!r} is {_instance(owner, f'.{part}')}"
    if value is MISSING or value is None:
        if _may_come(owner, part):
            return None
        if part == path.names[0]:
            return f"module {path.module} has no such class.{_choice(path, built)}"
        return f"{_words(owner)} has no {part}.{_choice(path, built)}"
    cls, name = class_of(value), ".".join(path.names)
    if cls is None and _defines(owner, part):  # a decorator has put something else in its place
        return None
    if cls is not None and issubclass(cls, nn.Module):
        return None
    while isinstance(value, functools.partial):
        value = value.func
    if cls is not None:
        what = "a class, but no torch.nn.Module: name the module in it that scores."
    elif isinstance(value, nn.Module):
        what = _instance(value)
    elif isinstance(value, types.ModuleType):
        what = f"a module: name a class in it, --critic {value.__name__}:CLASS."
    elif inspect.isroutine(value):
        what = f"a function: {_returned(value, built)}"
    else:
        what = f"a {type(value).__qualname__}, expected a class that is a torch.nn.Module."
    return f"{name} is {what}"


def _words(owner: Any) -> str:
    if isinstance(owner, types.ModuleType):
        return f"module {owner.__name__}"
    return title(owner) if hasattr(owner, "__qualname__") else f"a {title(type(owner))}"


def _instance(module: nn.Module, attribute: str = "") -> str:
    *_, inner = unwrapped(module)
    cls = type(inner)
    if cls.__module__.startswith("torch."):
        return (
            f"a {cls.__qualname__} of torch, as other networks may be: give it a class of its own, "
            f"such as class Critic(nn.{cls.__qualname__}), and name that."
        )
    return f"a {title(cls)}: pass --critic {title(cls)}{attribute}."


def _returned(function: Any, built: Built) -> str:
    """What to name instead of a function that makes a critic."""
    inside = [name for name in built if name.startswith(f"{title(function)}.")]
    made = " or ".join(inside or _used(function, built))
    return f"pass {f'--critic {made}' if made else 'the class of what it returns'}."


def _used(function: Any, built: Built) -> list[str]:
    """Of ``built``, what the code of a function speaks of."""
    code, scope = getattr(function, "__code__", None), getattr(function, "__globals__", {})
    if code is None:
        return []
    values = [scope.get(name) for name in code.co_names]
    modules = [value for value in values if isinstance(value, types.ModuleType)]
    values += [vars(module).get(name) for module in modules for name in code.co_names]
    titles = [title(cls) for cls in map(class_of, values) if cls is not None]
    return [name for name in dict.fromkeys(titles) if name in {*built}]


# --- what a module's source says of names ---------------------------------------------------------


def _may_come(owner: Any, name: str) -> bool:
    """Whether what has no ``name`` now may have it later, as its source has it."""
    if isinstance(owner, types.ModuleType) and "__getattr__" in vars(owner):
        return True  # it is asked for what it imports late
    if not isinstance(owner, types.ModuleType | types.FunctionType | type):
        return False
    tree = _tree(owner)
    return tree is None or name in _bound_in(tree)


def _defines(owner: Any, name: str) -> bool:
    """Whether a class of that name stands in the source."""
    tree = _tree(owner)
    nodes = ast.walk(tree) if tree is not None else ()
    return any(isinstance(node, ast.ClassDef) and node.name == name for node in nodes)


def _tree(owner: Any) -> ast.Module | None:
    """The source of a module, or of that of a class or function; None if there is none."""
    module = owner if isinstance(owner, types.ModuleType) else sys.modules.get(owner.__module__)
    try:
        return ast.parse(inspect.getsource(module)) if module is not None else None
    except (OSError, TypeError, SyntaxError, UnicodeDecodeError):
        return None


def _bound_in(tree: ast.Module) -> Iterator[str]:
    """Names that a module's source binds for the module, and those of classes anywhere in it.

    Texts too: they may be the names of what is made as the script runs.
    """
    nodes: list[tuple[ast.AST, bool]] = [(tree, False)]
    while nodes:
        node, local = nodes.pop()  # local: in a function, which binds names for itself alone
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.Global):
            yield from node.names
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not local:
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom) and not local:
            yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and not local:
            yield node.id
        local = local or function or isinstance(node, ast.Lambda)
        nodes += [(child, local) for child in ast.iter_child_nodes(node)]
