"""What autograd's graph says of a tensor: what it was computed from."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node, register_multi_grad_hook

from topk_plugin.compat import is_compiling
from topk_plugin.core.parameters import Owned
from topk_plugin.errors import ConfigError


def behind(roots: Iterable[Node | None], stops: Iterable[Node] = ()) -> Iterator[Node]:
    """``roots`` and all from which they were computed, each once; not ``stops``, nor past them."""
    seen: set[Any] = {None, *stops}
    queue: list[Any] = [*{*roots} - seen]
    seen.update(queue)
    while queue:
        node = queue.pop()
        yield node
        parents = {parent for parent, _ in node.next_functions} - seen
        seen |= parents
        queue += parents


def leaves_of(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The leaves that ``tensors`` were computed from."""
    found = (getattr(node, "variable", None) for node in behind(t.grad_fn for t in tensors))
    return [leaf for leaf in found if leaf is not None]


def executes(node: Node) -> bool:
    """Whether the running backward runs ``node``, or stores what reaches it."""
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # a leaf in autograd.grad: captured, not executed
        return True


def on_gradients(
    tensors: Sequence[Tensor], tell: Callable[[Sequence[Tensor | None]], None]
) -> None:
    """In each backward that reaches ``tensors``, ``tell`` their gradients, once.

    A hook for several is not called where one of them is what ``backward()`` is called of: autograd
    does not count where it begins among the nodes that it runs.
    """
    register_multi_grad_hook(tensors, tell)
    number = len(tensors)
    for place, tensor in enumerate(tensors):
        begins = weakref.ref(tensor)  # no hook may hold the graph that holds it

        def alone(gradient: Tensor, begins: Any = begins, place: int = place) -> None:
            tensor = begins()
            if tensor is not None and tensor.grad_fn is not None and not executes(tensor.grad_fn):
                tell([gradient if place == other else None for other in range(number)])

        tensor.register_hook(alone)


def require_whole(tensors: Iterable[Tensor]) -> None:
    """Raises ConfigError where ``tensors`` are those of one member inside ``torch.func.vmap``.

    No gate sees the others there, nor whether a gradient will come.
    """
    if is_compiling() or not torch._C._are_functorch_transforms_active():
        return
    for tensor in tensors:
        while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            if torch._C._functorch.is_batchedtensor(tensor):
                raise ConfigError(
                    "topk(scores): found scores of one member inside torch.func.vmap, expected "
                    "those of all members outside of it: scores = vmap(member)(parameters, z), "
                    "then topk(scores.flatten()), with a plugin that chooses k rows of each member "
                    "(topk_select)."
                )
            tensor = torch._C._functorch.get_unwrapped(tensor)


def is_capturing(tensor: Tensor) -> bool:
    """Whether a CUDA graph is being captured, in which what is computed now has no value."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


class LiveIds(set[int]):
    """Ids of tensors that are alive: another tensor may get the id of one that is gone."""

    def __init__(self) -> None:
        super().__init__()
        self._references: dict[int, weakref.ref[Tensor]] = {}
        self._whole: weakref.WeakSet[Owned] = weakref.WeakSet()  # of which it has all

    def take_owned(self, owned: Owned) -> None:
        """Have all of ``owned`` too."""
        if owned not in self._whole:
            self.take(owned)
            self._whole.add(owned)

    def take(self, tensors: Iterable[Tensor]) -> None:
        """Have those of ``tensors`` too."""
        for tensor in tensors:
            if id(tensor) not in self:
                self.add(id(tensor))
                self._references[id(tensor)] = weakref.ref(tensor, self._forget(id(tensor)))

    @property
    def tensors(self) -> list[Tensor]:
        """Those that are alive."""
        alive = (reference() for reference in self._references.values())
        return [tensor for tensor in alive if tensor is not None]

    def _forget(self, key: int) -> Callable[[object], None]:
        def forget(_: object) -> None:
            self.discard(key)
            self._references.pop(key, None)

        return forget


def reaches(tensor: Tensor, nodes: Collection[Node]) -> bool:
    """Whether ``tensor`` was computed from what one of ``nodes`` gave."""
    return any(node in nodes for node in behind([tensor.grad_fn]))
