"""The calls of a loop's modules, looked at while critics are sought.

A module counts where it is called outermost and an optimizer owns it. Calls inside it are not
looked at, unless it returned means alone, got no tensor, or may hold both networks.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from topk_plugin.core.ranking import resembles_score, rows_scored
from topk_plugin.core.sharded import owner_of
from topk_plugin.core.trees import tree_leaves
from topk_plugin.finding.candidate import Candidate, Made
from topk_plugin.finding.identity import Places, plain
from topk_plugin.finding.owners import Owners, Ownership
from topk_plugin.finding.passes import Passes
from topk_plugin.loop.critic_step import rows_at, scores_of
from topk_plugin.loop.generated import Generated
from topk_plugin.loop.generator_graph import generated_rows, parameters_upstream
from topk_plugin.loop.intercept import Interceptor
from topk_plugin.loop.traced import inside
from topk_plugin.topk import TopK


class _Here(threading.local):
    """Where this thread is."""

    inside = False  # a module that is looked at as a whole
    averaging: nn.Module | None = None  # that is called, and returned means alone before


class Calls:
    """Looks at all calls that it is shown, and at passes over the data, until ``stop()``.

    Args:
        attach: asked before each call of a module, by which it may be attached.
    """

    def __init__(
        self, topk: TopK, owners: Owners, places: Places,
        attach: Callable[[nn.Module], Interceptor | None],
    ) -> None:  # fmt: skip
        self.topk, self.owners, self.places, self._attach = topk, owners, places, attach
        self.passes = Passes(topk.training)
        self._here = _Here()
        self._generated = Generated(self._maker)
        self._candidates: weakref.WeakKeyDictionary[nn.Module, Candidate]
        self._candidates = weakref.WeakKeyDictionary()
        self._averages: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # that return means alone
        # that were frozen where they scored what others made: their optimizers may be the same
        self._frozen: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        # that return a score; whether what they scored was made by networks of the same optimizer
        self._scored: weakref.WeakKeyDictionary[nn.Module, set[bool]] = weakref.WeakKeyDictionary()

    @property
    def candidates(self) -> list[Candidate]:
        """Those that were not attached."""
        return [one for one in self._candidates.values() if not one.taken]

    @property
    def of_one_optimizer(self) -> list[nn.Module]:
        """What scores samples that were made and others, where one optimizer owns all networks."""
        return [module for module, made in self._scored.items() if len(made) == 2]

    def begin_anew(self) -> None:
        """A pass without any critic is over: the next one counts as the first."""
        self.passes.stop()
        self.passes = Passes(self.topk.training)

    def stop(self) -> None:
        """Watch no passes any more; twice is fine."""
        self.passes.stop()

    def zeroed(self, parameters: set[int]) -> None:
        """Gradients of ``parameters``, by id, were set to zero."""
        for candidate in self.candidates:
            candidate.zeroed(parameters)

    def see(self, module: nn.Module, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """``original(*args, **kwargs)``, which is a call of ``module``."""
        here = self._here
        if (
            here.inside
            or inside.a_critic
            or self.topk.is_paused
            or torch._C._get_tracing_state() is not None
            or not (own := self.owners.of(module)).optimizers
        ):
            return original(*args, **kwargs)
        interceptor = self._attach(module)
        if interceptor is not None:
            return interceptor.call(original, args, kwargs)
        inner, averaging = plain(module), here.averaging
        if inner in self._averages and averaging is None:
            here.averaging = module
            try:
                return original(*args, **kwargs)
            finally:
                here.averaging = None
        arguments = tree_leaves((args, kwargs))
        made = None
        if torch.is_grad_enabled():
            made = self._made(own, arguments)
            if made is None and not any(p.requires_grad for p in module.parameters()):
                made = self._made(own, arguments, frozen=True)
                if made is not None:
                    self._frozen.add(inner)
        if made is None and not own.pure and inner not in self._candidates:
            return original(*args, **kwargs)  # it may hold both networks
        # of a loss that is a module, say, which holds the critic: it gets objects that hold samples
        here.inside = any(isinstance(a, Tensor) and a.dim() for a in arguments)
        try:
            output = original(*args, **kwargs)
        finally:
            here.inside = False
        if torch.is_grad_enabled():
            owner = plain(averaging or module)
            output = self._returned(module, owner, own, arguments, made, output)
            if len(self.owners) == 1:
                self._one_optimizer(inner, own, arguments, output)
        self._generated.returned(module, arguments, output)
        return output

    def _returned(
        self, module: nn.Module, owner: nn.Module, own: Ownership, arguments: Sequence[Any],
        made: Made | None, output: Any,
    ) -> Any:  # fmt: skip
        tensors = [a for a in arguments if isinstance(a, Tensor) and a.dim()]
        if not tensors:
            return output
        inner = plain(module)
        candidate = self._candidates.get(inner)
        if candidate is None:
            place = self.places.of(owner, inner)
            candidate = self._candidates[inner] = Candidate(inner, owner, place, self.topk)
        candidate.entrances.add(module)
        candidate.own = self.owners.of(owner)
        if made is not None:
            self.passes.called()
        makers = [self._generated.by(tensor) for tensor in tensors]

        def others(whose: Ownership) -> bool:
            if inner in self._frozen:
                return whose.parameters.isdisjoint(own.parameters)
            return bool(whose.optimizers - own.optimizers)

        theirs = made is not None or any(m is not None and others(m) for m in makers)
        samples = tensors[0] if made is None else made.sources[0]
        batch = rows_scored(output, len(samples))
        generated: bool | Tensor = theirs
        if made is not None and made.rows is not None and batch == len(samples):
            generated = rows_at(made.rows, samples)
        elif self._generated.by(samples) is None:
            copied = self._generated.copied_to(samples, others)
            rows = None if copied is None else scores_of(copied[1], batch)
            generated = (theirs or copied is not None) if rows is None else rows
        output, whole = candidate.returned(output, batch, samples.shape, made, generated)
        if not whole:
            self._averages.add(inner)
        return output

    def _one_optimizer(
        self, module: nn.Module, own: Ownership, arguments: Sequence[Any], output: Any
    ) -> None:
        """One optimizer owns every network: ``module`` may score what another of them made."""
        tensors = [a for a in arguments if isinstance(a, Tensor) and a.dim()]
        leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        rows = rows_scored(output, len(tensors[0])) if tensors else 0
        if not any(resembles_score(leaf, rows) for leaf in leaves):
            return

        def accepts(node: Node) -> bool:
            owner = _owner(node)
            return owner in self.owners.table and owner not in own.parameters

        ledger = self.topk.ledger
        made = any(parameters_upstream(one.grad_fn, accepts, ledger, False)[0] for one in tensors)
        self._scored.setdefault(module, set()).add(made)

    def _maker(self, module: nn.Module) -> Ownership | None:
        """Whose ``module`` is, which may be a generator."""
        own = self.owners.of(module)
        return own if own.optimizers else None

    def _made(self, own: Ownership, arguments: Sequence[Any], frozen: bool = False) -> Made | None:
        """What of the arguments was made with parameters that other optimizers own.

        Args:
            frozen: the module is: its own optimizers may own them, too, and step them alone.
        """
        table = self.owners.table

        def accepts(node: Node) -> bool:
            owner = _owner(node)
            if frozen:
                return owner in table and owner not in own.parameters
            return bool(table.get(owner, frozenset[int]()) - own.optimizers)

        sources: list[Tensor] = []
        nearest, upstream = None, frozenset[int]()
        for tensor in arguments:
            if not (isinstance(tensor, Tensor) and tensor.grad_fn is not None and tensor.dim()):
                continue
            if sources and len(tensor) != len(sources[0]):
                continue
            found, parameters = parameters_upstream(tensor.grad_fn, accepts, self.topk.ledger, True)
            # of two that share an optimizer, the critic has to have another one for itself
            theirs = {p for p in parameters if table.get(p, frozenset[int]()) - own.optimizers}
            if found is not None and (frozen or own.optimizers - self.owners.all_of(theirs)):
                sources.append(tensor)
                nearest, upstream = nearest or found, upstream | parameters
        if nearest is None:
            return None
        rows = generated_rows(sources[0], accepts, self.topk.ledger)
        nodes = [tensor.grad_fn for tensor in sources]
        return Made(sources, nodes, nearest, upstream, accepts, rows)


def _owner(node: Node) -> int:
    """The id of what an optimizer owns, of a gradient's accumulator; 0 for any other node."""
    leaf = getattr(node, "variable", None)
    return 0 if leaf is None else id(owner_of(leaf))
