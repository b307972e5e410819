"""Top-k in one process, from its start to its end, and what its children inherit."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from topk_plugin.config import TopKConfig
from topk_plugin.core.optimizers import listen, unlisten
from topk_plugin.errors import ConfigError, TopKError
from topk_plugin.finding.seam import FindingSeam
from topk_plugin.loop.epochs import EpochTracker
from topk_plugin.plugins.live_view import LiveView
from topk_plugin.run import children
from topk_plugin.run.children import ChildReport, Reports
from topk_plugin.run.execute import exit_status_of
from topk_plugin.run.leaving import before_leaving
from topk_plugin.run.monitor import Monitor
from topk_plugin.seams import Seam
from topk_plugin.seams.call import CallSeam
from topk_plugin.seams.critic import CriticSeam, parse_critics
from topk_plugin.seams.source import SourceSeam
from topk_plugin.topk import TopK
from topk_plugin.upstream.checkout import Upstream
from topk_plugin.upstream.known import find_adapter


@dataclass(frozen=True)
class Launch:
    """What `topk run` was asked to do."""

    config: TopKConfig
    critic: tuple[str, ...] = ()  # module:Class each, perhaps with =heads
    adapter: str | None = None  # its name; of the two one is given, or none
    force: bool = False  # go on where an adapter's fingerprint does not match
    log: Path | None = None  # JSONL file, one line a generator step
    find: bool = False  # the critics, also where there is an adapter
    tensorboard: Path | None = None  # folder of event files
    wandb: bool = False  # into the run that the script opens

    def views(self, child: bool = False) -> list[LiveView]:
        """What shows the run while it trains.

        Args:
            child: in a process that the script started.

        Raises:
            ConfigError: a package is not installed.
        """
        found = []
        if self.tensorboard is not None:
            view = LiveView.of_child if child else LiveView.to_tensorboard
            found.append(view(self.tensorboard))
        if self.wandb:
            found.append(LiveView.to_wandb())
        return found


class Activation:
    """Top-k in this process, from ``start()`` to ``close()``.

    Args:
        launch: what to do.
        roots: folders of the checkout that was launched.
        reports: of the processes that the script starts, where those have top-k too.
        child: this is one of them.
        in_source: the script has top-k's calls in its source, and switches it on itself.

    Raises:
        ConfigError: a malformed critic path, an unknown adapter, or a log that cannot be written.
    """

    def __init__(
        self,
        launch: Launch,
        roots: Sequence[Path],
        reports: Reports | None = None,
        child: bool = False,
        in_source: bool = False,
    ) -> None:
        self.views = launch.views(child)
        self.topk = TopK(launch.config, hooks=self.views)
        self.topk.reminder.detach()  # the verdict says it
        self.seam = _seam(launch, self.topk, roots, in_source)
        self.tracker = EpochTracker(self.topk)
        self.monitor = Monitor(self.seam, self.tracker, launch.log, self._begun, child)
        self.reports = reports
        self.finish = self._finish  # told of the exit status where the script leaves by os._exit
        self._stay = lambda: None
        self._process = 0  # in which it was switched on
        self._name = ""  # of its report

    def start(self) -> None:
        """Switch top-k on.

        Raises:
            SeamNotFound, UnsupportedUpstream: see :meth:`CallSeam.apply`; nothing is left on then.
        """
        take_over()  # of two gates each would mask what the other kept
        try:
            self.seam.apply()
        except BaseException:
            self.seam.undo()
            raise
        self.tracker.start()
        listen(self.topk.ledger)
        self.topk.ledger.whole_process = True
        running.append(self)
        self._process = os.getpid()
        self._stay = before_leaving(self._leaving)
        if self.reports is not None:
            children.follow(self)

    def close(self, succeeded: bool, verdict: bool = True) -> TopKError | None:
        """Switch it off, and say the ``verdict``; the error to end in, if the run ``succeeded``."""
        children.unfollow(self)
        self._stay()
        if self in running:
            running.remove(self)
        self.tracker.stop()
        unlisten(self.topk.ledger)
        try:
            for view in self.views:
                view.close()
            return self.monitor.close(succeeded, verdict, self.of_children())
        finally:
            self.seam.undo()

    def _leaving(self, status: int) -> int:
        if self.monitor.child:
            self.end(succeeded=status == 0)
            return status  # its launcher is told of an error
        if os.getpid() != self._process:
            return status  # a fork, such as a DataLoader's worker, of which nobody was told
        return self.finish(status)

    def _finish(self, status: int) -> int:
        """The script leaves by os._exit: its verdict; the status that it ends in."""
        error = self.close(succeeded=status == 0)
        return status if error is None else exit_status_of(error)

    def of_children(self) -> list[ChildReport]:
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

    def end(self, succeeded: bool = True) -> None:
        """This child ends, or another activation takes its place: its verdict, and its report.

        Args:
            succeeded: as far as the exit status tells.
        """
        if self in _inherited:
            _inherited.remove(self)
            failure = children.ending_exception()
            fatal = children.topk_error(failure)
            error = self.close(succeeded=succeeded and failure is None)
            if self.topk.ledger.optimizer_steps or fatal is not None:
                self.tell(self.report(fatal or error, fatal=fatal is not None))

    def report(
        self, error: TopKError | None, fatal: bool = False, ended: bool = True
    ) -> ChildReport:
        """What was done here, for the launcher further out."""
        steps = self.monitor.steps + sum(report.steps for report in self.of_children())
        kind = None if error is None else type(error).__name__
        return ChildReport(self.monitor.process, steps, ended, kind, str(error or ""), fatal)

    def tell(self, report: ChildReport) -> None:
        """Leave a report with the launcher."""
        assert self.reports is not None  # only members of a run with children report
        self._name = self._name or children.report_name()
        try:
            self.reports.write(self._name, report)
        except OSError:  # the launcher has ended
            if report.error is not None and not report.fatal:
                exit_status_of(report.error)


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
    config, critic = TopKConfig(**told.pop("config")), tuple(told.pop("critic"))
    files = {name: told.pop(name) for name in ("log", "tensorboard")}
    told |= {name: None if file is None else Path(file) for name, file in files.items()}
    launch = Launch(config, critic, **told)
    if not config.enabled:
        Upstream(find_adapter(str(launch.adapter)), roots).install()
        return
    activation = Activation(launch, roots, reports, child=True)
    activation.start()
    _inherited.append(activation)
    children.tell_end(activation)


def take_over() -> Activation | None:
    """The activation that this process had from a launcher further out, which has ended now."""
    outer = _inherited[0] if _inherited else None
    if outer is not None:
        outer.end()
    return outer


@contextlib.contextmanager
def handed_down(launch: Launch, roots: Sequence[Path]) -> Iterator[Reports]:
    """Processes that are started inside inherit the launch, and report."""
    given = {"log": launch.log, "tensorboard": launch.tensorboard}
    files = {name: file and file.absolute() for name, file in given.items()}
    with Reports.collected() as reports:
        told = asdict(launch) | files | {"roots": list(roots), "reports": reports.folder}
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
        off = replace(
            launch, config=replace(launch.config, enabled=False), log=None, tensorboard=None
        )
        with handed_down(off, roots):
            yield


def _seam(launch: Launch, topk: TopK, roots: Sequence[Path], in_source: bool) -> Seam:
    if launch.critic and (launch.adapter is not None or launch.find):
        other = "--find" if launch.find else "--adapter"
        raise ConfigError(
            f"found both of --critic and {other}, expected one of them, or nothing: "
            "then the critics are found"
        )
    if launch.critic:
        return CriticSeam(parse_critics(launch.critic), topk)
    if launch.adapter is None:
        return FindingSeam(topk)
    adapter = find_adapter(launch.adapter)
    if launch.find:
        return FindingSeam(topk, Upstream(adapter, roots))
    kind = SourceSeam if adapter.seam == "source" or in_source else CallSeam
    return kind(adapter, topk, roots, launch.force, in_source)
