"""Top-k in a script's own source: what the lines call that `topk patch` puts there.

`topk run` puts some of the same lines in when it reads the source, and has switched top-k on by
then. Otherwise the script does so itself, with ``topk.start(arguments, adapter)``; before that, and
without ``--topk``, every call here is the identity.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import util
from pathlib import Path
from typing import Any

from torch import nn

from topk_plugin import config
from topk_plugin.config import TopKConfig
from topk_plugin.errors import ConfigError, TopKError, UnsupportedUpstream
from topk_plugin.run.activation import Activation, Launch, running
from topk_plugin.run.children import ending_exception
from topk_plugin.run.execute import exit_status_of
from topk_plugin.seams.source import active_seam


class ScriptTopK:
    """The top-k of this process, for its script."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add ``--topk --topk-gamma --topk-nu …`` to the script's parser."""
        config.add_arguments(parser)

    def start(self, arguments: argparse.Namespace | Mapping[str, Any], adapter: str) -> None:
        """Switch top-k on, if the arguments say so; the verdict comes when the process ends.

        Args:
            arguments: what the script's parser read, as it is or as a mapping; or a mapping with
                StudioGAN's section ``LOSS``.
            adapter: name of the adapter whose patch this is.

        A wrong setting, or top-k that is on already, ends the script with exit status 2. Otherwise
        the status is the script's own: that nothing was gated is said, and changes no status.
        """
        try:
            self._start(arguments, adapter)
        except TopKError as error:
            sys.exit(exit_status_of(error))

    def _start(self, arguments: argparse.Namespace | Mapping[str, Any], adapter: str) -> None:
        if isinstance(arguments, Mapping) and "LOSS" in arguments:
            settings = TopKConfig.from_config(arguments, path=adapter)
        else:
            given = vars(arguments) if isinstance(arguments, argparse.Namespace) else arguments
            settings = TopKConfig.from_args(argparse.Namespace(**given))
        if not settings.enabled:
            return
        if running:
            raise ConfigError(
                "found top-k switched on twice, by `topk run` or an earlier start and by the "
                "script's own --topk; leave one of them out"
            )
        main = getattr(sys.modules["__main__"], "__file__", None)
        roots = [Path.cwd(), *([Path(main).parent] if main else [])]
        activation = Activation(Launch(settings, adapter=adapter), roots, in_source=True)
        activation.start()
        # multiprocessing's processes leave by os._exit, without what atexit has
        util.Finalize(None, _end, (activation,), exitpriority=0)

    def __call__(self, output: Any, heads: Sequence[str | int] = ()) -> Any:
        """What the critic returned in a generator step, unchanged; k rows of its gradient stay.

        Args:
            output, heads: see :meth:`topk_plugin.TopK.__call__`.

        Raises:
            ScoreShapeError: no score per sample in it.
        """
        seam = active_seam()
        return output if seam is None else seam.gated(output, heads)

    def follow(self, output: Any) -> Any:
        """Another output of the critic for the same samples; see TopK.follow()."""
        seam = active_seam()
        return output if seam is None else seam.followed(output)

    def refuse(self, reason: str) -> None:
        """A script of the repository that top-k can do nothing for: it ends here, if top-k is on.

        Raises:
            UnsupportedUpstream: with the ``reason``; an edited script ends with its message.
        """
        if (seam := active_seam()) is None:
            return
        error = UnsupportedUpstream(f"adapter {seam.adapter.name}: {reason}")
        if seam.in_source:
            sys.exit(exit_status_of(error))
        raise error

    def end_epoch(self) -> None:
        """A pass over the real data ended."""
        if (seam := active_seam()) is not None:
            seam.end_epoch()

    def reach_epoch(self, epoch: int, step: int) -> None:
        """The script's own counters: epochs ended and generator steps done, resumed ones too."""
        if (seam := active_seam()) is not None:
            seam.count(epoch, step)

    def k(self, batch: int) -> int | None:
        """Rows of a batch that are kept now; None where top-k is not on."""
        seam = active_seam()
        return None if seam is None else seam.topk.k(batch)

    def keep_record(self, critic: nn.Module) -> None:
        """The checkpoints of this critic carry top-k's epoch, settings and votes from now on."""
        if (seam := active_seam()) is not None:
            seam.keep_record(critic)


def _end(activation: Activation) -> None:
    """The process ends: its verdict."""
    error = activation.close(succeeded=ending_exception() is None)
    if error is not None:
        exit_status_of(error)


topk = ScriptTopK()
