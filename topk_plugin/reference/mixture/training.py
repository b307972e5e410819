"""Training of many GANs on mixtures of Gaussians as one stacked model.

The networks of all members (numbers of modes, arms, seeds) are stacked and multiplied with
``bmm``. Members share nothing: each has its weights, its data and its ranking, so that it goes
where it would go alone, and a NaN stays where it is. On a GPU one iteration is one CUDA graph,
captured once; k lies on the device, so that the graph replays as k changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from topk_plugin import VOTING_STEPS, TopK, hookimpl
from topk_plugin.reference.mixture.draws import CHUNK, Draws, draw, initial_weights, latents
from topk_plugin.reference.mixture.modes import grid_modes, mode_coverage
from topk_plugin.reference.mixture.settings import ARMS, Settings
from topk_plugin.reference.networks.stacked import mlp
from topk_plugin.reference.randomness import stream
from topk_plugin.reference.runs.records import Member, Row
from topk_plugin.reference.training import proof_of, row_of, update

STACK = 4
"""Members that one process trains together on a CPU: more do not fit its caches."""


class WithinMembers:
    """Plugin: scores of several members in one batch, each ranked within its own ``batch`` rows."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    @hookimpl
    def topk_select(self, scores: Tensor, k: Tensor) -> Tensor:
        """The k / M highest of each member's rows, ties by position, NaN last."""
        stacked = scores.view(-1, self.batch)
        order = torch.argsort(-stacked, dim=1, stable=True)
        rank = torch.argsort(order, dim=1)
        return (rank < (k // len(stacked)).clamp(min=1)).flatten()


def stacks(
    settings: Settings, members: Sequence[Member], device: torch.device, workers: int
) -> list[list[Member]]:
    """Which members are trained together: all of them on a GPU, few on each core of a CPU."""
    size = len(members)
    if device.type == "cpu":
        size = min(STACK, math.ceil(len(members) / workers))
    return [list(members[i : i + size]) for i in range(0, len(members), size)]


class Training:
    """M members in training.

    Args:
        settings: the experiment's.
        members: cell is the number of modes; arm one of ``ARMS``.
        device: where to train.
        dtype: of weights and data; data are drawn in float32.
    """

    def __init__(
        self,
        settings: Settings,
        members: Sequence[Member],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.settings, self.device, self.dtype = settings, device, dtype
        # an arm's members lie together, so that one slice of the scores is theirs
        self.members = sorted(members, key=lambda member: list(ARMS).index(member.arm))
        self.iterations, self.iteration = settings.iterations, 0
        self.arms: dict[str, slice] = {}
        for arm in dict.fromkeys(member.arm for member in self.members):
            of_arm = [i for i, member in enumerate(self.members) if member.arm == arm]
            self.arms[arm] = slice(of_arm[0], of_arm[-1] + 1)
        self.topk = {
            arm: TopK(
                **{"gamma": settings.gamma, "nu": settings.nu, **ARMS[arm]},
                hooks=[WithinMembers(settings.batch)],
            )
            for arm in self.arms
        }
        weights = [initial_weights(settings, m.cell, m.seed) for m in self.members]
        self.generator = self._stack([generator for generator, _ in weights])
        self.critic = self._stack([critic for _, critic in weights])
        # the same storage, without a gradient: in the generator's step the critic is fixed
        self.frozen = [parameter.detach() for parameter in self.critic]
        self.optimizers = [self._adam(self.critic), self._adam(self.generator)]

        size, steps = len(self.members), settings.critic_steps
        rows = (size, CHUNK, steps, settings.batch, 2)
        self.real = torch.empty(rows, device=device, dtype=dtype)
        rows = (size, CHUNK, steps + 1, settings.batch, settings.latent)
        self.noise = torch.empty(rows, device=device, dtype=dtype)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)  # in the chunk
        self.chunk = -1  # that was drawn
        sides = torch.ones(2 * settings.batch, device=device, dtype=dtype)
        sides[: settings.batch] = -1
        self.sides = sides  # the critic's loss is softplus(-score) of real, softplus(score) of fake
        self.graph: torch.cuda.CUDAGraph | None = None
        self.eager = 0  # iterations of this process without the graph
        self.dropped = dict.fromkeys(self.arms, 0)  # rows of an arm that its TopK did not count

    def _stack(self, parameters: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        return [
            torch.stack(same).to(self.device, self.dtype).requires_grad_()
            for same in zip(*parameters, strict=True)
        ]

    def _adam(self, parameters: list[Tensor]) -> torch.optim.Adam:
        s = self.settings
        betas, on_gpu = (s.beta1, s.beta2), self.device.type == "cuda"
        return torch.optim.Adam(
            parameters, lr=s.learning_rate, betas=betas, fused=True, capturable=on_gpu
        )

    def advance(self, until: int) -> None:
        """Trains up to that iteration, at most to the last one."""
        while self.iteration < min(until, self.iterations):
            self._fetch()
            if self.device.type == "cuda":
                self._replay()
            else:
                self._step()
            self.iteration += 1
            for topk in self.topk.values():
                if topk.config.enabled:
                    topk.step()  # a replayed graph runs no Python, so nothing else counts it
                if self.iteration % self.settings.decay_every == 0:
                    topk.end_epoch()

    def _fetch(self) -> None:
        """Draws the chunk that the next iteration is in."""
        chunk, position = divmod(self.iteration, CHUNK)
        if chunk == self.chunk:
            return
        drawn: dict[tuple[int, int], Draws] = {}
        for i, (modes, _, seed) in enumerate(self.members):
            if (modes, seed) not in drawn:
                drawn[modes, seed] = draw(self.settings, modes, seed, chunk, self.device)
            self.real[i].copy_(drawn[modes, seed].real)
            self.noise[i].copy_(drawn[modes, seed].noise)
        self.position.fill_(position)
        self.chunk = chunk

    def _step(self) -> None:
        """One iteration: the critic's steps, and one of the generator."""
        real = self.real.index_select(1, self.position).squeeze(1)
        noise = self.noise.index_select(1, self.position).squeeze(1)
        activation, batch = self.settings.activation, self.settings.batch
        for i in range(self.settings.critic_steps):
            with torch.no_grad():
                fake = mlp(self.generator, noise[:, i], activation)
            # in one call, which is faster than two: no layer couples the rows of a batch
            scores = mlp(self.critic, torch.cat([real[:, i], fake], dim=1), activation).squeeze(2)
            loss = functional.softplus(scores * self.sides).sum() / batch
            update(loss, self.optimizers[0])
        scores = mlp(self.frozen, mlp(self.generator, noise[:, -1], activation), activation)
        gated = [
            self.topk[arm](scores[rows].flatten()).view(-1, batch)
            for arm, rows in self.arms.items()
        ]
        # summed over members: none appears in another's gradient
        loss = functional.softplus(-torch.cat(gated)).sum() / batch
        update(loss, self.optimizers[1])
        self.position.add_(1)

    def _replay(self) -> None:
        if self.graph is None:
            # captured once the direction is decided
            if self.eager < 3 or self.iteration < VOTING_STEPS:
                self.eager += 1
                self._step()
                return
            counted = {arm: (topk.epoch, topk.steps) for arm, topk in self.topk.items()}
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self._step()
            for arm, topk in self.topk.items():  # to capture is not to train
                topk.step()
                topk.begin_at(*counted[arm])
        self.graph.replay()

    # --- what a run keeps -----------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        """``count`` samples of each member, (M, count, 2), the same noise at every call."""
        drawn = [
            latents(self.settings, [count], stream("samples", *key, device=self.device))
            for key in [(member.cell, member.seed) for member in self.members]
        ]
        noise = torch.stack(drawn)
        return mlp(self.generator, noise.to(self.dtype), self.settings.activation)

    def measure(self) -> list[Row]:
        """Table 1's metrics of each member; at the end also points to draw, and top-k's proof."""
        rows: list[Row] = []
        samples = self.sample(self.settings.samples)
        for member, points in zip(self.members, samples, strict=True):
            centers = grid_modes(member.cell, self.settings.spacing).to(points)
            coverage = mode_coverage(points, centers, self.settings.std)
            rows.append(self._row(member, "score") | coverage._asdict())
            if self.iteration < self.iterations:
                continue
            if member.seed == 0:
                finite = points[points.isfinite().all(dim=1)]
                shown = [[round(x, 4), round(y, 4)] for x, y in finite[:2000].tolist()]
                rows.append(self._row(member, "samples") | {"points": shown})
            if self.topk[member.arm].config.enabled:
                rows.append(self._row(member, "topk") | self._proof(member.arm))
        return rows

    def _row(self, member: Member, kind: str) -> Row:
        return row_of(member, self.iteration, kind)

    def _proof(self, arm: str) -> Row:
        topk, rows = self.topk[arm], self.arms[arm]
        dropped = (self.dropped[arm] + topk.report().dropped) // (rows.stop - rows.start)
        return proof_of(topk, {"dropped": dropped}, topk.k(self.settings.batch))

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on; data are drawn by iteration."""
        return {
            "iteration": self.iteration,
            "generator": [parameter.detach() for parameter in self.generator],
            "critic": [parameter.detach() for parameter in self.critic],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "topk": {arm: topk.state_dict() for arm, topk in self.topk.items()},
            "dropped": {
                arm: n + self.topk[arm].report().dropped for arm, n in self.dropped.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict` of the same settings and members."""
        self.iteration = state["iteration"]
        self.chunk = -1
        self.graph, self.eager = None, 0  # an optimizer's state is replaced, not filled
        with torch.no_grad():
            for name in ("generator", "critic"):
                for mine, its in zip(getattr(self, name), state[name], strict=True):
                    mine.copy_(its)
        for optimizer, its in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(its)
        for arm, topk in self.topk.items():
            topk.load_state_dict(state["topk"][arm])
            self.dropped[arm] = state["dropped"][arm] - topk.report().dropped
