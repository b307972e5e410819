"""Training of one detector, and what its test comes to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from topk_plugin import TopK
from topk_plugin.errors import ConfigError
from topk_plugin.reference.anomaly.methods import ARMS, Bigan, Method
from topk_plugin.reference.anomaly.metrics import average_precision, curve_points, trapezoid_area
from topk_plugin.reference.anomaly.settings import Settings
from topk_plugin.reference.anomaly.split import load, split_images
from topk_plugin.reference.data.named import centred
from topk_plugin.reference.runs.records import Member, Row
from topk_plugin.reference.training import (
    Counts,
    check_checkpoint,
    proof_of,
    row_of,
    stream_of,
)

EVALUATED = 500  # test images at once


class Training:
    """One member in training: cell is the held-out digit, arm one of ``ARMS``.

    Arms of one method that share digit and seed have the same initial weights, data order and
    noise.

    Args:
        dtype: of weights and images.

    Raises:
        ConfigError: an unknown arm, or data that are missing or do not fit.
    """

    def __init__(
        self,
        settings: Settings,
        members: Sequence[Member],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        [self.member] = members
        if self.member.arm not in ARMS:
            raise ConfigError(f"found arm {self.member.arm!r}, expected one of {', '.join(ARMS)}")
        kind, gated = ARMS[self.member.arm]
        self.settings, self.device, self.dtype = settings, device, dtype
        self.topk = TopK(
            enabled=gated, gamma=settings.gamma, nu=settings.nu, companions=settings.companions
        )
        with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global one
            torch.default_generator.manual_seed(stream_of(self.member, "weights").initial_seed())
            self.method: Method = kind(settings, self.topk, device, dtype)
        self.images = load(settings)
        self.pixels = self.images.pixels.to(device)
        self.split = split_images(self.images.labels, self.member.cell, settings.split)
        self.train, self.test = self.split.train.to(device), self.split.test.to(device)
        self.shuffles, self.batch = kind is Bigan, settings.meg_batch
        self.batches = math.ceil(len(self.train) / self.batch)
        epochs = settings.meg_epochs
        if self.shuffles:  # ... and leaves the partial batch out
            self.batch, epochs = settings.bigan_batch, settings.bigan_epochs
            self.batches = len(self.train) // self.batch
        self.iterations, self.iteration = epochs * self.batches, 0
        self.noise = torch.Generator(device)
        self.order, self.ordered = self.train[None], -1  # of which epoch
        self.counts = Counts(self.topk)
        self.last_k = 0  # before a resume

    def advance(self, until: int) -> None:
        """Trains up to that iteration, at most to the last one."""
        while self.iteration < min(until, self.iterations):
            epoch, batch = divmod(self.iteration, self.batches)
            self._arrange(epoch)
            rows = self.order[:, batch * self.batch : (batch + 1) * self.batch]
            real = [centred(self.pixels[own], self.dtype) for own in rows]
            # seeded by iteration, so that a resumed run needs no state of it
            self.noise.manual_seed(stream_of(self.member, "noise", self.iteration).initial_seed())
            self.iteration += 1
            self.method.step(self.iteration, self.noise, *real)
            if batch + 1 == self.batches:
                self.topk.end_epoch()

    def _arrange(self, epoch: int) -> None:
        """The order of the training images, (1, N); BiGAN has two, and new ones each epoch."""
        if self.shuffles and epoch != self.ordered:
            draws = stream_of(self.member, "order", epoch)
            orders = [torch.randperm(len(self.train), generator=draws) for _ in range(2)]
            self.order, self.ordered = self.train[torch.stack(orders).to(self.device)], epoch

    # --- what a run keeps -----------------------------------------------------------------------

    def anomaly_scores(self) -> dict[str, np.ndarray]:
        """Each kind's scores of the test images, (M,)."""
        parts = [
            self.method.anomaly_scores(centred(self.pixels[rows], self.dtype))
            for rows in self.test.split(EVALUATED)
        ]
        return {
            name: torch.cat([part[name] for part in parts]).double().cpu().numpy()
            for name in parts[0]
        }

    def measure(self) -> list[Row]:
        """Both areas of each kind of score; at the end also curves, and top-k's proof.

        Areas are None where a score is NaN or infinite, and ``nonfinite`` says how many are.
        """
        anomalous = self.split.anomalous.numpy()
        common = self._row("score") | {
            "epoch": self.iteration // self.batches,
            "data": self.images.name,
            "digest": self.images.digest,
            "split": self.settings.split,
            "normal": int((~anomalous).sum()),
            "anomalous": int(anomalous.sum()),
            "chance": float(anomalous.mean()),
        }
        rows: list[Row] = []
        for name, scores in self.anomaly_scores().items():
            broken = int((~np.isfinite(scores)).sum())
            areas = {
                "average_precision": None if broken else average_precision(anomalous, scores),
                "trapezoid": None if broken else trapezoid_area(anomalous, scores),
            }
            rows.append(common | {"score": name, "nonfinite": broken} | areas)
            if self.iteration == self.iterations and not broken:
                points = curve_points(anomalous, scores)
                rows.append(self._row("curve") | {"score": name, "points": points})
        if self.iteration == self.iterations and self.topk.config.enabled:
            rows.append(self._row("topk") | proof_of(self.topk, self.counts.now(), self._last_k()))
        return rows

    def _row(self, kind: str) -> Row:
        return row_of(self.member, self.iteration, kind)

    def _last_k(self) -> int:
        return self.topk.report().last_k or self.last_k

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on; data are drawn by iteration."""
        return {
            "member": tuple(self.member),
            "digest": self.images.digest,
            "iteration": self.iteration,
            "networks": {name: n.state_dict() for name, n in self.method.networks.items()},
            "optimizers": {name: o.state_dict() for name, o in self.method.optimizers.items()},
            "topk": self.topk.state_dict(),
            "counted": self.counts.now(),
            "last_k": self._last_k(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict` of the same settings.

        Raises:
            ResumeMismatch: it is of another member or of other data, or top-k was set otherwise.
        """
        check_checkpoint(
            ("member", state["member"], tuple(self.member)),
            ("digest", state["digest"], self.images.digest),
        )
        self.iteration = state["iteration"]
        for name, network in self.method.networks.items():
            network.load_state_dict(state["networks"][name])
        for name, optimizer in self.method.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.topk.load_state_dict(state["topk"])
        self.counts.before, self.last_k = dict(state["counted"]), state["last_k"]
