"""`topk run`: a script or module runs as under plain Python, with top-k in it.

topk run --adapter mimicry --gamma 0.99 -- train.py
topk run --critic __main__:Discriminator --gamma 0.99 -- train.py --dataset C10
topk run --critic model:DCGAN_D.main -- -m package.train
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack

from topk_plugin.run.activation import (
    Activation,
    Launch,
    handed_down,
    stubs_handed_down,
    take_over,
)
from topk_plugin.run.execute import USAGE_STATUS, checkout_roots, execute, exit_status_of, prepare
from topk_plugin.upstream.checkout import Upstream
from topk_plugin.upstream.known import find_adapter


def run(launch: Launch, command: Sequence[str]) -> int:
    """Run ``command`` (a script or ``-m module``, with its arguments) with top-k in it.

    Returns the exit status: the script's own, or 3 where it succeeded and top-k had no effect.

    Raises:
        ConfigError: no such script or module, a malformed critic path, or an unknown adapter.
        SeamNotFound, UnsupportedUpstream: the adapter's upstream is not what it was written for.
    """
    start = prepare(command)
    outer = take_over()
    roots = checkout_roots(command)
    if not launch.config.enabled:
        if launch.adapter is not None:  # so that the upstream runs with and without top-k
            Upstream(find_adapter(launch.adapter), roots).install()
        with stubs_handed_down(launch, roots):
            return execute(start)[0]
    with ExitStack() as stack:
        activation = Activation(launch, roots, stack.enter_context(handed_down(launch, roots)))
        process, status, succeeded = os.getpid(), 1, False

        def finish(status: int, succeeded: bool) -> int:
            trained = activation.topk.ledger.optimizer_steps or activation.of_children()
            mistaken = status == USAGE_STATUS and not trained
            error = activation.close(succeeded, verdict=not mistaken)
            if outer is not None and trained:
                outer.tell(activation.report(error))
            return status if error is None else exit_status_of(error)

        def leave(status: int) -> int:
            with stack:
                return finish(status, status == 0)

        activation.finish = leave
        activation.start()
        try:
            status, succeeded = execute(start)
        finally:  # Ctrl-C passes through, with its verdict
            if os.getpid() == process:  # a forked child that came back here has no say
                status = finish(status, succeeded)
    return status
