"""A script or module runs as under plain Python, and what it ends in."""

from __future__ import annotations

import builtins
import concurrent.futures.thread
import functools
import importlib.machinery
import importlib.util
import os
import sys
import threading
import traceback
import types
from collections.abc import Callable, Sequence
from pathlib import Path

from topk_plugin.compat import SAFE_PATH
from topk_plugin.errors import ConfigError, HookError, TopKError
from topk_plugin.loop.traced import refusal
from topk_plugin.source.in_memory import code_of
from topk_plugin.streams import say

USAGE_STATUS = 2
"""Exit status for a mistake in the command or the settings."""

NO_EFFECT_STATUS = 3
"""Exit status where top-k could not do its work."""


def checkout_roots(command: Sequence[str]) -> list[Path]:
    """Folders of the launched checkout: where the command runs, and where its script lies."""
    here = Path.cwd()
    return [here] if command[0] == "-m" else [here, (here / command[0]).resolve().parent]


def prepare(command: Sequence[str]) -> Callable[[], None]:
    """What runs ``command``: its code is found and compiled now, so that mistakes show at once."""
    if not command:
        raise ConfigError("found no script, expected one after --, such as: -- train.py")
    if command[0] == "-m":
        if len(command) < 2:
            raise ConfigError("-m needs a module, as in: -- -m package.train")
        return functools.partial(_start_module, command[1], list(command[2:]))
    script = Path(command[0])
    if not script.is_file():
        hint = "a script" if not script.is_dir() else "a script, not a folder"
        raise ConfigError(
            f"can't find {str(script)!r} in {os.getcwd()}; expected {hint} after --, "
            "or -m and a module"
        )
    return functools.partial(_start_script, command[0], list(command[1:]))


def _start_script(script: str, arguments: list[str]) -> None:
    path = os.path.join(os.getcwd(), script)  # absolute, as Python has it
    sys.argv = [script, *arguments]
    if not SAFE_PATH:
        sys.path[0] = os.path.dirname(os.path.realpath(script))
    main = _main_module(path)
    main.__loader__ = importlib.machinery.SourceFileLoader("__main__", path)
    main.__cached__ = None  # type: ignore[attr-defined]
    code = code_of(Path(path))
    if code is None:
        code = compile(Path(script).read_bytes(), path, "exec", dont_inherit=True)
    exec(code, main.__dict__)


def _start_module(name: str, arguments: list[str]) -> None:
    if not SAFE_PATH:
        sys.path[0] = os.getcwd()
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.__main__.".startswith(f"{error.name}."):
            raise  # an import of the package's own
        spec = None
    code = code_of(Path(spec.origin)) if spec and spec.origin else None
    if code is None:
        code = spec.loader.get_code(spec.name) if spec and spec.loader else None  # type: ignore[attr-defined]
    if spec is None or code is None:
        raise ConfigError(
            f"no module named {name!r} from {os.getcwd()}; expected one that "
            f"`python -m {name}` runs"
        )
    sys.argv = [spec.origin or name, *arguments]
    main = _main_module(spec.origin)
    main.__spec__, main.__loader__, main.__package__ = spec, spec.loader, spec.parent
    main.__cached__ = spec.cached  # type: ignore[attr-defined]
    exec(code, main.__dict__)


def _main_module(path: str | None) -> types.ModuleType:
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=path, __builtins__=builtins, __annotations__={})
    sys.modules["__main__"] = main
    return main


def execute(start: Callable[[], None]) -> tuple[int, bool]:
    """Exit status of the script, and whether it ended by itself with success."""
    before = set(threading.enumerate())
    try:
        try:
            start()
        finally:
            _join_threads(before)
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            status = stop.code or 0
        else:
            say(str(stop.code))
            status = 1
        return status, status == 0
    except TopKError as error:
        sys.last_value = error  # as Python does: atexit's functions may ask how the script ended
        return exit_status_of(error), False
    except KeyboardInterrupt as error:
        show, trace = sys.excepthook, _of_the_script(error)
        sys.excepthook = lambda kind, e, _: show(kind, e.with_traceback(trace), trace)
        raise
    except Exception as error:
        refused = refusal(error)
        if refused is not None:
            sys.last_value = refused
            return exit_status_of(refused), False
        trace = _of_the_script(error)
        sys.last_type, sys.last_value, sys.last_traceback = type(error), error, trace
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        return 1, False
    return 0, True


def _join_threads(before: set[threading.Thread]) -> None:
    """Plain Python waits for the script's threads before it exits: they may be training.

    Not for idle workers of executors, which only the interpreter's exit tells to stop.
    """
    workers = {*concurrent.futures.thread._threads_queues}
    if "concurrent.futures.process" in sys.modules:
        workers |= {*sys.modules["concurrent.futures.process"]._threads_wakeups}
    for thread in set(threading.enumerate()) - before:
        if not thread.daemon and thread not in workers:
            thread.join()


def exit_status_of(error: TopKError) -> int:
    """Prints the error, and what made a plugin fail; the exit status it ends in."""
    if isinstance(error, HookError) and error.__cause__ is not None:
        say("".join(traceback.format_exception(error.__cause__)).rstrip())
    say(f"topk: {type(error).__name__}: {error}")
    return USAGE_STATUS if isinstance(error, ConfigError) else NO_EFFECT_STATUS


def _of_the_script(error: BaseException) -> types.TracebackType | None:
    """The traceback without the launcher's frames."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace
