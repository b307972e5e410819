"""Mixed precision, checkpointing and compiled networks, with rows that compete over calls or ranks.

Each is compared with the same forward passes, a plain sort over all rows, and a loss that weighs
the kept ones; ranks take turns in one process.
"""

import contextlib

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import softplus
from torch.utils.checkpoint import checkpoint
from torches import compiles, scalers

from topk_plugin import TopK, attach, hookimpl
from topk_plugin.core.contest import Gathered
from topk_plugin.core.scope import Scope
from topk_plugin.errors import ConfigError

ROWS = 32


class Turns:
    """Ranks that take turns; what the others send is known before."""

    rows = None

    def __init__(self, scores: list[Tensor]) -> None:
        self.scores, self.rank = scores, 0

    @property
    def size(self) -> int:
        return len(self.scores)

    def gather(self, rows: Tensor, lean: Tensor, fraction: float) -> Gathered:
        assert torch.equal(rows, self.scores[self.rank])
        sizes = torch.tensor([len(one) for one in self.scores], dtype=torch.float64)
        kept = torch.tensor(fraction, dtype=torch.float64)
        return Gathered(torch.stack(self.scores), sizes, lean.expand(self.size), kept, self.rank)


def networks(compiled: bool) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4))
    critic = nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
    if compiled:
        generator.compile(backend="aot_eager", fullgraph=True)
        critic.compile(backend="aot_eager", fullgraph=True)
    return generator, critic


def forward(way: str, generator: nn.Module, critic: nn.Module, z: Tensor) -> Tensor:
    """Scores, in one of the ways."""
    if way == "checkpointed":
        fake = checkpoint(generator, z, use_reentrant=False)
        return checkpoint(critic, fake, use_reentrant=False)
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "mixed precision"):
        return critic(generator(z))


def gradient(module: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters()])


def by_hand(way, generator, critic, z, competing: int, scale: float) -> Tensor:
    """Half of the rows of each ``competing`` batches of ``z`` (batches, b, 3), by a plain sort."""
    generator.zero_grad()
    for start in range(0, len(z), competing):
        scores = [forward(way, generator, critic, part) for part in z[start : start + competing]]
        flat = torch.cat(scores).flatten().tolist()
        order = sorted(range(len(flat)), key=lambda i: -flat[i])
        kept = torch.zeros(len(flat)).index_fill(0, torch.tensor(order[: len(flat) // 2]), 1.0)
        share = competing / len(z) / (len(flat) // 2)
        losses = [
            (softplus(-one.float()).flatten() * mask).sum()
            for one, mask in zip(scores, kept.chunk(competing), strict=True)
        ]
        (sum(losses) * share * scale).backward()
    return gradient(generator) / scale


def found(way, generator, critic, z, gate: str, scope: str, monkeypatch, scale: float) -> Tensor:
    """The gradient of top-k, averaged over two ranks where the scope is theirs."""
    ranks = 2 if "ranks" in scope else 1
    batches = z.reshape(ranks, -1, *z.shape[1:])
    together = 1 if scope in ("each", "ranks") else batches.shape[1]
    turns = None
    if ranks > 1:
        with torch.no_grad():
            rows = [
                torch.cat([forward(way, generator, critic, part) for part in own])
                .flatten()
                .double()
                for own in batches
            ]
        turns = Turns(rows)
        monkeypatch.setattr(Scope, "ranks", property(lambda self: turns))
    topk = TopK(gamma=0.5, nu=0.5, scope="global" if ranks > 1 else "rank")
    topk.end_epoch()
    scaler = torch.amp.GradScaler("cpu", init_scale=scale) if scale != 1 else None
    optimizer = torch.optim.SGD(generator.parameters(), 0.0)
    line = topk if gate == "line" else (lambda scores: scores)
    generator.zero_grad()
    with attach(critic, topk) if gate == "attach" else contextlib.nullcontext():
        for rank in range(ranks):
            if turns is not None:
                turns.rank = rank
            for start in range(0, len(batches[rank]), together):
                parts = batches[rank][start : start + together]
                many = topk.accumulate(together) if together > 1 else contextlib.nullcontext()
                with many:
                    scores = [line(forward(way, generator, critic, part)) for part in parts]
                losses = [softplus(-one.float()).mean() / len(batches[rank]) for one in scores]
                loss = sum(losses) / ranks
                (scaler.scale(loss) if scaler is not None else loss).backward()
        if scaler is not None:
            scaler.unscale_(optimizer)
            result = gradient(generator)
            scaler.step(optimizer)
        else:
            result = gradient(generator)
            optimizer.step()
    assert topk.report().dropped == ROWS // 2 if turns is None else topk.steps == 1
    return result


SCOPES = {"each": 1, "accumulate": 4, "ranks": 2, "ranks, accumulate": 4}
"""How many of the batches compete with each other."""

CASES = [
    *((way, scope) for way in ("plain", "checkpointed") for scope in SCOPES),
    *(pytest.param("mixed precision", scope, marks=scalers) for scope in SCOPES),
    pytest.param("compiled", "ranks, accumulate", marks=compiles),  # it takes seconds
]


@pytest.fixture
def forgotten():
    """What is compiled here changes nothing for other tests."""
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("gate", ["line", "attach"])
@pytest.mark.parametrize(("way", "scope"), CASES)
def test_the_gradient_is_that_of_a_plain_sort(way, scope, gate, monkeypatch):
    """Weights are powers of two, so that no rounding differs."""
    generator, critic = networks(way == "compiled")
    batches = 2 if scope == "ranks" else 4
    z = torch.randn(batches, ROWS // batches, 3)
    scale = 2.0**10 if way == "mixed precision" else 1.0
    expected = by_hand(way, generator, critic, z, SCOPES[scope], scale)
    result = found(way, generator, critic, z, gate, scope, monkeypatch, scale)
    assert (result - expected).norm() <= 1e-6 * expected.norm()
    others = [by_hand(way, generator, critic, z, n, scale) for n in {1, batches} - {SCOPES[scope]}]
    assert all((other - expected).norm() > 1e-2 * expected.norm() for other in others)


# --- members of an ensemble ---------------------------------------------------------------------


class OfEachMember:
    """k of a batch of several members are k / M of each."""

    def __init__(self, members: int) -> None:
        self.members = members

    @hookimpl
    def topk_select(self, scores: Tensor, k: Tensor) -> Tensor:
        rank = scores.view(self.members, -1).argsort(dim=1, descending=True).argsort(dim=1)
        return (rank < k / self.members).flatten()


def ensemble(members: int):
    torch.manual_seed(0)
    pairs = [[one.double() for one in networks(False)] for _ in range(members)]
    for pair in pairs:
        for parameter in (p for one in pair for p in one.parameters()):
            nn.init.normal_(parameter)
    return pairs, torch.randn(members, 8, 3, dtype=torch.float64)


def test_members_that_vmap_stacks_keep_k_rows_each():
    pairs, z = ensemble(3)
    base = list(pairs[0])
    stacked = [stack_module_state([pair[i] for pair in pairs])[0] for i in range(2)]
    own = {name: value.detach().requires_grad_() for name, value in stacked[0].items()}

    def member(of_generator, of_critic, z):
        fake = functional_call(base[0], of_generator, (z,))
        return functional_call(base[1], of_critic, (fake,)).flatten()

    topk = TopK(gamma=0.5, nu=0.5, hooks=[OfEachMember(3)])
    topk.end_epoch()
    scores = topk(vmap(member)(own, stacked[1], z).flatten())
    (softplus(-scores).mean() * 3).backward()
    for i, (generator, critic) in enumerate(pairs):
        kept = critic(generator(z[i])).flatten().topk(4).values
        softplus(-kept).mean().backward()
        for name, parameter in generator.named_parameters():
            difference = (own[name].grad[i] - parameter.grad).norm()
            assert difference <= 1e-12 * parameter.grad.norm()


@pytest.mark.parametrize("inner", [False, True], ids=["vmap", "grad in vmap"])
def test_inside_vmap_it_is_refused(inner):
    """Where it would change nothing, without a word."""
    topk = TopK(gamma=0.5, nu=0.5)
    topk.end_epoch()
    scores = torch.randn(3, 8, requires_grad=True)

    def loss(scores):
        return softplus(-topk(scores)).mean()

    with pytest.raises(ConfigError, match="expected those of all members outside"):
        vmap(torch.func.grad(loss) if inner else loss)(scores)
