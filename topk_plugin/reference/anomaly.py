"""Table 2: finding a digit that was held out of the training, by MEG and by BiGAN.

Paper, section 5.1. MEG is that of Kumar et al. (2019), after
ritheshkumar95/energy_based_generative_models, scripts/train/anomaly_mnist.py; BiGAN that of Zenati
et al. (2018), after houssamzenati/Efficient-GAN-Anomaly-Detection, bigan/run_mnist.py. Either is
trained with and without top-k. The paper gives neither gamma nor nu for this table, so they are
those of its other image experiments, and it has no top-k arm of BiGAN.

Both repositories draw their training part and their test part from two different permutations, so
that four in five of the normal test images were trained on: ``split="original"``. By default the
parts are disjoint. Scores of the two are not comparable, and each score says which one it is.

A detector that knows nothing scores the share of anomalies among the test images, ``chance``:
0.33 to 0.39 on MNIST, which is more than several entries of the paper's table.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from sklearn.metrics import auc, average_precision_score, precision_recall_curve
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Adam

from topk_plugin import TopK
from topk_plugin.errors import ConfigError, ResumeMismatch
from topk_plugin.reference.data.named import Images, centred, load_images, resized
from topk_plugin.reference.data.readers import CLASSES, GREY, SIZE
from topk_plugin.reference.networks import mnist
from topk_plugin.reference.randomness import stream
from topk_plugin.reference.runs.records import Member, Row, Tell
from topk_plugin.reference.settings import Rule, check, is_number, is_whole
from topk_plugin.reference.training import update

SPLITS = ("disjoint", "original")
SPLIT_SEED = 42  # of both repositories
COMPANIONS = ("keep", "follow")
EVALUATED = 500  # test images at once
CURVE_POINTS = 100


@dataclass(frozen=True)
class Settings:
    """The experiment; defaults of a method are those of its repository.

    Raises:
        ConfigError: a value of the wrong type or out of its range.
    """

    dataset: str = "digits"  # or "mnist", "fashion-mnist"; this and the next two: load_images
    data: str | None = None
    download: bool = False
    split: str = "disjoint"
    gamma: float = 0.99
    nu: float = 0.5
    companions: str = "keep"  # whether MEG's mutual information follows top-k: see Meg
    measure_every: int = 5_000  # iterations
    meg_epochs: int = 55
    meg_batch: int = 64
    meg_latent: int = 128
    meg_dim: int = 512  # channels of the widest layer
    meg_energy_steps: int = 5  # for each generator step
    meg_penalty: float = 100.0  # weight of the energy's squared gradient at real images
    meg_learning_rate: float = 1e-4
    meg_beta1: float = 0.5
    meg_beta2: float = 0.9
    bigan_epochs: int = 100
    bigan_batch: int = 100
    bigan_latent: int = 200
    bigan_dim: int = 64  # channels of the critic's convolutions
    bigan_learning_rate: float = 1e-5
    bigan_beta1: float = 0.5
    bigan_beta2: float = 0.999
    bigan_average: float = 0.999  # decay of the averaged weights, which are those that are tested
    bigan_weight: float = 0.1  # of the critic's part in the anomaly score

    def __post_init__(self) -> None:
        check(self, RULES)


RULES: list[Rule] = [
    (["dataset"], lambda v: v in GREY, f"one of {', '.join(GREY)}"),
    (["data"], lambda v: v is None or isinstance(v, str), "a path"),
    (["download"], lambda v: isinstance(v, bool), "true or false"),
    (["split"], lambda v: v in SPLITS, f"one of {', '.join(SPLITS)}"),
    (["companions"], lambda v: v in COMPANIONS, f"one of {', '.join(COMPANIONS)}"),
    (["gamma", "nu"], lambda v: is_number(v) and 0 < v <= 1, "a number in (0, 1]"),
    (
        ["measure_every", "meg_epochs", "meg_latent", "meg_energy_steps", "bigan_epochs",
         "bigan_latent"],
        lambda v: is_whole(v, 1), "a whole number, at least 1",
    ),
    (["meg_batch", "bigan_batch"], lambda v: is_whole(v, 2), "a whole number, at least 2"),
    (["meg_dim"], lambda v: is_whole(v, 8, 8), "a multiple of 8"),
    (["bigan_dim"], lambda v: is_whole(v, 2, 2), "a multiple of 2"),
    (
        ["meg_penalty", "meg_learning_rate", "bigan_learning_rate"],
        lambda v: is_number(v) and v > 0, "a number above 0",
    ),
    (
        ["meg_beta1", "meg_beta2", "bigan_beta1", "bigan_beta2", "bigan_average"],
        lambda v: is_number(v) and 0 <= v < 1, "a number in [0, 1)",
    ),
    (["bigan_weight"], lambda v: is_number(v) and 0 <= v <= 1, "a number in [0, 1]"),
]  # fmt: skip


# --- data ---------------------------------------------------------------------------------------


class Split(NamedTuple):
    """Which images are trained on and which are tested, by their position."""

    train: Tensor  # (N,) normal images
    test: Tensor  # (M,)
    anomalous: Tensor  # (M,) bool: of the held-out digit


def split_images(labels: Tensor, held_out: int, how: str = "disjoint") -> Split:
    """80% of the normal images to train; 20% of them and all anomalies to test.

    Args:
        labels: (N,) the images' digits.
        held_out: the digit that is the anomaly.
        how: "disjoint", or "original" for the rows that the repositories' own code takes (both
            have it in data/mnist.py or data/mnist_anomaly.py): their test part is drawn anew, and
            about 80% of its normal images are in the training part.

    Raises:
        ConfigError: no image of the held-out digit, or too few of the others.
    """
    normal, anomalies = (labels != held_out).nonzero()[:, 0], (labels == held_out).nonzero()[:, 0]
    cut = int(0.8 * len(normal))
    if not len(anomalies) or not cut:
        raise ConfigError(
            f"found {len(anomalies)} images of the held-out digit {held_out} and {len(normal)} of "
            f"others, expected some of both; hold out a digit that is there, 0 to {CLASSES - 1}"
        )
    random = np.random.RandomState(SPLIT_SEED)
    mixed = normal[random.permutation(len(normal))]
    train, rest = mixed[:cut], mixed[cut:]
    if how == "original":
        random.permutation(len(rest) + len(anomalies))  # the order of a test part, never used
        rest = normal[random.permutation(len(normal))][cut:]
    test = torch.cat([rest, anomalies])
    return Split(train, test, labels[test] == held_out)


def load(settings: Settings) -> Images:
    """The data set at 28x28 pixels.

    Raises:
        ConfigError: see :func:`load_images`.
    """
    return resized(load_images(settings.dataset, settings.data, settings.download), SIZE)


def prepare(
    settings: Settings, cells: Sequence[int], arms: Sequence[str], device: torch.device, tell: Tell
) -> dict[str, Any]:
    """Checks that there are data to train on, and says which; ``download`` fetches them.

    Args:
        cells: the digits that are to be held out.
        arms: what is to be trained.
        device, tell: not used; reading them takes a moment.

    Raises:
        ConfigError: there are none, or too few for one batch.
    """
    images = load(settings)
    for digit in cells:
        found = len(split_images(images.labels, digit, settings.split).train)
        if found < settings.bigan_batch and any("bigan" in arm for arm in arms):
            raise ConfigError(
                f"bigan_batch: found {settings.bigan_batch}, expected at most the {found} images "
                f"that are trained on where {digit} is held out"
            )
    count = len(images.labels)
    return {"name": images.name, "images": count, "digest": images.digest, "split": settings.split}


# --- metrics ------------------------------------------------------------------------------------


def average_precision(anomalous: np.ndarray, scores: np.ndarray) -> float:
    """Area under the precision-recall curve as a sum of steps; anomalies are the positives.

    Args:
        anomalous: (N,) bool.
        scores: (N,), higher is more anomalous.

    Raises:
        ValueError: a score is NaN or infinite.
    """
    return float(average_precision_score(anomalous, scores))


def trapezoid_area(anomalous: np.ndarray, scores: np.ndarray) -> float:
    """The same area by trapezoids, as both repositories have it; few points make it differ.

    Arguments and errors are those of :func:`average_precision`.
    """
    precision, recall, _ = precision_recall_curve(anomalous, scores)
    return float(auc(recall, precision))


def curve_points(anomalous: np.ndarray, scores: np.ndarray) -> list[list[float]]:
    """At most ``CURVE_POINTS`` of (recall, precision), recall from 0 to 1."""
    precision, recall, _ = precision_recall_curve(anomalous, scores)
    precision, recall = precision[::-1], recall[::-1]
    chosen = np.unique(np.searchsorted(recall, np.linspace(0, 1, CURVE_POINTS)))
    return np.stack([recall, precision], axis=1)[chosen].round(4).tolist()


# --- the two methods ----------------------------------------------------------------------------


class Method(Protocol):
    """Networks and optimizers of a way to detect anomalies, by name."""

    networks: dict[str, nn.Module]
    optimizers: dict[str, Adam]

    def step(self, iteration: int, noise: torch.Generator, *batches: Tensor) -> None:
        """One iteration, the first is 1; each batch of real images is (B, 1, 28, 28)."""

    def anomaly_scores(self, x: Tensor) -> dict[str, Tensor]:
        """Scores (B,) of images (B, 1, 28, 28), by name; higher is more anomalous."""


class Meg:
    """Maximum entropy generators (Kumar et al. 2019): an energy that is low where data are.

    The generator lowers the energy of what it makes and raises the mutual information of that and
    its latents. Top-k stands at the energies alone, as it does in the source patch for MEG that
    comes with this package: the paper filters what the critic says, and the mutual information is
    told by another network, over pairs that mix the rows of a batch. With
    ``companions="follow"`` a dropped row sends the generator no gradient through that one either,
    which takes the paper's "zero out the gradient contributions" of a sample at its word.
    """

    def __init__(self, settings: Settings, topk: TopK, device: torch.device, dtype: torch.dtype):
        self.settings, self.topk = settings, topk
        latent, dim = settings.meg_latent, settings.meg_dim
        self.generator = mnist.meg_generator(latent, dim)
        self.energy = mnist.meg_energy(dim)
        self.statistics = mnist.MegStatistics(latent, dim)
        self.networks = {
            "generator": self.generator, "energy": self.energy, "statistics": self.statistics,
        }  # fmt: skip
        betas = (settings.meg_beta1, settings.meg_beta2)
        self.optimizers = {
            name: adam(network.to(device, dtype), settings.meg_learning_rate, betas)
            for name, network in self.networks.items()
        }

    def step(self, iteration: int, noise: torch.Generator, *batches: Tensor) -> None:
        [real] = batches
        self._energy_step(real, noise)
        if iteration % self.settings.meg_energy_steps == 0:
            self._generator_step(self._latents(real, noise), noise)

    def _latents(self, like: Tensor, noise: torch.Generator) -> Tensor:
        # always a whole batch: the last one of real images is a partial one
        z = like.new_empty(self.settings.meg_batch, self.settings.meg_latent)
        return z.normal_(generator=noise)

    def _energy_step(self, real: Tensor, noise: torch.Generator) -> None:
        real = real.detach().requires_grad_()
        with torch.no_grad():
            fake = self.generator(self._latents(real, noise))
        energies = self.energy(real)
        penalty = self.settings.meg_penalty * squared_gradient(energies, real)
        loss = energies.mean() - self.energy(fake).mean() + penalty
        update(loss, self.optimizers["energy"])

    def _generator_step(self, z: Tensor, noise: torch.Generator) -> None:
        fake = self.generator(z)
        energies = self.topk(self.energy(fake))
        # the images with their own latents, and with those of others
        others = z[torch.rand(len(z), generator=noise, device=z.device).argsort()]
        seen = self.topk.follow(fake)
        logits = self.statistics(torch.cat([seen, seen]), torch.cat([z, others]))
        own, mixed = logits.chunk(2)
        information = (functional.softplus(-own) + functional.softplus(mixed)).mean() / 2
        loss = energies.mean() + information
        update(loss, self.optimizers["generator"], self.optimizers["statistics"])

    def anomaly_scores(self, x: Tensor) -> dict[str, Tensor]:
        """The energy, and the Euclidean norm of its gradient by the image."""
        x = x.detach().requires_grad_()
        energies = self.energy(x)
        [gradient] = torch.autograd.grad(energies.sum(), x)
        return {
            "energy": energies.detach(), "input-gradient norm": gradient.flatten(1).norm(dim=1)
        }  # fmt: skip


class Bigan:
    """BiGAN (Donahue et al. 2016) as an anomaly detector (Zenati et al. 2018).

    The critic tells an image with its encoding from a generated image with its latent. Top-k
    stands at its scores of the latter, in the generator's loss; the encoder's loss is left alone.
    """

    def __init__(self, settings: Settings, topk: TopK, device: torch.device, dtype: torch.dtype):
        self.settings, self.topk = settings, topk
        latent, dim = settings.bigan_latent, settings.bigan_dim
        self.generator = mnist.bigan_generator(latent, dim)
        self.encoder = mnist.bigan_encoder(latent, dim)
        self.critic = mnist.BiganCritic(latent, dim)
        trained = {"generator": self.generator, "encoder": self.encoder, "critic": self.critic}
        betas = (settings.bigan_beta1, settings.bigan_beta2)
        self.optimizers = {
            name: adam(network.to(device, dtype), settings.bigan_learning_rate, betas)
            for name, network in trained.items()
        }
        self.averaged = {name: average_of(network) for name, network in trained.items()}
        self.networks = trained | {f"averaged {name}": n for name, n in self.averaged.items()}

    def step(self, iteration: int, noise: torch.Generator, *batches: Tensor) -> None:
        first, second = batches
        self._critic_step(first, noise)
        self._generator_step(second, noise)
        for name, averaged in self.averaged.items():
            means: list[Tensor] = [*averaged.parameters()]
            latest: list[Tensor] = [*self.networks[name].parameters()]
            with torch.no_grad():
                torch._foreach_lerp_(means, latest, 1 - self.settings.bigan_average)

    def _latents(self, like: Tensor, noise: torch.Generator) -> Tensor:
        return like.new_empty(len(like), self.settings.bigan_latent).normal_(generator=noise)

    def _critic_step(self, real: Tensor, noise: torch.Generator) -> None:
        z = self._latents(real, noise)
        with torch.no_grad(), running_statistics_kept(self.generator, self.encoder):
            fake, code = self.generator(z), self.encoder(real)
        encoded, _ = self.critic(real, code, noise)
        generated, _ = self.critic(fake, z, noise)
        loss = functional.softplus(-encoded).mean() + functional.softplus(generated).mean()
        update(loss, self.optimizers["critic"])

    def _generator_step(self, real: Tensor, noise: torch.Generator) -> None:
        z = self._latents(real, noise)
        fake, code = self.generator(z), self.encoder(real)
        with running_statistics_kept(self.critic):
            encoded, _ = self.critic(real, code, noise)
            generated, _ = self.critic(fake, z, noise)
        with torch.no_grad():  # its running statistics are those of both kinds of latents
            self.generator(code)
        loss = functional.softplus(-self.topk(generated)).mean()
        loss = loss + functional.softplus(encoded).mean()
        update(loss, self.optimizers["generator"], self.optimizers["encoder"])

    @torch.no_grad()
    def anomaly_scores(self, x: Tensor) -> dict[str, Tensor]:
        """The reconstruction's error (L1) and the critic's doubt, which is of two kinds.

        "cross-entropy" is that of taking the reconstruction for real, "feature matching" the L1
        distance of the image's and the reconstruction's features. All by the averaged weights.
        """
        generator, encoder, critic = (
            self.averaged[name].eval() for name in ("generator", "encoder", "critic")
        )
        code = encoder(x)
        made = generator(code)
        score, features = critic(made, code)
        _, expected = critic(x, code)
        weight = self.settings.bigan_weight
        missed = (1 - weight) * (x - made).abs().flatten(1).sum(dim=1)
        return {
            "cross-entropy": missed + weight * functional.softplus(-score),
            "feature matching": missed + weight * (features - expected).abs().sum(dim=1),
        }


ARMS: dict[str, tuple[type[Meg] | type[Bigan], bool]] = {
    "bigan": (Bigan, False),
    "top-k+bigan": (Bigan, True),
    "meg": (Meg, False),
    "top-k+meg": (Meg, True),
}
"""Arms: the method, and whether top-k is on."""


def squared_gradient(outputs: Tensor, x: Tensor) -> Tensor:
    """Mean over pixels and images x (B, 1, H, W) of the squared gradient of outputs (B,)."""
    [gradient] = torch.autograd.grad(outputs.sum(), x, create_graph=True)
    return gradient.square().mean()


def adam(network: nn.Module, learning_rate: float, betas: tuple[float, float]) -> Adam:
    return Adam(network.parameters(), learning_rate, betas=betas, fused=True)


def average_of(network: nn.Module) -> nn.Module:
    """A copy for averaged weights; BatchNorm's running statistics are the network's own."""
    shared: dict[int, Any] = {id(buffer): buffer for buffer in network.buffers()}
    return copy.deepcopy(network, shared).requires_grad_(False)


@contextmanager
def running_statistics_kept(*networks: nn.Module) -> Iterator[None]:
    """BatchNorm goes by the batch, as in training, and does not remember it.

    TensorFlow updates running statistics with the step of their own network alone.
    """
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
    norms = [m for network in networks for m in network.modules() if isinstance(m, kinds)]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


# --- training -----------------------------------------------------------------------------------


def stacks(
    settings: Settings, members: Sequence[Member], device: torch.device, workers: int
) -> list[list[Member]]:
    """Which members one job trains together: each is one of its own."""
    return [[member] for member in members]


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
            torch.default_generator.manual_seed(self._stream("weights").initial_seed())
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
        self.counted = {"rows": 0, "dropped": 0, "nonfinite": 0}  # before a resume
        self.last_k = 0

    def _stream(self, name: str, *key: int) -> torch.Generator:
        """On the CPU, so that a GPU sees the same data order and initial weights."""
        member = self.member
        return stream(name, member.cell, member.seed, *key, device=torch.device("cpu"))

    def advance(self, until: int) -> None:
        """Trains up to that iteration, at most to the last one."""
        while self.iteration < min(until, self.iterations):
            epoch, batch = divmod(self.iteration, self.batches)
            self._arrange(epoch)
            rows = self.order[:, batch * self.batch : (batch + 1) * self.batch]
            real = [centred(self.pixels[own], self.dtype) for own in rows]
            # seeded by iteration, so that a resumed run needs no state of it
            self.noise.manual_seed(self._stream("noise", self.iteration).initial_seed())
            self.iteration += 1
            self.method.step(self.iteration, self.noise, *real)
            if batch + 1 == self.batches:
                self.topk.end_epoch()

    def _arrange(self, epoch: int) -> None:
        """The order of the training images, (1, N); BiGAN has two, and new ones each epoch."""
        if self.shuffles and epoch != self.ordered:
            draws = self._stream("order", epoch)
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
            rows.append(self._row("topk") | self._proof())
        return rows

    def _row(self, kind: str) -> Row:
        return self.member._asdict() | {"iteration": self.iteration, "kind": kind}

    def _proof(self) -> Row:
        report = self.topk.report()
        return self._counts() | {
            "steps": report.steps,
            "epochs": report.epochs,
            "direction": report.direction,
            "last_k": report.last_k or self.last_k,
        }

    def _counts(self) -> dict[str, int]:
        """What top-k counted, also before a resume."""
        report = self.topk.report()
        return {name: before + getattr(report, name) for name, before in self.counted.items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on; data are drawn by iteration."""
        return {
            "member": tuple(self.member),
            "digest": self.images.digest,
            "iteration": self.iteration,
            "networks": {name: n.state_dict() for name, n in self.method.networks.items()},
            "optimizers": {name: o.state_dict() for name, o in self.method.optimizers.items()},
            "topk": self.topk.state_dict(),
            "counted": self._counts(),
            "last_k": self.topk.report().last_k or self.last_k,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict` of the same settings.

        Raises:
            ResumeMismatch: it is of another member or of other data, or top-k was set otherwise.
        """
        for name, mine in (("member", tuple(self.member)), ("digest", self.images.digest)):
            if state[name] != mine:
                raise ResumeMismatch(
                    f"{name}: {state[name]!r} in the checkpoint, {mine!r} now. Resume with the "
                    "settings and the data of the checkpoint, or start anew without it."
                )
        self.iteration = state["iteration"]
        for name, network in self.method.networks.items():
            network.load_state_dict(state["networks"][name])
        for name, optimizer in self.method.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.topk.load_state_dict(state["topk"])
        self.counted, self.last_k = dict(state["counted"]), state["last_k"]
