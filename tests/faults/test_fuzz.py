"""Outputs of critics and settings of every kind against a naive oracle: what is kept, what refused.

``TOPK_FUZZ=10000 pytest -n 0 -o faulthandler_timeout=0 tests/faults/test_fuzz.py`` tries as many of
each; a few minutes are more than pytest gives a test otherwise.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections import namedtuple
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from topk_plugin import TopK, TopKConfig, attach, hookimpl
from topk_plugin.errors import ConfigError, ScoreShapeError, TopKError

EXAMPLES = int(os.environ.get("TOPK_FUZZ", "60"))
fuzzed = settings(
    max_examples=EXAMPLES, deadline=None, derandomize="TOPK_FUZZ" not in os.environ,
    suppress_health_check=list(HealthCheck), print_blob=True,
)  # fmt: skip

NAN, INF = math.nan, math.inf
# halves and quarters: sums and means of few are exact, so that a plain sort sees the same ties
exact = st.integers(-8, 8).map(lambda n: n / 4)
numbers = st.one_of(exact, exact, exact, st.sampled_from([NAN, INF, -INF, -0.0]))
dtypes = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])
SHAPES: dict[str, list[Callable[[int], tuple[int, ...]]]] = {
    "score": [lambda b: (b,), lambda b: (b, 1), lambda b: (b, 1, 1, 1)],
    "patches": [lambda b: (b, 1, 2, 2), lambda b: (b, 1, 4), lambda b: (b, 1, 1, 2)],
    "logits": [lambda b: (b, 2), lambda b: (b, 4)],
    "features": [lambda b: (b, 2, 2, 2)],
    "of reals": [lambda b: (b,), lambda b: (b, 1)],  # not of the generator's samples
    "other rows": [lambda b: (b + 1,), lambda b: (b + 1, 1)],
    "average": [lambda b: ()],
    "classes": [lambda b: (b,)],
    "no tensor": [lambda b: ()],
}
Pair = namedtuple("Pair", "first second")


@dataclass
class Leaf:
    """A part of what a critic returns, and what the loss sends back to it."""

    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    values: list[float]
    gradient: list[float] | None  # None: the loss does not read it
    name: str = ""
    where: Any = None  # the tensor

    @property
    def floats(self) -> bool:
        return self.kind not in ("classes", "no tensor")

    @property
    def incoming(self) -> Tensor | None:
        if self.gradient is None:
            return None
        return torch.tensor(self.gradient).to(self.dtype).reshape(self.shape)

    def rows(self, numbers: list[float]) -> list[list[float]]:
        """By sample."""
        width = len(numbers) // self.shape[0] if self.shape else 1
        return [numbers[i : i + width] for i in range(0, len(numbers), width)]


@dataclass
class Case:
    """A generator step."""

    batch: int
    leaves: list[Leaf]
    container: str
    settings: dict[str, Any]
    epochs: int
    way: str
    asks: bool = False  # a plugin is asked for the rows, and leaves them to the next
    named: list[int] = field(default_factory=list)  # leaves, by position


@st.composite
def cases(draw: Any) -> Case:
    batch = draw(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 8, 8]))
    leaves = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["score"] * 4 + ["patches"] * 3 + [*SHAPES]))
        shape = draw(st.sampled_from(SHAPES[kind]))(batch)
        size = math.prod(shape)
        values = draw(st.lists(numbers, min_size=size, max_size=size))
        read = kind not in ("classes", "no tensor") and draw(st.integers(0, 3)) > 0
        push = st.lists(numbers, min_size=size, max_size=size)
        gradient = draw(push) if read else None
        leaves.append(Leaf(kind, shape, draw(dtypes), values, gradient))
    container = draw(st.sampled_from(["tuple", "list", "dict", "nested", "deep"]))
    if len(leaves) == 1:
        container = draw(st.sampled_from(["tensor", container]))
    given = {
        "gamma": draw(st.sampled_from([1.0, 0.9, 0.7, 0.5, 0.3])),
        "nu": draw(st.sampled_from([0.01, 0.2, 0.5, 0.75, 1.0])),
        "direction": draw(st.sampled_from(["auto", "high", "low"])),
        "reduction": draw(st.sampled_from(["mean", "sum"])),
        "companions": draw(st.sampled_from(["auto", "keep", "follow"])),
        "gate": draw(st.sampled_from(["auto", "score", "shielded"])),
    }
    way = draw(st.sampled_from(["line", "accumulate", "attach", "marked", "frozen"]))
    asks = way != "accumulate" and draw(st.booleans())
    named = draw(st.lists(st.integers(0, len(leaves) - 1), max_size=2, unique=True))
    named = named if draw(st.integers(0, 3)) == 3 else []
    return Case(
        batch, leaves, container, given, draw(st.sampled_from([1, 2, 3, 4, 0])), way, asks, named
    )


# --- the output ---------------------------------------------------------------------------------


def packed(kind: str, parts: list[Any]) -> tuple[Any, list[str]]:
    """What a critic returns, and the path of each part in it."""
    if kind == "tensor":
        return parts[0], ["0"]
    if kind == "tuple":
        return tuple(parts), [str(i) for i in range(len(parts))]
    if kind == "list":
        return parts, [str(i) for i in range(len(parts))]
    keys = "abcd"[: len(parts)]
    if kind == "dict":
        return dict(zip(keys, parts, strict=True)), [*keys]
    if kind == "nested":
        rest, names = packed("dict", parts[1:])
        return [parts[0], rest], ["0", *(f"1.{name}" for name in names)]
    rest, names = packed("list", parts[1:])
    return {"x": Pair(parts[0], (rest,))}, ["x.first", *(f"x.second.0.{n}" for n in names)]


class Critic(nn.Module):
    """Returns the leaves of a case, whose numbers are those of its input times one."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case, self.one = case, nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Any:
        parts, column = [], 0
        for leaf in self.case.leaves:
            width = math.prod(leaf.shape[1:])
            own = x[:, column : column + width] * self.one
            column += width
            if leaf.kind == "no tensor":
                leaf.where = None
            elif leaf.kind == "classes":
                leaf.where = torch.arange(self.case.batch)
            elif leaf.kind == "of reals":
                leaf.where = torch.tensor(leaf.values).double().reshape(leaf.shape) * self.one
            elif leaf.kind == "other rows":
                leaf.where = torch.cat([own, own[:1]]).reshape(leaf.shape)
            elif leaf.kind == "average":
                leaf.where = own.sum()
            else:
                leaf.where = own.reshape(leaf.shape)
            if leaf.floats:
                leaf.where = leaf.where.to(leaf.dtype)
            parts.append(leaf.where)
        output, names = packed(self.case.container, parts)
        for leaf, name in zip(self.case.leaves, names, strict=True):
            leaf.name = name
        return output


def samples(case: Case) -> Tensor:
    """(B, columns) from which the critic makes its outputs."""
    columns = []
    for leaf in case.leaves:
        width = math.prod(leaf.shape[1:])
        values = (leaf.values + [0.0] * case.batch * width)[: case.batch * width]
        columns.append(torch.tensor(values).double().reshape(case.batch, width))
    return torch.cat(columns, dim=1)


# --- the oracle ---------------------------------------------------------------------------------


BY_HAND = ("line", "accumulate")


class Refused(Exception):
    """There is no score to rank by."""


def like_a_score(leaf: Leaf, batch: int) -> bool:
    if not leaf.floats or not (leaf.shape or batch == 1) or (leaf.shape or (1,))[0] != batch:
        return False
    return math.prod(leaf.shape) == batch or (len(leaf.shape) >= 3 and leaf.shape[1] == 1)


def heads_of(case: Case, leaves: list[Leaf]) -> tuple[list[Leaf], int]:
    """The leaves that may rank the batch, and how many rows it has."""
    attached = case.way not in BY_HAND
    batch: int | None = case.batch if attached else None
    tensors = [leaf for leaf in leaves if leaf.kind != "no tensor"]
    if case.named:
        heads = [leaves[i] for i in case.named]
        if not all(head.floats for head in heads):
            raise Refused
        of_reals = any(head.kind == "of reals" for head in heads)
        if attached and of_reals and case.container != "tensor":
            raise Refused
        if batch is None:
            if not any(head.shape for head in heads):
                raise Refused
            batch = next(head.shape[0] for head in heads if head.shape)
        for head in heads:
            if not head.shape and batch != 1:
                raise Refused
            if head.shape and head.shape[0] != batch:
                raise Refused
        return heads, batch
    if case.container == "tensor":
        (head,) = leaves
        if batch is None:
            if not head.floats or not head.shape:
                raise Refused
            batch = head.shape[0]
        if not like_a_score(head, batch):
            raise Refused
        return [head], batch
    if batch is None:
        own = [x.shape[0] for x in tensors if x.shape and like_a_score(x, x.shape[0])]
        if not own:
            raise Refused
        batch = own[0]
    heads = [leaf for leaf in tensors if like_a_score(leaf, batch)]
    if attached:
        heads = [leaf for leaf in heads if leaf.kind != "of reals"]
    if not heads:
        raise Refused
    return heads, batch


def sign(x: float) -> int:
    return (x > 0) - (x < 0)


def added(numbers: list[float]) -> float:
    total = 0.0
    for number in numbers:
        total += number
    return total


def oracle(case: Case, observed: list[list[float]]) -> tuple[list[Tensor | None], list[float], int]:
    """The gradients that remain of all leaves, the numbers that rank, and k; row by row."""
    leaves = case.leaves
    given = case.settings
    heads, batch = heads_of(case, leaves)
    follows = given["companions"] == "follow"
    if case.way in BY_HAND and follows and len(heads) > 1 and not case.named:
        raise Refused
    incoming = [leaf.incoming for leaf in leaves]
    read = [head for head in heads if head.gradient is not None]
    if not read:
        return incoming, [], 0
    ranked = heads if case.named else read
    order = []
    for i in range(batch):
        means = []
        for head in ranked:
            row = head.rows(observed[leaves.index(head)])[i]
            means.append(added(row) / len(row))
        order.append(added(means) / len(means))
    pushes = [
        added([added(head.rows(head.incoming.flatten().tolist())[i]) for head in read])
        for i in range(batch)
    ]
    vote = -sum(sign(push) for push in pushes)
    high = given["direction"] == "high" or (given["direction"] == "auto" and vote >= 0)
    fraction = max(given["gamma"] ** case.epochs, given["nu"])
    k = max(1, math.floor(fraction * batch + 1e-9))

    def place(i: int) -> tuple[bool, float]:
        bad = order[i] != order[i]
        return bad, 0.0 if bad else -order[i] if high else order[i]

    kept = sorted(range(batch), key=place)[:k]
    weight = batch / k if given["reduction"] == "mean" else 1.0

    def masked(gradient: Tensor) -> Tensor:
        if k == batch:
            return gradient
        found = torch.zeros_like(gradient)
        wide = torch.promote_types(gradient.dtype, torch.float32)
        for i in kept:  # () is the score of a batch of one
            at = i if gradient.dim() else ()
            found[at] = gradient[at].to(wide) * torch.tensor(weight, dtype=wide)
        return found

    for place_, leaf in enumerate(leaves):
        gradient = incoming[place_]
        mine = any(leaf is head for head in heads)
        if gradient is not None and (mine or (follows and leaf.shape[:1] == (batch,))):
            incoming[place_] = masked(gradient)
    return incoming, order, k


# --- what is found ------------------------------------------------------------------------------


def same(a: Tensor, b: Tensor) -> bool:
    """NaN is NaN, and the two zeros are one."""
    plain = [tensor.nan_to_num(7.7, 8.8, 9.9) for tensor in (a, b)]
    return a.dtype == b.dtype and torch.equal(*plain)


def pull(leaves: list[Leaf], tensors: list[Any], gradients: list[Tensor | None]) -> None:
    """One backward of a loss that sends these gradients."""
    pairs = [
        (tensor, gradient)
        for tensor, gradient in zip(tensors, gradients, strict=True)
        if gradient is not None and tensor.requires_grad
    ]
    if pairs:
        torch.autograd.backward(*map(list, zip(*pairs, strict=True)))


def unpacked(output: Any, leaves: list[Leaf]) -> list[Any]:
    """The leaves of an output, by their names."""
    found = []
    for leaf in leaves:
        at = output
        for step in leaf.name.split("."):
            if isinstance(at, (Tensor, type(None))):
                break  # a lone tensor is called 0
            at = getattr(at, step) if step in ("first", "second") else (
                at[step] if isinstance(at, dict) else at[int(step)]
            )  # fmt: skip
        found.append(at)
    return found


class Passes:
    """So that the device says what is kept, as where a step is compiled or captured."""

    @hookimpl
    def topk_select(self, scores):
        return None


def check(case: Case) -> None:
    x, critic = samples(case), Critic(case)
    parameter = nn.Parameter(x.clone())
    critic(parameter * 1)  # names the leaves
    names = [case.leaves[i].name for i in case.named]
    topk = TopK(**case.settings, heads=tuple(names), hooks=[Passes()] if case.asks else [])
    for _ in range(case.epochs):
        topk.end_epoch()
    observed = [leaf.where.flatten().tolist() if leaf.floats else [] for leaf in case.leaves]
    try:
        expected, order, k = oracle(case, observed)
    except Refused:
        with pytest.raises(ScoreShapeError):
            step(case, topk, critic, parameter)
        return
    plain, other = x.clone().requires_grad_(), Critic(case)
    other.requires_grad_(case.way != "frozen")
    other(plain * 1)
    pull(case.leaves, [leaf.where for leaf in case.leaves], expected)
    step(case, topk, critic, parameter)
    if plain.grad is None:
        assert parameter.grad is None or not parameter.grad.any()
        return
    if case.way == "attach":  # rows may be weighed at the critic's input, in its precision
        rounding = 4 * max(torch.finfo(leaf.dtype).eps for leaf in case.leaves)
        torch.testing.assert_close(
            parameter.grad, plain.grad, rtol=rounding, atol=0, equal_nan=True
        )
    else:
        assert same(parameter.grad, plain.grad)
    report = topk.report()
    rows = len(order)
    assert (report.steps, report.rows, report.dropped) == (bool(rows), rows, rows - k)
    assert report.nonfinite == sum(not math.isfinite(score) for score in order)


def step(case: Case, topk: TopK, critic: Critic, parameter: nn.Parameter) -> None:
    """One generator step, in the way of the case; the gradient is left where it was."""
    optimizer = torch.optim.SGD([parameter], 0.0)
    torch.optim.SGD(critic.parameters(), 0.0)
    critic.requires_grad_(case.way != "frozen")
    incoming = [leaf.incoming for leaf in case.leaves]
    with ExitStack() as inside:
        if case.way not in BY_HAND:
            inside.enter_context(attach(critic, topk))
        if case.way == "marked":
            inside.enter_context(topk.generator_step())
        with topk.accumulate(1) if case.way == "accumulate" else nullcontext():
            output = critic(parameter * 1)
            output = topk(output) if case.way in BY_HAND else output
        pull(case.leaves, unpacked(output, case.leaves), incoming)
        found = parameter.grad
        parameter.grad = None if found is None else torch.zeros_like(found)
        optimizer.step()
        parameter.grad = found


def plainly(kinds: list[str], batch: int, way: str, **more: Any) -> Case:
    """A case in which nothing is odd but the kinds of outputs; all of them are read."""
    leaves = []
    for kind in kinds:
        shape = SHAPES[kind][0](batch)
        size = math.prod(shape)
        read = None if kind == "classes" else [-0.25] * size
        leaves.append(Leaf(kind, shape, torch.float64, [i / 4 for i in range(size)], read))
    given = {"gamma": 0.9, "nu": 0.01, "direction": "auto", "reduction": "mean"}
    given |= {"companions": "auto", "gate": "auto"}
    container = more.pop("container", "tuple")
    return Case(batch, leaves, container, given, 1, way, **more)


FOUND = {
    "scores of reals (B,) that the loss reads, too": plainly(["of reals", "score"], 2, "attach"),
    "an average before the score of a batch of one": plainly(["average", "score"], 1, "line"),
    "classes that are named as the score": plainly(
        ["classes"], 2, "line", container="tensor", named=[0]
    ),
    "a weight that was rounded twice": plainly(["score"], 7, "accumulate"),
}
"""What went wrong once."""


@pytest.mark.filterwarnings("ignore:attach. ")
@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_before(name):
    check(FOUND[name])


@pytest.mark.filterwarnings("ignore:attach. ")
@pytest.mark.filterwarnings("ignore:the loss pushes all numbers")
@fuzzed
@given(cases())
def test_any_output_of_a_critic_is_gated_as_the_oracle_says_or_refused(case):
    check(case)


# --- settings -----------------------------------------------------------------------------------

NAMES = [field.name for field in dataclasses.fields(TopKConfig)]
words = ["auto", "high", "epoch", "score", "global", "random-k", "N/A", "0.5", "on"]
simple = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.floats(0, 1),
    st.binary(max_size=3), st.sampled_from(words), st.integers(-1, 3),
    st.just(torch.tensor(0.5)), st.just(object()),
)  # fmt: skip
anything = st.recursive(
    simple,
    lambda parts: st.one_of(
        st.lists(parts, max_size=3),
        st.tuples(parts, parts),
        st.dictionaries(st.text(max_size=4), parts, max_size=2),
    ),
    max_leaves=4,
)
keys = st.one_of(st.sampled_from(NAMES), st.sampled_from(NAMES), st.text(max_size=6), st.integers())
mappings = st.dictionaries(keys, anything, max_size=4)
studiogan = st.fixed_dictionaries(
    {"LOSS": st.one_of(anything, st.dictionaries(
        st.sampled_from(["apply_topk", "topk_gamma", "topk_nu", "adv_loss"]), anything))},
    optional={"gamma": anything, "RUN": anything},
)  # fmt: skip


def accepted(make: Callable[[], TopKConfig]) -> None:
    """Settings that are made are within their ranges; what is refused is a ConfigError."""
    try:
        config = make()
    except ConfigError:
        return
    assert isinstance(config.enabled, bool)
    assert 0 < config.gamma <= 1
    assert 0 < config.nu <= 1
    assert config.every == "epoch" or (type(config.every) is int and config.every >= 1)
    assert type(config.start_epoch) is int
    assert config.start_epoch >= 0
    assert all(isinstance(head, (str, int)) for head in config.heads)
    assert config == TopKConfig(**dataclasses.asdict(config))
    try:
        topk = TopK(config)
    except ConfigError:  # a plugin that there is not, or one that does not go with the scope
        assert config.plugins
        return
    assert 1 <= topk.k(7) <= 7


@fuzzed
@given(mappings, studiogan)
def test_any_mapping_is_settings_or_a_config_error(mapping, of_studiogan):
    accepted(lambda: TopKConfig.from_config(mapping))
    accepted(lambda: TopKConfig.from_config(of_studiogan))


@fuzzed
@given(
    st.dictionaries(st.sampled_from(NAMES), anything, max_size=4),
    st.dictionaries(
        st.sampled_from([f"TOPK_{name.upper()}" for name in NAMES] + ["TOPK_GAMA", "PATH"]),
        st.one_of(st.text(max_size=8), st.floats().map(str), st.integers().map(str)),
        max_size=3,
    ),
)
def test_any_flags_and_variables_are_settings_or_a_config_error(flags, environ):
    accepted(lambda: TopKConfig.from_sources(flags, environ))


@fuzzed
@given(st.dictionaries(st.sampled_from([*TopK().state_dict(), "found"]), anything))
def test_any_record_is_gone_on_from_or_refused(changes):
    topk = TopK()
    try:
        topk.load_state_dict(TopK().state_dict() | changes)
    except TopKError:
        return
    topk.end_epoch()
    assert 1 <= topk.k(7) <= 7
