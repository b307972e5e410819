"""Which end of the scores is more realistic, by vote of the generator steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from topk_plugin.core.parameters import way_of
from topk_plugin.errors import DirectionUnknown

VOTING_STEPS = 100
"""Generator steps that vote on the direction, usually while k = B. Later votes would let a
target-seeking loss such as LSGAN turn the direction round."""

CRITIC_STEPS, AGREED = 5, 0.9
"""The critic's own steps that it takes to say the direction, and the share of them that agrees."""

SIGNS = {"auto": 0.0, "high": 1.0, "low": -1.0}


NOT_ZERO, OUTWEIGHS = 0.25, 1e9
"""In :attr:`Direction.low`: what stands for nothing, and for what is known."""


def lead_of(low: Tensor) -> float:
    """Votes for high less those for low; what is known outweighs them (the device is waited for).

    Args:
        low: see :attr:`Direction.low`.
    """
    return -float(low) - NOT_ZERO


class Direction:
    """The votes of one TopK, summed on the device, and what they decided.

    Args:
        setting: "auto", "high" or "low".
        together: adds numbers up over the ranks that decide together, and says how many they are.
    """

    def __init__(
        self,
        setting: str,
        together: Callable[[Tensor], tuple[Tensor, int]] = lambda numbers: (numbers, 1),
    ) -> None:
        self.is_auto = setting == "auto"
        self.assumed = 0.0  # 1 high or -1 low, that an adapter states
        self._voting = VOTING_STEPS if self.is_auto else 0  # steps that still vote
        self._together, self._ranks = together, 1  # whose votes have been added up
        self.known = SIGNS[setting]  # 1 high or -1 low, where the host knows it for good; else 0
        # which end is realistic, for gates: its sign is 1 for low scores and -1 for high ones;
        # each vote changes it by one. Whole numbers and a quarter: never 0, and exact
        self.low = torch.tensor(-self.known * OUTWEIGHS - NOT_ZERO, dtype=torch.float64)
        self._cast = torch.zeros((), dtype=torch.float64)  # votes, for whichever end
        self._disagreed = torch.zeros((), dtype=torch.float64)
        # of the critic's own steps: the sum of what they said, and how many said something
        self._critic = torch.zeros(2, dtype=torch.float64)
        self.critic_steps = 0  # that were looked at
        self.joint_steps = 0  # of the critic's optimizer, on the generator step's own backward

    @property
    def goes_on(self) -> bool:
        """Generator steps still vote."""
        return self._voting > 0

    @property
    def unseen(self) -> bool:
        """The direction is read from the loss, and no generator step has shown it yet."""
        return self._voting == VOTING_STEPS

    @property
    def votes(self) -> Tensor:
        """0-d float64: how many more were for high than for low."""
        return -self.low - NOT_ZERO - self.known * OUTWEIGHS

    def require_descent(self, optimizer: Optimizer) -> None:
        """Raises DirectionUnknown where votes are read and the ``optimizer`` maximises."""
        if self.is_auto and way_of(optimizer) != 1:
            raise DirectionUnknown(
                "the generator's optimizer maximises, so the sign of the scores' gradient does not "
                "say which end is realistic. Set the direction: --direction high (or "
                'TopK(direction="high")) if the critic gives real samples high scores, else low.'
            )

    def vote(self, ballot: Tensor, ballots: Sequence[Tensor]) -> None:
        """One generator step votes, while the vote goes on.

        Args:
            ballot: 0-d, of the whole step.
            ballots: (H,) of the heads of each call of the critic in it.

        Raises:
            DirectionUnknown: see :meth:`check`; when the vote ends.
        """
        vote = ballot.sign()
        self.low -= vote
        self._cast.addcmul_(vote, vote)
        if sum(map(len, ballots)) > 1:
            cast = torch.cat([one.to(ballot.device) for one in ballots])
            self._disagreed += ((cast.min() < 0) & (cast.max() > 0)).to(torch.float64)
        self._voting -= 1
        if self._voting:
            return
        self._add_up()
        self.check()
        self.known = math.copysign(1.0, votes) if (votes := float(self.votes)) else 0.0
        if self.known:
            self.low -= self.known * OUTWEIGHS
        else:  # a saturated loss sent no gradient so far
            self._voting = VOTING_STEPS

    @property
    def _voted(self) -> int:
        """Votes that could have been cast."""
        return (VOTING_STEPS - self._voting) * self._ranks

    def _add_up(self) -> None:
        """The votes of all ranks that decide together, so that they cannot disagree."""
        own = torch.stack([self.votes, self._disagreed, self._cast, *self._critic])
        total, self._ranks = self._together(own)
        if self._ranks > 1:
            self.low.copy_(-total[0] - NOT_ZERO)
            self._disagreed.copy_(total[1])
            self._cast.copy_(total[2])
            self._critic.copy_(total[3:])

    def check(self) -> None:
        """Reads the vote (the device is waited for).

        Raises:
            DirectionUnknown: the calls of most generator steps asked for opposite directions, or
                the critic's own steps contradict the vote.
        """
        self.require_agreement()
        self.require_two_losses()
        self.require_one_end()

    def require_two_losses(self) -> None:
        """Raises DirectionUnknown where the generator only learns from the critic's own loss."""
        if not self.is_auto or self.known or self.assumed:
            return
        if self.joint_steps and not self.critic_steps:
            raise DirectionUnknown(
                f"in {self.joint_steps} of {self._voted} generator steps the critic's optimizer "
                "stepped on the generator's own backward, whose gradient is reversed on its way "
                "to one of them, so its sign at the scores does not say which end is realistic. "
                'Set the direction: --direction high (or TopK(direction="high")) if the critic '
                "gives real samples high scores, else low."
            )

    def require_one_end(self) -> None:
        """Raises DirectionUnknown where the calls of most steps asked for opposite directions."""
        if not self.is_auto or self.known:
            return
        voted, disagreed = self._voted, int(self._disagreed)
        if 2 * disagreed > voted:
            raise DirectionUnknown(
                f"in {disagreed} of {voted} generator steps the loss raised the scores of one "
                "critic call or output and lowered those of another, so it does not say which "
                "scores are realistic. Set the direction: --direction high (or "
                'TopK(direction="high")) if the critic gives real samples high scores, low if it '
                "gives them low ones; name the outputs that score generated samples (heads), and "
                "put `with topk.paused():` around calls that are to be pushed the other way, as "
                "those of encoded samples are."
            )

    def critic_stepped(self, says: Tensor) -> None:
        """One step of the critic's own.

        Args:
            says: (2,): 1 if it lowers fakes' scores and raises reals', -1 for the reverse, else 0;
                and 1 if there was something to be read, else 0.
        """
        self._critic += says.to(self._critic.device)
        self.critic_steps += 1

    @property
    def of_critic(self) -> str:
        """What the critic's own steps say: "high", "low", or "unread" (the device is waited for).

        Nine of ten have to agree, of five or more: a critic whose loss seeks a target may push
        its scores the other way now and then.
        """
        if self.critic_steps < CRITIC_STEPS:
            return "unread"
        total, read = self._critic.tolist()
        if read < CRITIC_STEPS or abs(total) < AGREED * read:
            return "unread"
        return "high" if total > 0 else "low"

    @property
    def confirmed(self) -> bool:
        """The critic's own steps say the same direction (the device is waited for)."""
        return self.of_critic == self.name(torch.zeros(()))

    def require_agreement(self, unless_wavering: bool = False) -> None:
        """Holds the vote so far against what the critic's own steps say.

        Args:
            unless_wavering: only where the vote is as unanimous as the critic has to be.

        Raises:
            DirectionUnknown: they contradict each other.
        """
        if not self.is_auto or self.critic_steps < CRITIC_STEPS:
            return
        votes, voted = float(self.votes), self._voted
        wavers = voted < CRITIC_STEPS or abs(votes) < AGREED * voted
        own, asked = self.of_critic, self.name(self.votes)
        if (unless_wavering and wavers) or own == "unread" or asked in (own, "undecided"):
            return
        lowers, raises = ("lowered", "raised") if own == "high" else ("raised", "lowered")
        raise DirectionUnknown(
            f"the generator's loss asks for {asked} scores (in {(voted + abs(int(votes))) // 2} of "
            f"{voted} generator steps), while the critic's own steps say that {own} ones are "
            f"realistic: they {lowers} the scores of generated samples and "
            f"{raises} those of the others. A loss that pulls the scores to a target from both "
            f"sides does that. Set the direction: --direction {own} (or "
            f'TopK(direction="{own}")) if real samples get {own} scores, else {asked}.'
        )

    def name(self, ballot: Tensor) -> str:
        """ "high", "low", or "undecided" (the device is waited for).

        Args:
            ballot: 0-d, of backward passes that no generator step counted yet.
        """
        sign = self.known or float(self.votes) or float(ballot)
        return "undecided" if not sign else "high" if sign > 0 else "low"

    def how(self) -> str:
        """How :meth:`name` was found (the device is waited for)."""
        if not self.is_auto:
            return "as set"
        cast, ahead = int(self._cast), abs(int(self.votes))
        if not cast:
            return "as the checkpoint says"
        return f"by {(cast + ahead) // 2} of {cast} vote{'s' * (cast != 1)}"

    def state(self) -> dict[str, Any]:
        """For a checkpoint; on the device, as some loops ask at every step."""
        return {
            "votes": torch.stack(
                [self.votes, torch.full_like(self.low, self.known), self._disagreed, self._cast]
            ),
            "voting": self._voting,
            "critic": self._critic.clone(),
            "critic_steps": self.critic_steps,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state`."""
        self._voting = int(state["voting"])
        votes, decided, *rest = state["votes"]
        for tensor, value in zip((self._disagreed, self._cast), rest, strict=False):
            tensor.copy_(value)  # older ones have the first alone
        self.known = float(decided)
        self.low.copy_(-votes - self.known * OUTWEIGHS - NOT_ZERO)
        if "critic" in state:  # else it was written before critics were read
            self._critic.copy_(state["critic"])
            self.critic_steps = int(state["critic_steps"])

    def to(self, device: torch.device | str) -> None:
        """Move what gates read."""
        for name in ("low", "_disagreed", "_cast", "_critic"):
            setattr(self, name, getattr(self, name).to(device))
