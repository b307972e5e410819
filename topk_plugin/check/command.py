"""`topk check`: does top-k, in the first steps of a script, do what the paper's line would do?

topk check --adapter mimicry --gamma 0.99 -- train.py
topk check --critic __main__:Discriminator --steps 10 -- train.py --dataset C10

The script runs unedited with top-k on, and every backward pass that goes through a gate is compared
with the literal formula. A loss behind a call seam is also called on the kept scores alone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from topk_plugin.check.audit import Audit
from topk_plugin.check.findings import findings
from topk_plugin.errors import ConfigError, NoEffectError, TopKError
from topk_plugin.run.activation import Activation, Launch, stubs_handed_down
from topk_plugin.run.execute import checkout_roots, execute, exit_status_of, prepare
from topk_plugin.streams import count, say

DISAGREES_STATUS = 3
"""Exit status where top-k is not what the formula gives."""


def check(launch: Launch, command: Sequence[str], wanted: int = 5) -> int:
    """Run ``command`` with top-k for ``wanted`` generator steps, and print what the audit found.

    k is held at nu of the batch from the first step on (at half of it for nu = 1): at k = B there
    is nothing to audit.

    Returns the exit status: the script's own if it failed, 3 where top-k is not the formula.

    Raises:
        ConfigError: see :func:`topk_plugin.run.launch.run`; top-k is switched off; no step is
            wanted.
        NoEffectError, SeamNotFound: no generator step was audited.
    """
    if wanted < 1:
        raise ConfigError(f"--steps: found {wanted}, expected a number of generator steps >= 1")
    if not launch.config.enabled:
        raise ConfigError("topk check: top-k is switched off, so there is nothing to audit")
    start = prepare(command)
    activation = Activation(launch, checkout_roots(command))
    topk, process = activation.topk, os.getpid()
    held = launch.config.nu if launch.config.nu < 1 else 0.5
    topk.training.progress.hold(held)
    audit = Audit(topk, activation.seam, wanted)
    activation.start()
    try:
        with audit, stubs_handed_down(launch, checkout_roots(command)):
            status, _ = execute(start)
    finally:
        if os.getpid() == process:  # a forked child that came back here has no say
            activation.close(succeeded=False, verdict=False)
    if os.getpid() != process or (status and not audit.steps):
        return status
    if not audit.steps:
        raise _nothing(audit)
    ended = "" if len(audit.telling) >= wanted else f" (of {wanted} that were wanted)"
    title = f"{count(len(audit.steps), 'generator step')}{ended}, k held at {held:g} of the batch"
    found = findings(audit, activation, f"top-k check of {activation.seam}: {title}")
    if os.environ.get("RANK", "0") == "0":  # under torchrun one rank speaks
        say("\n".join(found.lines()), "stdout")
    if status:
        return status
    try:
        topk.check()
    except TopKError as error:
        return exit_status_of(error)
    return 0 if found.agrees else DISAGREES_STATUS


def _nothing(audit: Audit) -> TopKError:
    """Why no generator step was audited."""
    if audit.unaudited:
        why = "; ".join(dict.fromkeys(audit.unaudited))
        return NoEffectError(
            f"topk check: {count(len(audit.unaudited), 'generator step')} ran, and none could be "
            f"audited: {why}. `topk run` says what it gates"
        )
    if not audit.topk.ledger.optimizer_steps:
        return NoEffectError(
            "topk check: in this process no optimizer stepped before the script ended, so there "
            "was nothing to audit; expected a script that trains by itself, not in processes that "
            "it starts"
        )
    error: TopKError = audit.seam.no_effect()
    return error
