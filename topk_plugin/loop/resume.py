"""Where the epoch is kept in loops that are not ours: in the checkpoints they write anyway.

The record (``TopK.state_dict()``) goes into the metadata of the critic's ``state_dict``, which
``torch.save`` keeps and a strict load without the plugin ignores, and into an extra key of the
generator optimizer's ``state_dict``, which ``Optimizer.load_state_dict`` ignores. Either restores.
Distributed checkpoints have neither: see :mod:`topk_plugin.loop.distributed_checkpoint`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from topk_plugin.core.training import Training
from topk_plugin.hooks import Selection
from topk_plugin.loop.distributed_checkpoint import KEY, unwatch, watch
from topk_plugin.loop.wrappers import unwrapped
from topk_plugin.monkeypatch import ClassPatches
from topk_plugin.streams import warn
from topk_plugin.topk import TopK

_recorded: weakref.WeakKeyDictionary[nn.Module, ResumeRecord] = weakref.WeakKeyDictionary()
_records: weakref.WeakSet[ResumeRecord] = weakref.WeakSet()


class ResumeRecord:
    """Keeps ``topk``'s epoch in the checkpoints of ``critic`` and of the generator's optimizer.

    Args:
        critic: None where it is not found yet: what is loaded is heard of then.
        gated: the critic's own gates say which training it takes part in; else it is the one that
            counts the next generator step.
    """

    def __init__(self, critic: nn.Module | None, topk: TopK, gated: bool = False) -> None:
        self.topk, self.gated = topk, gated
        self.training: Training | None = None  # that the critic took part in
        self._classes = [type(module) for module in unwrapped(critic)]
        self.loaded = False  # weights were loaded into the critic
        self.found = False  # ... or an optimizer's state, with a record
        self._replaced = False  # a distributed checkpoint was loaded
        for module in unwrapped(critic):
            _recorded[module] = self
            _methods.wrap(type(module))
        topk.observers.append(self._step_counted)
        _records.add(self)
        watch(self)
        if not _optimizers.holds(Optimizer):
            _optimizers.wrap(Optimizer)

    def remove(self) -> None:
        """Checkpoints written from now on carry no record."""
        for module, record in list(_recorded.items()):
            if record is self:
                del _recorded[module]
        for cls in self._classes:
            _methods.unwrap(cls)
        _records.discard(self)
        unwatch(self)
        if self._step_counted in self.topk.observers:
            self.topk.observers.remove(self._step_counted)
        if not _records and _optimizers.holds(Optimizer):
            _optimizers.unwrap(Optimizer)

    def restore(self, record: Any) -> None:
        """A checkpoint was loaded; ``record`` is None if it carries nothing of ours."""
        if self.training is not None and self.training.progress.begun:
            return  # weights put back in mid-run: the passes over the data are not undone
        self.loaded = True
        if self._replaced and isinstance(record, dict) and record.get("steps") == 0:
            return  # what this run began with: other tensors were put in its place since
        self._go_on(record)

    def read(self, record: dict[str, Any] | None) -> None:
        """A distributed checkpoint was loaded into a ``state_dict`` of this run's own."""
        if self.training is None or not self.training.progress.begun:
            self._replaced = True
            self._go_on(record)

    def _go_on(self, record: dict[str, Any] | None) -> None:
        if record is not None:
            self.topk.load_state_dict(record, self.topk.trainings.upcoming())
            self.found = True

    def state(self) -> dict[str, Any]:
        """What goes into the critic's checkpoint."""
        topk = self.topk
        other = topk.trainings.upcoming() if self.gated else topk.training
        return topk.state_dict(self.training or other)

    def _step_counted(self, step: Selection) -> None:
        training = self.topk.training
        if self.training is None and not self.gated:
            self.training = training
        if self.training is not training:
            return
        config = self.topk.config
        known = self.found or config.start_epoch
        if self.loaded and not known and config.gamma < 1:
            warn(
                "weights were loaded into the critic from a checkpoint without a top-k record, so "
                "k starts at the whole batch. If this run goes on from an earlier one, say how "
                "many epochs had ended: --start-epoch T (or TopK(start_epoch=T)).",
                stacklevel=2,
            )
        self.topk.observers.remove(self._step_counted)


def _saving(original: Callable[..., None]) -> Callable[..., None]:
    def save(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        record = _recorded.get(self)
        destination = _argument("destination", 0, args, kwargs)
        metadata = getattr(destination, "_metadata", None)
        if record is not None and metadata is not None:
            prefix = _argument("prefix", 1, args, kwargs)
            metadata.setdefault(prefix[:-1], {})[KEY] = record.state()

    return save


def _loading(original: Callable[..., None]) -> Callable[..., None]:
    def load(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        record = _recorded.get(self)
        if record is not None:
            record.restore(_argument("local_metadata", 2, args, kwargs).get(KEY))
        original(self, *args, **kwargs)

    return load


def records_in(state_dict: Any) -> list[dict[str, Any]]:
    """Those of critics in what a module is going to load."""
    metadata = getattr(state_dict, "_metadata", {}).values()
    return [of_module[KEY] for of_module in metadata if KEY in of_module]


def _argument(name: str, position: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One of the arguments of a method of torch's, given in either way."""
    return args[position] if position < len(args) else kwargs[name]


# every save and load of a module goes through these two
_methods = ClassPatches({"_save_to_state_dict": _saving, "_load_from_state_dict": _loading})


def _saving_optimizer(save: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def state_dict(self: Optimizer, *args: Any, **kwargs: Any) -> dict[str, Any]:
        state = save(self, *args, **kwargs)
        for record in list(_records):
            training = record.topk.trainings.of_optimizer(self)
            if training is not None:
                state[KEY] = record.topk.state_dict(training)
        return state

    return state_dict


def _loading_optimizer(load: Callable[..., None]) -> Callable[..., None]:
    def load_state_dict(self: Optimizer, *args: Any, **kwargs: Any) -> None:
        load(self, *args, **kwargs)
        state = _argument("state_dict", 0, args, kwargs)
        for record in list(_records) if KEY in state else ():
            if record.topk.trainings.of_optimizer(self) is None:
                record.restore(state[KEY])

    return load_state_dict


_optimizers = ClassPatches({"state_dict": _saving_optimizer, "load_state_dict": _loading_optimizer})
