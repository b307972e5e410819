"""Whose rows compete: those of one critic call, of all ranks, of all micro-batches."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, distributed

from topk_plugin.core.contest import Contest, Gathered
from topk_plugin.core.schedule import k_of
from topk_plugin.errors import ConfigError, RanksApart

HEADER = 3
"""Numbers before a rank's rows in what is gathered: how many they are, its lean, its fraction."""

LOOKS = 3
"""Gathers on a CUDA device after which nobody looks whether a rank has more rows than before."""


_sent: deque[list[Tensor]] = deque(maxlen=4)
"""What went to other ranks last, held for as long as the process may need. Gloo's thread lets go of
it some time after the caller has gone on. Were that the last reference, the thread would ask for
Python's lock to free the tensor, and a process group that ends waits for its threads with that lock
in its hands: of 657 runs with 4 ranks on 2 busy cores 4 never ended (torch 2.4.1)."""


class Ranks:
    """The ranks of one process group; what they gather is the same on all.

    All ranks send as many numbers: those of the largest batch so far. Where a rank has more rows
    than that, all see it in the header and gather once more.

    Args:
        group: None: that of all processes.
    """

    def __init__(self, group: distributed.ProcessGroup | None = None) -> None:
        self.group = group
        self.rows: int | None = None  # of all ranks in the latest gather, where somebody looked
        self._room, self._looked = 1, 0

    @property
    def size(self) -> int:
        """How many they are."""
        return distributed.get_world_size(self.group)

    @property
    def rank(self) -> int:
        """Of this process, among them."""
        return distributed.get_rank(self.group)

    def gather(self, rows: Tensor, lean: Tensor, fraction: float) -> Gathered:
        """All ranks' ``rows`` (n,), float64; see :class:`~topk_plugin.core.contest.Gathered`.

        Raises:
            RanksApart: a rank does not take part.
            ConfigError: this rank's batch grew late, on a device that nobody waits for.
        """
        looks = not rows.is_cuda or self._looked < LOOKS
        if len(rows) > self._room and not looks:
            raise ConfigError(
                f'scope="global": found a batch of {len(rows)} rows after {LOOKS} generator steps '
                f"with at most {self._room} on any rank, expected the largest batches first. Put "
                "smaller ones last, or use scope=\"rank\"."
            )  # fmt: skip
        self._looked += 1
        while True:
            sent = rows.new_zeros(HEADER + self._room)
            sent[0].fill_(len(rows))
            sent[1].copy_(lean)
            sent[2].fill_(fraction)
            sent[HEADER : HEADER + len(rows)] = rows[: self._room]
            table = self._all_gather(sent)
            if looks:
                sizes = [int(size) for size in table[:, 0].tolist()]
                self.rows = sum(sizes)
                if max(sizes) > self._room:
                    self._room = max(sizes)
                    continue
            sizes_, leans, fractions = table[:, :HEADER].unbind(dim=1)
            return Gathered(table[:, HEADER:], sizes_, leans, fractions[0], self.rank)

    def _all_gather(self, sent: Tensor) -> Tensor:
        table = sent.new_empty(self.size, len(sent))
        received = list(table.unbind())
        _sent.append([sent, *received])
        try:
            distributed.all_gather(received, sent, group=self.group)
        except RuntimeError as error:
            raise _apart("the scores of a generator step", error) from error
        return table

    def sum(self, numbers: Tensor) -> Tensor:
        """``numbers`` added up over all ranks.

        Raises:
            RanksApart: a rank does not take part.
        """
        total = numbers.clone()
        _sent.append([total])
        try:
            distributed.all_reduce(total, group=self.group)
        except RuntimeError as error:
            raise _apart("the votes on the direction", error) from error
        return total


def _apart(what: str, error: RuntimeError) -> RanksApart:
    return RanksApart(
        f'scope="global": this rank waited for {what} of the other ranks, and at least one sent '
        "none. It died; or its generator's loss did not read the critic's scores; or its epoch "
        "ended at another step than here (then count by steps: --every N). How long a rank waits "
        "is the timeout of torch.distributed.init_process_group. torch.distributed said: "
        f"{error}"
    )


_CHOSEN = (
    "found a plugin that chooses rows (topk_select), which is asked for those of one call of the "
    "critic; expected none"
)


class Scope:
    """Whose rows compete, in every gated call of one TopK.

    Args:
        setting: "rank" or "global".
        group: the ranks that train together; None: all.
        chosen: a plugin chooses the rows that are kept.

    Raises:
        ConfigError: a plugin chooses, and it is asked for the rows of one rank; or there is a group
            whose rows do not compete.
    """

    def __init__(
        self, setting: str, group: distributed.ProcessGroup | None = None, chosen: bool = False
    ) -> None:
        if setting == "global" and chosen:
            raise ConfigError(f'scope="global": {_CHOSEN}. Use scope="rank" with it.')
        if group is not None and setting != "global":
            raise ConfigError(
                f'TopK: found a group and scope={setting!r}, expected scope="global" with it'
            )
        self._chosen = chosen
        self.is_global, self._group = setting == "global", group
        self._ranks: Ranks | None = None
        self.size = 1  # ranks whose rows compete, as far as was seen
        self.steps = 1  # micro-batches that compete
        self._open: dict[Hashable, Contest] | None = None  # those of accumulate()

    @property
    def ranks(self) -> Ranks | None:
        """The ranks whose rows compete; None where this process is alone.

        Raises:
            ConfigError: there are other processes, and no group of them; or this one is in none.
        """
        if not self.is_global:
            return None
        if not (distributed.is_available() and distributed.is_initialized()):
            if int(os.environ.get("WORLD_SIZE") or 1) > 1:
                raise ConfigError(
                    f'scope="global": found {os.environ["WORLD_SIZE"]} processes (WORLD_SIZE) and '
                    "no process group. Call torch.distributed.init_process_group() before the "
                    'first generator step, or use scope="rank".'
                )
            return None
        if distributed.get_rank(self._group) < 0:
            raise ConfigError(
                'scope="global": found a process that is not in the group, expected '
                "TopK(group=...) with the group in which this rank trains."
            )
        if distributed.get_world_size(self._group) < 2:
            return None
        if self._ranks is None:
            self._ranks = Ranks(self._group)
        self.size = self._ranks.size
        return self._ranks

    @property
    def is_shared(self) -> bool:
        """Whether rows of other ranks or calls compete now."""
        return self._open is not None or (self.is_global and self.ranks is not None)

    @property
    def batches(self) -> int:
        """How many compete with each other, in a generator step."""
        return self.steps * self.size

    def contest_of(self, who: Any) -> Contest | None:
        """The contest in which a call takes part; None where its rows compete among themselves.

        Args:
            who: calls; the micro-batches of one compete with each other.
        """
        peers = self.ranks
        if self._open is None:
            return None if peers is None else Contest(1, peers)
        return self._open.setdefault(who, Contest(self.steps, peers))

    @contextmanager
    def accumulating(self, steps: int) -> Iterator[None]:
        """See TopK.accumulate()."""
        if self._chosen:
            raise ConfigError(f"accumulate: {_CHOSEN}.")
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise ConfigError(f"accumulate: found steps={steps!r}, expected a whole number >= 1")
        if self._open is not None:
            raise ConfigError("accumulate: found one inside another, expected one at a time")
        self._open, self.steps = {}, steps
        try:
            yield
            for contest in self._open.values():
                if len(contest.blocks) < steps:
                    raise ConfigError(
                        f"accumulate(steps={steps}): found {len(contest.blocks)} calls of the "
                        f"critic on generated samples inside, expected {steps}, one a micro-batch."
                    )
        finally:
            self._open = None

    def sum(self, numbers: Tensor) -> tuple[Tensor, int]:
        """``numbers`` added up over the ranks whose rows compete, and how many these are."""
        ranks = self.ranks
        return (numbers, 1) if ranks is None else (ranks.sum(numbers), ranks.size)

    def kept_of(self, k: int, batch: int, fraction: float, calls: int = 1) -> str:
        """How many rows are kept, in words.

        Args:
            k, batch: of a call of this rank.
            fraction: that is kept.
            calls: of the critic in a step.
        """
        words = f"k {k} of {batch}"
        if self._ranks is not None and self._ranks.rows is not None and fraction < 1:
            words = f"k {k_of(fraction, self._ranks.rows)} of {self._ranks.rows}"
            words += f" over {self.size} ranks"
        elif self.size > 1:
            words += f" on this rank, the rows of {self.size} ranks compete"
        elif self.is_global:
            words += " (scope global, one process)"
        if self.steps > 1:
            words += f", {self.steps} micro-batches that compete"
        elif calls > 1:
            words += f" in each of {calls} calls a step, ranked apart"
        return words


def require_eager(compiled: bool) -> None:
    """Raises ConfigError where rows that compete with others' are in a graph."""
    if compiled:
        raise ConfigError(
            "found top-k inside torch.compile, torch.func or a CUDA graph, where the rows of other "
            'ranks or micro-batches cannot be asked for. Expected scope="rank" and no '
            "accumulate(), or topk(scores) outside of what is compiled."
        )
