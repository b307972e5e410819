"""`topk run`: a script or module runs as under plain Python, with top-k in it.

topk run --adapter mimicry --gamma 0.99 -- train.py
topk run --critic __main__:Discriminator --gamma 0.99 -- train.py --dataset C10
topk run --critic model:DCGAN_D.main -- -m package.train
"""

from __future__ import annotations

import builtins
import concurrent.futures.thread
import contextlib
import functools
import importlib.machinery
import importlib.util
import json
import os
import shutil
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from topk_plugin import children
from topk_plugin.children import Report, Reports
from topk_plugin.config import TopKConfig
from topk_plugin.core.optimizers import listen, unlisten
from topk_plugin.errors import ConfigError, HookError, TopKError
from topk_plugin.loop.epochs import EpochTracker
from topk_plugin.monitor import Monitor
from topk_plugin.seams import CallSeam, CriticPath, CriticSeam
from topk_plugin.source.in_memory import code_of
from topk_plugin.topk import TopK
from topk_plugin.upstream.checkout import Upstream
from topk_plugin.upstream.known import find_adapter

USAGE_STATUS = 2
"""Exit status for a mistake in the command or the settings."""

NO_EFFECT_STATUS = 3
"""Exit status where top-k could not do its work."""


@dataclass(frozen=True)
class Launch:
    """What `topk run` was asked to do."""

    config: TopKConfig
    critic: str | None = None  # module:Class
    adapter: str | None = None  # its name; one of the two is given
    force: bool = False  # go on where an adapter's fingerprint does not match
    log: Path | None = None  # JSONL file, one line a generator step


class Activation:
    """Top-k in this process, from ``start()`` to ``close()``.

    Args:
        launch: what to do.
        roots: folders of the checkout that was launched.
        reports: of the processes that the script starts, where those have top-k too.
        child: this is one of them.
        patched: the script has top-k's calls in its source, and switches it on itself.

    Raises:
        ConfigError: a malformed critic path, an unknown adapter, or a log that cannot be written.
    """

    def __init__(
        self,
        launch: Launch,
        roots: Sequence[Path],
        reports: Reports | None = None,
        child: bool = False,
        patched: bool = False,
    ) -> None:
        self.topk = TopK(launch.config)
        self.seam = _seam(launch, self.topk, roots, patched)
        self.tracker = EpochTracker(self.topk)
        self.monitor = Monitor(self.seam, self.tracker, launch.log, self._begun, child)
        self.reports = reports
        self._name = ""  # of its report

    def start(self) -> None:
        """Switch top-k on.

        Raises:
            SeamNotFound, UnsupportedUpstream: see :meth:`CallSeam.apply`; nothing is left on then.
        """
        _take_over()  # of two gates each would mask what the other kept
        try:
            self.seam.apply()
        except BaseException:
            self.seam.undo()
            raise
        self.tracker.start()
        listen(self.topk.ledger)
        self.topk.ledger.whole_process = True
        running.append(self)
        if self.reports is not None:
            children.follow(self)

    def close(self, succeeded: bool, verdict: bool = True) -> TopKError | None:
        """Switch it off, and say the ``verdict``; the error to end in, if the run ``succeeded``."""
        children.unfollow(self)
        if self in running:
            running.remove(self)
        self.tracker.stop()
        unlisten(self.topk.ledger)
        try:
            return self.monitor.close(succeeded, verdict, self.of_children())
        finally:
            self.seam.undo()

    def of_children(self) -> list[Report]:
        """What the processes that the script started have reported."""
        return [] if self.reports is None or self.monitor.child else self.reports.read()

    # --- in a process that the script started ---------------------------------------------------

    def forking(self) -> None:
        """This process is about to be forked."""
        self.monitor.forking()

    def forked(self) -> None:
        """This process is a fork: a child of the script from now on."""
        self.monitor.forked()
        self._name = ""
        _inherited[:] = [self]

    def _begun(self) -> None:
        """At its first optimizer step a child tells the launcher: it may be killed later."""
        if self.monitor.child:
            self.tell(self.report(None, ended=False))

    def end(self) -> None:
        """This child ends, or another activation takes its place: its verdict, and its report."""
        if self in _inherited:
            _inherited.remove(self)
            failure = children.ending_exception()
            fatal = children.topk_error(failure)
            error = self.close(succeeded=failure is None)
            if self.topk.ledger.optimizer_steps or fatal is not None:
                self.tell(self.report(fatal or error, fatal=fatal is not None))

    def report(self, error: TopKError | None, fatal: bool = False, ended: bool = True) -> Report:
        """What was done here, for the launcher further out."""
        steps = self.monitor.steps + sum(report.steps for report in self.of_children())
        kind = None if error is None else type(error).__name__
        return Report(self.monitor.process, steps, ended, kind, str(error or ""), fatal)

    def tell(self, report: Report) -> None:
        """Leave a report with the launcher."""
        assert self.reports is not None  # only members of a run with children report
        self._name = self._name or children.report_name()
        try:
            self.reports.write(self._name, report)
        except OSError:  # the launcher has ended
            if report.error is not None and not report.fatal:
                failed(report.error)


running: list[Activation] = []
"""Those that were started in this process and not closed."""

_inherited: list[Activation] = []  # what this process has from a launcher further out


def inherit() -> None:
    """Switch top-k on in a process that a launched script started, and that imported torch.

    Raises:
        ConfigError, SeamNotFound, UnsupportedUpstream: top-k cannot be used in this process.
    """
    text = os.environ.get(children.VARIABLE)
    if text is None:  # taken away since
        return
    told: dict[str, Any] = json.loads(text)
    reports = Reports(Path(told.pop("reports")))
    roots = [Path(root) for root in told.pop("roots")]
    if told.pop("launcher") == os.getpid():  # by os.exec: nobody is left to read reports
        shutil.rmtree(reports.folder, ignore_errors=True)
    config, log = TopKConfig(**told.pop("config")), told.pop("log")
    launch = Launch(config, **told, log=None if log is None else Path(log))
    if not config.enabled:
        Upstream(find_adapter(str(launch.adapter)), roots).install()
        return
    activation = Activation(launch, roots, reports, child=True)
    activation.start()
    _inherited.append(activation)
    children.tell_end(activation)


def _take_over() -> Activation | None:
    """The activation that this process had from a launcher further out, which has ended now."""
    outer = _inherited[0] if _inherited else None
    if outer is not None:
        outer.end()
    return outer


@contextlib.contextmanager
def _handed_down(launch: Launch, roots: Sequence[Path]) -> Iterator[Reports]:
    """Processes that are started inside inherit the launch, and report."""
    log = launch.log and launch.log.absolute()
    with Reports.collected() as reports:
        told = asdict(launch) | {"log": log, "roots": list(roots), "reports": reports.folder}
        told["launcher"] = os.getpid()
        with children.environment(json.dumps(told, default=str)):
            yield reports


@contextlib.contextmanager
def stubs_handed_down(launch: Launch, roots: Sequence[Path]) -> Iterator[None]:
    """Processes that are started inside inherit what an adapter stands in for, and no top-k."""
    if launch.adapter is None:
        with children.environment(None):
            yield
    else:
        off = replace(launch, config=replace(launch.config, enabled=False), log=None)
        with _handed_down(off, roots):
            yield


def _seam(
    launch: Launch, topk: TopK, roots: Sequence[Path], patched: bool
) -> CriticSeam | CallSeam:
    if (launch.critic is None) == (launch.adapter is None):
        found = "both" if launch.critic else "neither"
        raise ConfigError(
            f"topk run: found {found} of --critic and --adapter, expected one: the critic's class, "
            "such as --critic model:Discriminator, or an adapter that `topk adapters` lists"
        )
    if launch.critic is not None:
        return CriticSeam(CriticPath.parse(launch.critic), topk)
    return CallSeam(find_adapter(str(launch.adapter)), topk, roots, launch.force, patched)


def run(launch: Launch, command: Sequence[str]) -> int:
    """Run ``command`` (a script or ``-m module``, with its arguments) with top-k in it.

    Returns the exit status: the script's own, or 3 where it succeeded and top-k had no effect.

    Raises:
        ConfigError: no such script or module, a malformed critic path, or an unknown adapter.
        SeamNotFound, UnsupportedUpstream: the adapter's upstream is not what it was written for.
    """
    start = prepare(command)
    outer = _take_over()
    roots = checkout_roots(command)
    if not launch.config.enabled:
        if launch.adapter is not None:  # so that the upstream runs with and without top-k
            Upstream(find_adapter(launch.adapter), roots).install()
        with stubs_handed_down(launch, roots):
            return execute(start)[0]
    with _handed_down(launch, roots) as reports:
        activation = Activation(launch, roots, reports)
        process, status, succeeded = os.getpid(), 1, False
        activation.start()
        try:
            status, succeeded = execute(start)
        finally:  # Ctrl-C passes through, with its verdict
            error = None
            if os.getpid() == process:  # a forked child that came back here has no say
                trained = activation.topk.ledger.optimizer_steps or activation.of_children()
                mistaken = status == USAGE_STATUS and not trained
                error = activation.close(succeeded, verdict=not mistaken)
                if outer is not None and trained:
                    outer.tell(activation.report(error))
    return status if error is None else failed(error)


def checkout_roots(command: Sequence[str]) -> list[Path]:
    """Folders of the launched checkout: where the command runs, and where its script lies."""
    here = Path.cwd()
    return [here] if command[0] == "-m" else [here, (here / command[0]).resolve().parent]


def prepare(command: Sequence[str]) -> Callable[[], None]:
    """What runs ``command``: its code is found and compiled now, so that mistakes show at once."""
    if not command:
        raise ConfigError(
            "topk run: found no script, expected one after --: topk run … -- train.py"
        )
    if command[0] == "-m":
        if len(command) < 2:
            raise ConfigError("topk run: -m needs a module, as in: -- -m package.train")
        return functools.partial(_start_module, command[1], list(command[2:]))
    script = Path(command[0])
    if not script.is_file():
        hint = "a script" if not script.is_dir() else "a script, not a folder"
        raise ConfigError(
            f"topk run: can't find {str(script)!r} in {os.getcwd()}; expected {hint} after --, "
            "or -m and a module"
        )
    return functools.partial(_start_script, command[0], list(command[1:]))


def _start_script(script: str, arguments: list[str]) -> None:
    path = os.path.join(os.getcwd(), script)  # absolute, as Python has it
    sys.argv = [script, *arguments]
    if not sys.flags.safe_path:
        sys.path[0] = os.path.dirname(os.path.realpath(script))
    main = _main_module(path)
    main.__loader__ = importlib.machinery.SourceFileLoader("__main__", path)
    main.__cached__ = None  # type: ignore[attr-defined]
    code = code_of(Path(path))
    if code is None:
        code = compile(Path(script).read_bytes(), path, "exec", dont_inherit=True)
    exec(code, main.__dict__)


def _start_module(name: str, arguments: list[str]) -> None:
    if not sys.flags.safe_path:
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
            f"topk run: no module named {name!r} from {os.getcwd()}; expected one that "
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
            print(stop.code, file=sys.stderr)
            status = 1
        return status, status == 0
    except TopKError as error:
        sys.last_value = error  # as Python does: atexit's functions may ask how the script ended
        return failed(error), False
    except KeyboardInterrupt as error:
        show, trace = sys.excepthook, _of_the_script(error)
        sys.excepthook = lambda kind, e, _: show(kind, e.with_traceback(trace), trace)
        raise
    except Exception as error:
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


def failed(error: TopKError) -> int:
    """Prints the error, and what made a plugin fail; the exit status it ends in."""
    if isinstance(error, HookError) and error.__cause__ is not None:
        traceback.print_exception(error.__cause__)
    print(f"topk: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    return USAGE_STATUS if isinstance(error, ConfigError) else NO_EFFECT_STATUS


def _of_the_script(error: BaseException) -> types.TracebackType | None:
    """The traceback without the launcher's frames."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace
