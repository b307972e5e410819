"""Many jobs: several at a time, each in a process of its own."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from topk_plugin.errors import RunError, TopKError
from topk_plugin.reference.runs import ranks
from topk_plugin.reference.runs.job import train
from topk_plugin.reference.runs.records import Job


def train_all(jobs: Sequence[Job], workers: int, show: Callable[[int, int, int], None]) -> None:
    """Train jobs, ``workers`` at a time, each in a process of its own if there are several.

    Args:
        show: called with a job's index, its iterations done, and their number.

    Raises:
        TopKError: of the first job that failed; the others are stopped, and can be resumed.
    """
    if len(jobs) == 1 or workers == 1 or ranks.world() > 1:
        threads = torch.get_num_threads()
        if jobs[0].device == "cpu":
            torch.set_num_threads(1)  # as in a worker, so that rounding is the same
        try:
            for index, job in enumerate(jobs):
                with _named(job):
                    train(job, lambda done, total, index=index: show(index, done, total))  # type: ignore[misc]
        finally:
            torch.set_num_threads(threads)
        return
    context = multiprocessing.get_context("spawn")
    waiting, messages = context.Queue(), context.Queue()
    for item in [*enumerate(jobs), *[None] * workers]:
        waiting.put(item)
    processes = [
        context.Process(target=_work, args=(waiting, messages), daemon=True)
        for _ in range(min(workers, len(jobs)))
    ]
    for process in processes:
        process.start()
    left = len(jobs)
    try:
        while left:
            alive = any(process.is_alive() for process in processes)  # asked before the messages
            try:
                index, message = messages.get(timeout=1)
            except queue.Empty:
                if not alive:
                    raise RunError(
                        "the worker processes ended without a word (killed, or out of memory); "
                        "give the same command again: it goes on from the last checkpoints"
                    ) from None
                continue
            if message is None:
                left -= 1
            elif isinstance(message, tuple):
                show(index, *message)
            else:
                raise message
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def keep_memory() -> None:
    """Lets glibc keep the blocks that a step frees, for the next step; other libraries are left.

    To take a MiB or two from the system anew for each layer costs the stacked trainer some 4%.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # musl has none
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, the most that it takes
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def _work(waiting: Any, messages: Any) -> None:
    """A worker: trains jobs until there are none, and ends with the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    parent = multiprocessing.parent_process()
    assert parent is not None  # this runs in a child

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    keep_memory()
    torch.set_num_threads(1)
    while (item := waiting.get()) is not None:
        index, job = item
        try:
            with _named(job):
                train(job, lambda done, total: messages.put((index, (done, total))))  # noqa: B023
            messages.put((index, None))
        except TopKError as error:
            messages.put((index, error))


@contextmanager
def _named(job: Job) -> Iterator[None]:
    """Whatever else ends a job, such as too little memory, as an error that names it."""
    try:
        yield
    except TopKError:
        raise
    except Exception as error:
        raise RunError(f"{job.folder}: {type(error).__name__}: {error}") from error
