"""Table 1: GANs on a mixture of Gaussians, many of them trained as one stacked model.

Paper, section 4.1, after Azadi et al. (2018) and Sinha et al. (2019): modes on a square grid,
standard deviation 0.05, MLPs with hidden layers of 256, the non-saturating loss, batches of 256,
Adam with learning rate 1e-4, 100,000 iterations; k decays every 2,000 of them.

The networks of all members (numbers of modes, arms, seeds) are stacked and multiplied with
``bmm``. Members share nothing: each has its weights, its data and its ranking, so that it goes
where it would go alone, and a NaN stays where it is. On a GPU one iteration is one CUDA graph,
captured once; k lies on the device, so that the graph replays as k changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from topk_plugin import TopK, hookimpl
from topk_plugin.errors import ConfigError
from topk_plugin.reference.randomness import stream
from topk_plugin.reference.runs.records import Member, Row
from topk_plugin.reference.settings import is_number, require

CHUNK = 100
"""Iterations whose data are drawn at once."""

EAGER = 100
"""Iterations before the CUDA graph is captured: as many as vote on the scores' direction."""

PIXELS = 32
"""Rows of a batch that stand for images where layers are convolutions; the fastest of 2 to 512."""

BLOCK = 256
"""Rows that a CPU computes at once: activations of four members then fit its caches."""

STACK = 4
"""Members that one process trains together on a CPU: more do not fit its caches."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "leaky_relu": lambda x: functional.leaky_relu_(x, 0.2),
    "tanh": torch.tanh_,
}
PRIORS = ("normal", "uniform")
ARMS: dict[str, bool] = {"gan": False, "top-k": True}
"""Arms, and whether top-k is on in them."""


@dataclass(frozen=True)
class Settings:
    """The experiment; those under "open" are not in the paper.

    Raises:
        ConfigError: a value of the wrong type or out of its range.
    """

    iterations: int = 100_000
    batch: int = 256
    hidden: int = 256
    learning_rate: float = 1e-4
    std: float = 0.05  # of a mode, in each direction
    gamma: float = 0.99
    nu: float = 0.75
    decay_every: int = 2_000  # iterations
    samples: int = 10_000  # that are drawn to measure
    # open
    layers: int = 4  # linear layers, the last one included
    activation: str = "leaky_relu"
    latent: int = 2
    prior: str = "normal"
    spacing: float = 1.0  # between neighbouring modes
    beta1: float = 0.9
    beta2: float = 0.999
    critic_steps: int = 1  # a generator step
    measure_every: int = 5_000  # iterations

    def __post_init__(self) -> None:
        for name in ("iterations", "batch", "hidden", "decay_every", "samples", "layers",
                     "latent", "critic_steps", "measure_every"):  # fmt: skip
            value = getattr(self, name)
            require(type(value) is int and value >= 1, name, value, "a whole number, at least 1")
        for name in ("learning_rate", "std", "spacing"):
            value = getattr(self, name)
            require(is_number(value) and value > 0, name, value, "a number above 0")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(is_number(value) and 0 <= value < 1, name, value, "a number in [0, 1)")
        for name in ("gamma", "nu"):
            value = getattr(self, name)
            require(is_number(value) and 0 < value <= 1, name, value, "a number in (0, 1]")
        require(self.activation in ACTIVATIONS, "activation", self.activation, [*ACTIVATIONS])
        require(self.prior in PRIORS, "prior", self.prior, [*PRIORS])


def grid_modes(modes: int, spacing: float) -> Tensor:
    """The modes' centres, (modes, 2): a square grid around the origin.

    Raises:
        ConfigError: ``modes`` is no square number.
    """
    side = math.isqrt(max(modes, 0))
    if side < 1 or side * side != modes:
        raise ConfigError(f"found {modes} modes, expected a square number such as 25, 64 or 100")
    ticks = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) * spacing
    return torch.cartesian_prod(ticks, ticks).reshape(modes, 2).float()


class Coverage(NamedTuple):
    """How well samples cover the modes (paper, section 4.1)."""

    high_quality: float  # percent of the samples, within 4 std of the nearest mode
    modes: float  # percent of the modes that are nearest to at least one such sample
    nonfinite: int  # samples with NaN or infinite coordinates; of high quality is none of them


def mode_coverage(samples: Tensor, centers: Tensor, std: float) -> Coverage:
    """Table 1's two metrics, for samples (N, 2) of any generator and modes (M, 2)."""
    nearest, distance = nearest_mode(samples, centers)
    good = distance <= 4 * std
    found = torch.unique(nearest[good]).numel()
    broken = int((~samples.isfinite().all(dim=1)).sum())
    return Coverage(100 * good.double().mean().item(), 100 * found / len(centers), broken)


def nearest_mode(samples: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Index (N,) of the nearest centre (M, 2) of each sample (N, 2), and the distance (N,)."""
    # not cdist: its matrix form loses digits where a sample lies on a mode
    distance, nearest = (samples[:, None] - centers).norm(dim=2).min(dim=1)
    return nearest, distance


def latents(settings: Settings, rows: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draws (*rows, latent) from the prior."""
    shape = (*rows, settings.latent)
    if settings.prior == "uniform":
        return torch.rand(shape, generator=generator, device=generator.device) * 2 - 1
    return torch.randn(shape, generator=generator, device=generator.device)


class Draws(NamedTuple):
    """What ``CHUNK`` iterations of one (modes, seed) see, in every arm."""

    real: Tensor  # (CHUNK, critic_steps, B, 2)
    noise: Tensor  # (CHUNK, critic_steps + 1, B, latent); the last one is the generator's


def draw(settings: Settings, modes: int, seed: int, chunk: int, device: torch.device) -> Draws:
    """The data of iterations ``chunk * CHUNK`` and on."""
    generator = stream("data", modes, seed, chunk, device=device)
    rows = (CHUNK, settings.critic_steps, settings.batch)
    which = torch.randint(modes, rows, generator=generator, device=device)
    real = torch.randn((*rows, 2), generator=generator, device=device) * settings.std
    real += grid_modes(modes, settings.spacing).to(device)[which]
    rows = (CHUNK, settings.critic_steps + 1, settings.batch)
    return Draws(real, latents(settings, rows, generator))


# --- the stacked networks -----------------------------------------------------------------------


def initial_weights(settings: Settings, modes: int, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Generator's and critic's weights (out, in) and biases (out,), in turns, as of nn.Linear."""
    generator = stream("weights", modes, seed, device=torch.device("cpu"))
    networks = []
    for first, last in ((settings.latent, 2), (2, 1)):
        widths = [first, *[settings.hidden] * (settings.layers - 1), last]
        parameters = []
        for wide, out in zip(widths, widths[1:], strict=False):
            for shape in ((out, wide), (out,)):
                uniform = torch.rand(shape, generator=generator) * 2 - 1
                parameters.append(uniform / math.sqrt(wide))
        networks.append(parameters)
    return networks[0], networks[1]


class GroupedLinear(torch.autograd.Function):
    """M linear layers on a CPU, as a grouped 1x1 convolution with rows in the place of pixels.

    On one core oneDNN's convolutions are up to twice as fast as MKL's matrix products, but for the
    weights' gradient. x (PIXELS, M * in, B / PIXELS, 1), weights (M, out, in), biases (M, out).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return functional.conv2d(x, _filters(weight), bias.flatten(), groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        size, by_x = len(weight), None
        if ctx.needs_input_grad[0]:
            # forward again: its layout stays that of x, which convolution_backward changes
            by_x = functional.conv2d(gradient, _filters(weight.transpose(1, 2)), groups=size)
        if not ctx.needs_input_grad[1]:
            return by_x, None, None
        rows = _rows(gradient, size)
        by_weight = torch.bmm(rows.permute(1, 2, 0), _rows(x, size).transpose(0, 1))
        return by_x, by_weight, rows.sum(dim=0)


def _filters(weight: Tensor) -> Tensor:
    return weight.reshape(-1, weight.shape[2], 1, 1)


def _pixels(x: Tensor) -> Tensor:
    """(M, B, in) as channels-last memory, in which a row's numbers lie together."""
    size, batch, wide = x.shape
    rows = x.transpose(0, 1).reshape(PIXELS, batch // PIXELS, 1, size * wide)
    return rows.permute(0, 3, 1, 2)


def _rows(pixels: Tensor, size: int) -> Tensor:
    """(B, M, in) of what :func:`_pixels` made; nothing is moved."""
    images, channels, height, _ = pixels.shape
    return pixels.permute(0, 2, 3, 1).reshape(images * height, size, channels // size)


def mlp(parameters: Sequence[Tensor], x: Tensor, activation: str) -> Tensor:
    """M stacked MLPs: weights (M, out, in) and biases (M, out) in turns, x (M, B, in)."""
    layers = list(zip(parameters[::2], parameters[1::2], strict=True))
    size, batch, _ = x.shape
    grouped = x.device.type == "cpu" and x.dtype == torch.float32 and batch % PIXELS == 0
    if grouped and batch > BLOCK:
        parts = x.split(BLOCK, dim=1)
        return torch.cat([mlp(parameters, part, activation) for part in parts], dim=1)
    if grouped:
        x = _pixels(x)
    for i, (weight, bias) in enumerate(layers):
        if grouped:
            x = GroupedLinear.apply(x, weight, bias)
        else:
            x = torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
        if i + 1 < len(layers):
            x = ACTIVATIONS[activation](x)
    return _rows(x, size).transpose(0, 1) if grouped else x


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


def update(loss: Tensor, *optimizers: torch.optim.Optimizer) -> None:
    """A step of these optimizers' networks; others in the loss get no gradient."""
    own = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    for parameter, gradient in zip(own, torch.autograd.grad(loss, own), strict=True):
        parameter.grad = gradient.contiguous()  # fused optimizers read it in memory order
    for optimizer in optimizers:
        optimizer.step()


# --- training -----------------------------------------------------------------------------------


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
                enabled=ARMS[arm],
                gamma=settings.gamma,
                nu=settings.nu,
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
            for arm, topk in self.topk.items():
                if ARMS[arm]:
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
            if self.eager < 3 or self.iteration < EAGER:
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
            if ARMS[member.arm]:
                rows.append(self._row(member, "topk") | self._proof(member.arm))
        return rows

    def _row(self, member: Member, kind: str) -> Row:
        return member._asdict() | {"iteration": self.iteration, "kind": kind}

    def _proof(self, arm: str) -> Row:
        report, rows = self.topk[arm].report(), self.arms[arm]
        return {
            "steps": report.steps,
            "epochs": report.epochs,
            "dropped": (self.dropped[arm] + report.dropped) // (rows.stop - rows.start),
            "direction": report.direction,
            "last_k": self.topk[arm].k(self.settings.batch),
        }

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
