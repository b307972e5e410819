"""The source seam: calls in a script's own source, put there in memory or by `topk patch`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from topk_plugin.errors import NoEffectError, SeamNotFound, UnsupportedUpstream
from topk_plugin.hooks import Selection
from topk_plugin.seams.call import CallSeam
from topk_plugin.streams import count


class SourceSeam(CallSeam):
    """The call seam of an adapter whose patch is applied, or was applied on disk."""

    def apply(self) -> None:
        """See :meth:`CallSeam.apply`."""
        super().apply()
        if self not in _active:
            _active.append(self)
            self.topk.observers.append(self._step_counted)

    def undo(self) -> None:
        """See :meth:`CallSeam.undo`."""
        if self in _active:
            _active.remove(self)
        if self._step_counted in self.topk.observers:
            self.topk.observers.remove(self._step_counted)
        super().undo()

    # --- what the lines in the source call ------------------------------------------------------

    def gated(self, output: Any, heads: Sequence[str | int] = ()) -> Any:
        """What the critic returned in a generator step, with top-k on its way back."""
        self.called += 1
        return self._told(self.topk(output, heads))

    def followed(self, output: Any) -> Any:
        """Another output of the critic for the samples of the latest gated one."""
        return self._told(self.topk.follow(output))

    def _told(self, gated: Any) -> Any:
        if self._audit_output is not None:
            self._audit_output(gated)
        return gated

    def end_epoch(self) -> None:
        """An epoch ended."""
        if self.topk.config.every == "epoch":
            self.topk.end_epoch()

    def count(self, epoch: int, step: int) -> None:
        """So many epochs had ended, and generator steps were done, since upstream's first step."""
        self._epochs.count(epoch, step, self._records)

    # --- who ends the epochs --------------------------------------------------------------------

    def _step_counted(self, step: Selection) -> None:
        # two must not end the same epoch: lines in the source go before the DataLoader
        if self._tells_epochs():
            self.topk.training.progress.told_by_upstream("by lines in the source")
        self.topk.observers.remove(self._step_counted)

    def _tells_epochs(self) -> bool:
        """Whether a file that was imported or run says when an epoch ends."""
        patch, base = self.adapter.patch, self._upstream.base
        if patch is None or base is None:
            return False
        files = {(base / name).resolve() for name in patch.epoch_files}
        names = tuple(file.name for file in files)
        loaded = [getattr(module, "__file__", None) or "" for module in [*sys.modules.values()]]
        return any(Path(file).resolve() in files for file in loaded if file.endswith(names))

    def no_effect(self) -> UnsupportedUpstream | SeamNotFound | NoEffectError:
        """See :meth:`CallSeam.no_effect`."""
        patch = self.adapter.patch
        edited = self._wrapped_modules or self.in_source
        if self._refused is not None or patch is None or edited:
            return super().no_effect()
        return SeamNotFound(
            f"adapter {self.adapter.name}: none of {', '.join(patch.files)} in "
            f"{self._upstream.base} was imported or run, while "
            f"{count(self.topk.ledger.optimizer_steps, 'optimizer step')} ran. A process that a "
            "script starts runs the script from disk: put top-k there with `topk patch CHECKOUT "
            "--write` and run it with --topk. For a script of your own name its critic: --critic "
            "module:Class"
        )


_active: list[SourceSeam] = []


def active_seam() -> SourceSeam | None:
    """The seam that calls in a script's source are of, if there is one."""
    return _active[-1] if _active else None
