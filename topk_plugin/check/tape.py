"""What a script does with gated scores until it calls backward(), so that it can be done again.

A tape takes down the torch functions that run downstream of the scores. They are then called once
more on the kept scores alone, which is the paper's line itself: ``loss(scores[kept])``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _len_torch_function_stack
from torch.overrides import TorchFunctionMode, _pop_mode, _push_mode
from torch.utils import _pytree as pytree
from torch.utils._device import DeviceContext

from topk_plugin.check.formula import brief
from topk_plugin.compat import autocast_of, is_compiling
from topk_plugin.core.score_gate import ScoreGate, SortedGate
from topk_plugin.core.shielded_gate import OutputGate
from topk_plugin.core.trees import tree_leaves
from topk_plugin.monkeypatch import PatchLog, stands_in

SHAPED = {
    "view", "reshape", "expand", "broadcast_to", "repeat", "unflatten", "new_ones", "new_zeros",
    "new_full", "new_empty",
}  # fmt: skip
"""Functions whose whole numbers are sizes."""

BY_NUMBER = {
    "__getitem__", "narrow", "split", "split_with_sizes", "chunk", "tensor_split", "select",
    "index_select", "unbind",
}  # fmt: skip
"""Functions that take rows by their numbers, which are others once rows are gone."""

DIVISIONS = {"div", "true_divide", "divide", "__truediv__", "__itruediv__", "div_", "divide_"}
PRODUCTS = {"mul", "multiply", "__mul__", "__rmul__", "__imul__", "mul_", "multiply_"}


NOT_ALONE = "the loss is not made of the scores by torch's functions alone"


# gradients that a weight is made of stay as they are, and so does the weight
_LEFT_OUT = {torch.autograd.grad}


class Unrepeatable(Exception):
    """What ran downstream of the scores cannot be done again."""


class Entry(NamedTuple):
    """One call of a torch function."""

    function: Callable[..., Any]
    args: Any
    kwargs: Any
    outputs: Any
    graded: bool  # grad mode was on
    autocast: tuple[str, torch.dtype, bool]  # device, dtype, whether it was on

    @property
    def name(self) -> str:
        return str(getattr(self.function, "__name__", self.function))


class Tape(TorchFunctionMode):
    """The functions downstream of gated scores, from :meth:`begin` until it is cleared."""

    def __init__(self) -> None:
        super().__init__()
        self._heads: dict[Any, list[Tensor]] = {}  # of each gate's node
        self._entries: list[Entry] = []
        self._known: dict[int, Tensor] = {}  # what depends on scores, by id; kept alive for that
        self._before: dict[int, Tensor] = {}  # other tensors that were changed in place, as before
        self._reason: str | None = None  # why nothing here can be done again
        self._is_on = False

    def begin(self, node: Any, heads: Sequence[Tensor]) -> None:
        """Take down what becomes of ``heads`` (B, ...), which the gate ``node`` gave."""
        self._heads[node] = list(heads)
        self._known |= {id(head): head for head in heads}
        self._on()

    def forget(self, nodes: Sequence[Any]) -> None:
        """The backward through these gates ran."""
        for node in nodes:
            self._heads.pop(node, None)
        if not self._heads:
            self.clear()

    def clear(self) -> None:
        """Take nothing down any more, and forget what was."""
        self._off()
        self._heads, self._entries, self._known, self._before = {}, [], {}, {}
        self._reason = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is taken down inside."""
        was_on = self._is_on
        self._off()
        try:
            yield
        finally:
            if was_on and self._heads:
                self._on()

    # modes are a stack, and the script may enter and leave some of its own meanwhile
    def _on(self) -> None:
        if not self._is_on:
            self._is_on = True
            others = [_pop_mode() for _ in range(_len_torch_function_stack())]
            if others and isinstance(others[-1], DeviceContext):  # which has to be the lowest
                _push_mode(others.pop())
            for mode in (self, *reversed(others)):
                _push_mode(mode)

    def _off(self) -> None:
        if self._is_on:
            self._is_on = False
            others = [_pop_mode() for _ in range(_len_torch_function_stack())]
            for mode in reversed(others):
                if mode is not self:
                    _push_mode(mode)

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if is_compiling() or not self._is_on or function in _LEFT_OUT:
            return function(*args, **kwargs)
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if not any(id(x) in self._known for x in inputs):
            return function(*args, **kwargs)
        changed = _changed_in_place(function, args, kwargs)
        if changed is not None and id(changed) not in self._known | self._before:
            self._before[id(changed)] = changed.detach().clone()
            self._known[id(changed)] = changed
        device = next((x.device for x in inputs if x.device.type != "cpu"), inputs[0].device)
        drawn = _random_state(device)
        outputs = function(*args, **kwargs)
        result = [outputs] if changed is None else [outputs, changed]
        tensors = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        if not tensors:
            return outputs
        kind = device.type
        autocast = (kind, *autocast_of(kind))
        entry = Entry(function, args, kwargs, result, torch.is_grad_enabled(), autocast)
        if not torch.equal(drawn, _random_state(device)):
            if any(x.requires_grad for x in tensors):
                self._reason = self._reason or f"{entry.name} draws random numbers"
            return outputs  # labels with noise, say: they stay as they were drawn
        self._entries.append(entry)
        self._known |= {id(x): x for x in tensors}
        return outputs

    # --- once more ------------------------------------------------------------------------------

    def gradient(
        self, node: Any, roots: Sequence[tuple[Any, Tensor | None]], kept: Tensor | None = None
    ) -> list[Tensor]:
        """The gradient by the scores of the gate ``node``, of what was made of them.

        Args:
            roots: tensors where the backward began, each with the gradient that it was given.
            kept: (B,) bool, of the rows that take part; None: all of them, as they did.

        Returns:
            by each head, (k, ...).

        Raises:
            Unrepeatable: it cannot be done again, or not with fewer rows.
        """
        if self._reason is not None:
            raise Unrepeatable(self._reason)
        mine = [(root, given) for root, given in roots if id(root) in self._known]
        if node not in self._heads or not mine:
            raise Unrepeatable(NOT_ALONE)
        heads = self._heads[node]
        batch = len(heads[0])
        entries = _leading_to([root for root, _ in mine], self._entries)
        if kept is None:
            return self._gradient(entries, heads, mine, None, batch, False)
        _require_no_numbers(entries, batch)
        rows, count = kept, int(kept.sum())
        if count == 1 and batch > 2:  # one row is broadcast against everything: try with two
            rows = torch.zeros_like(kept)
            rows[:2] = True
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # of tensors that hardly fit
                self._gradient(entries, heads, mine, rows, batch, False)
            fits = count > 1 or batch > 2
        except Exception:  # labels or reals of B rows
            fits = False
        try:
            return self._gradient(entries, heads, mine, kept, batch, not fits)
        except Exception as error:
            raise Unrepeatable(f"on {count} of {batch} rows: {brief(error)}") from error

    def _gradient(
        self,
        entries: Sequence[Entry],
        heads: Sequence[Tensor],
        roots: Sequence[tuple[Tensor, Tensor | None]],
        kept: Tensor | None,
        batch: int,
        everything: bool,
    ) -> list[Tensor]:
        """Args: everything: what else has B rows loses the dropped ones, too."""
        count = batch if kept is None else int(kept.sum())

        def fewer(tensor: Tensor) -> Tensor:
            with_rows = everything and kept is not None and tensor.shape[:1] == (batch,)
            return tensor[kept] if with_rows else tensor

        leaves = [h.detach() if kept is None else h.detach()[kept] for h in heads]
        leaves = [leaf.clone().requires_grad_() for leaf in leaves]
        env = {id(head): leaf.clone() for head, leaf in zip(heads, leaves, strict=True)}
        env |= {key: fewer(tensor.clone()) for key, tensor in self._before.items()}

        def present(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            return env[id(x)] if id(x) in env else fewer(x.detach())

        def size(x: Any) -> Any:
            return count if type(x) is int and x == batch else x

        with ExitStack() as stack:
            devices = [heads[0].device] if heads[0].is_cuda else []
            stack.enter_context(torch.random.fork_rng(devices=devices))
            for entry in entries:
                args, kwargs = pytree.tree_map(present, (entry.args, entry.kwargs))
                if everything and entry.name in SHAPED:
                    args, kwargs = pytree.tree_map(size, (args, kwargs))
                kind, dtype, enabled = entry.autocast
                with torch.set_grad_enabled(entry.graded), torch.autocast(kind, dtype, enabled):
                    outputs = entry.function(*args, **kwargs)
                was = entry.outputs
                now = [outputs] if len(was) == 1 else [outputs, present(was[1])]
                pairs = zip(tree_leaves(was), tree_leaves(now), strict=True)
                env |= {id(old): new for old, new in pairs if isinstance(old, Tensor)}
            ends = [(env.get(id(root), root), given) for root, given in roots]
            ends = [(end, given) for end, given in ends if end.requires_grad]
            if not ends:
                raise Unrepeatable(NOT_ALONE)
            return list(
                torch.autograd.grad(
                    [end for end, _ in ends],
                    leaves,
                    [None if given is None else fewer(given) for _, given in ends],
                    materialize_grads=True,
                )
            )

    def divides_by_rows(self, node: Any) -> bool:
        """Whether a number that the script computed makes a mean of a sum over the rows."""
        batch = len(self._heads[node][0])
        for entry in self._entries:
            numbers = [x for x in entry.args if isinstance(x, int | float) and x]
            if entry.name in PRODUCTS:
                numbers = [1 / x for x in numbers]
            elif entry.name not in DIVISIONS:
                continue
            if any(_is_multiple(x, batch) for x in numbers):
                return True
        return False


def _leading_to(roots: Sequence[Any], entries: Sequence[Entry]) -> list[Entry]:
    """Those of which ``roots`` are made: what is done with scores beside the loss, as to log some
    of them, is none of it. What is changed in place may be a view of anything, and stays."""
    needed, chosen = {id(root) for root in roots}, []
    for entry in reversed(entries):
        in_place = len(entry.outputs) > 1
        if in_place or not needed.isdisjoint(map(id, tree_leaves(entry.outputs))):
            chosen.append(entry)
            needed |= set(map(id, tree_leaves((entry.args, entry.kwargs))))
    return chosen[::-1]


def _require_no_numbers(entries: Sequence[Entry], batch: int) -> None:
    for entry in entries:
        if entry.name not in BY_NUMBER:
            continue
        first = next(iter(tree_leaves((entry.args, entry.kwargs))))
        parts = [x for x in tree_leaves(entry.outputs) if isinstance(x, Tensor)]
        if first.shape[:1] == (batch,) and any(x.shape[:1] != (batch,) for x in parts):
            raise Unrepeatable(f"the loss takes rows by their numbers ({entry.name})")


@contextmanager
def taken_down(tape: Tape) -> Iterator[None]:
    """What gates give inside goes on the tape, until a backward."""

    def begin(gate: Any, heads: Callable[[Any], int]) -> Callable[..., Any]:
        original = gate.apply

        def apply(*args: Any) -> Any:
            outputs = original(*args)
            if not is_compiling() and (count := heads(args)):
                tape.begin(outputs[0].grad_fn, outputs[:count])
            return outputs

        return apply

    backward = Tensor.backward

    @stands_in(backward)
    def pausing(self: Tensor, *args: Any, **kwargs: Any) -> None:
        with tape.paused():  # a mode cannot be left from within a function that it sees
            return backward(self, *args, **kwargs)

    log = PatchLog()
    log.replace(Tensor, "backward", pausing)
    log.replace(OutputGate, "apply", staticmethod(begin(OutputGate, lambda args: args[1])))
    of_line = begin(ScoreGate, lambda args: 0 if args[0] == "none" else args[4])
    log.replace(ScoreGate, "apply", staticmethod(of_line))
    of_host = begin(SortedGate, lambda args: args[2] if args[3] else 0)
    log.replace(SortedGate, "apply", staticmethod(of_host))
    try:
        yield
    finally:
        tape.clear()
        log.undo()


def _is_multiple(number: float, batch: int) -> bool:
    times = abs(number) / batch
    return times >= 1 and abs(times - round(times)) < 1e-9 * times


def _changed_in_place(function: Any, args: Any, kwargs: Mapping[str, Any]) -> Tensor | None:
    """The tensor that a call changes, if it does."""
    name = getattr(function, "__name__", "")
    if isinstance(kwargs.get("out"), Tensor):
        return kwargs["out"]
    changes = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
    changes |= name.startswith("__i") and name not in ("__invert__", "__index__", "__int__")
    first = args[0] if args else None
    return first if changes and isinstance(first, Tensor) else None


def _random_state(device: torch.device) -> Tensor:
    state = torch.get_rng_state()
    return torch.cat([state, torch.cuda.get_rng_state(device)]) if device.type == "cuda" else state
