"""What older releases of torch and Python lack or spell otherwise: all of it stands here.

Each part names the first release that has what it stands in for: once the oldest release that is
supported has it, the part can go.
"""

from __future__ import annotations

import gc
import inspect
import sys
import types
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.optim import Optimizer

TORCH: tuple[int, ...] = tuple(map(int, torch.__version__.split("+")[0].split(".")[:2]))
"""(major, minor) of the torch that runs."""

# --- Python -------------------------------------------------------------------------------------

SAFE_PATH: bool = getattr(sys.flags, "safe_path", False)
"""Whether Python leaves the script's folder out of ``sys.path``: Python 3.11."""


# --- compiling ----------------------------------------------------------------------------------

if hasattr(torch.compiler, "is_compiling"):  # 2.3
    from torch.compiler import is_compiling as is_compiling
else:
    from torch._utils import is_compiling as is_compiling


def not_compiled(reason: str) -> Callable[[Any], Any]:
    """``torch.compiler.disable(reason=...)``: 2.8.

    Before, what cannot be split says the name of the function and no reason.
    """
    if "reason" in inspect.signature(torch.compiler.disable).parameters:
        return torch.compiler.disable(reason=reason)

    def disabled(function: Any) -> Any:
        function.__qualname__ = reason
        return torch.compiler.disable(function)

    return disabled


EXPORTS = hasattr(torch.compiler, "_is_exporting_flag")
"""Whether what is traced can tell that it is exported: 2.7."""


def is_exporting() -> bool:
    """``torch.compiler.is_exporting``, which is also true of what is compiled before 2.13."""
    return EXPORTS and torch.compiler._is_exporting_flag


def trace_forward(module: nn.Module) -> Callable[[], None]:
    """Let a compiled step trace the ``forward`` of ``module`` whatever it is: 2.5.

    Before, modules of torch.nn are taken into the graph as they are. The returned function undoes
    it.
    """
    name = "torchdynamo_force_dynamic"
    if TORCH >= (2, 5) or name in vars(module):
        return lambda: None
    vars(module)[name] = True
    alone = weakref.ref(module)  # what is attached may be forgotten

    def undo() -> None:
        present = alone()
        if present is not None:
            vars(present).pop(name, None)

    return undo


def keep_buffers(keep: bool) -> bool | None:
    """Whether compiled graphs may be run twice from now on; returns what was so before.

    From 2.5 on, and by default from 2.6, the first run overwrites what was saved; None where there
    is no such setting.
    """
    config = torch._functorch.config
    if not hasattr(config, "donated_buffer"):
        return None
    before = not config.donated_buffer
    config.donated_buffer = not keep
    return before


def keep_step_hooks() -> None:
    """Let optimizers run the hooks of their steps, whatever is compiled: 2.3.

    Before, the first use of torch.compile takes the hooks off torch's own optimizers, for good. So
    let it do that now, and put them back.
    """
    if TORCH >= (2, 3):
        return
    from torch._dynamo.eval_frame import TorchPatcher

    TorchPatcher.patch()  # does nothing the next time
    for cls in vars(torch.optim).values():
        if isinstance(cls, type) and issubclass(cls, Optimizer) and "step" in vars(cls):
            _hook_step(cls)
    # by type: isinstance asks lazy objects for their class, and some warn
    for optimizer in [o for o in gc.get_objects() if issubclass(type(o), Optimizer)]:
        # a learning rate schedule holds the step of its optimizer as it was then
        for cell in getattr(vars(optimizer).get("step"), "__closure__", None) or ():
            bare = cell.cell_contents
            if isinstance(bare, types.FunctionType) and bare is _bare(type(optimizer).step):
                cell.cell_contents = type(optimizer).step


def _hook_step(cls: Any) -> None:
    if _bare(cls.step) is None:
        cls.step = Optimizer.profile_hook_step(cls.step)
        cls.step.hooked = True


def _bare(step: Any) -> Any:
    """What runs between the hooks of a step; None: it has none."""
    is_hook = getattr(step, "__code__", None) is Optimizer.profile_hook_step(id).__code__
    return step.__wrapped__ if is_hook else None


# --- checkpoints --------------------------------------------------------------------------------

CHECKPOINTS = TORCH >= (2, 3)
"""Whether ``torch.distributed.checkpoint`` saves and loads as it does since; a run that is resumed
from what older ones wrote is told to give ``--start-epoch``."""

RECOMPUTING = [
    name
    for name in (
        "_checkpoint_without_reentrant_generator_impl",  # 2.14
        "_checkpoint_without_reentrant_generator",
    )
    if hasattr(torch.utils.checkpoint, name)
]
"""By which ``torch.utils.checkpoint`` runs a function again; they are given it first."""

# --- autocast -----------------------------------------------------------------------------------


def autocast_of(kind: str) -> tuple[torch.dtype, bool]:
    """``torch.get_autocast_dtype`` and ``torch.is_autocast_enabled`` of a kind of device: 2.4."""
    if TORCH >= (2, 4):
        return torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
    if kind == "cpu":
        return torch.get_autocast_cpu_dtype(), torch.is_autocast_cpu_enabled()
    return torch.get_autocast_gpu_dtype(), torch.is_autocast_enabled()


# --- autograd -----------------------------------------------------------------------------------

EDGES = TORCH >= (2, 5)
"""Whether ``torch.autograd.grad`` takes places in the graph, and not tensors alone, as outputs."""

try:
    from torch.autograd.graph import GradientEdge as GradientEdge  # 2.2
except ImportError:

    class GradientEdge:  # type: ignore[no-redef]
        """No tensor is one."""


def nodes_made() -> int:
    """How many nodes of graphs this thread has made so far."""
    return int(torch.autograd._get_sequence_nr())  # type: ignore[attr-defined]


def node_of(tensor: Tensor) -> Any:
    """Where ``tensor`` stands in the graph; of a leaf its gradient accumulator: 2.2."""
    if tensor.grad_fn is not None or not tensor.requires_grad:
        return tensor.grad_fn
    with torch.enable_grad():
        view: Any = tensor.view_as(tensor).grad_fn
        return view.next_functions[0][0]


class _Anchor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.new_zeros(()).expand(tensor.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def place_of(tensor: Tensor) -> Any:
    """The place of ``tensor`` in the graph, to differentiate from, which keeps no activation: 2.5.

    Before, a tensor of one number that stands behind it.
    """
    if EDGES:
        return torch.autograd.graph.get_gradient_edge(tensor)
    with torch.autograd.forward_ad._set_fwd_grad_enabled(False):
        return _Anchor.apply(tensor)


def probe_of(tensor: Tensor) -> Tensor | None:
    """A leaf of the shape of ``tensor`` that takes its gradient where no place can: 2.5."""
    if EDGES:
        return None
    leaf = tensor.detach().new_zeros(()).expand(tensor.shape).requires_grad_()
    leaf.is_probe = True  # type: ignore[attr-defined]
    return leaf


SHAPES = TORCH >= (2, 5)
"""Whether nodes of the graph know what they gave."""


def shapes_of(node: Any) -> list[tuple[int, ...] | None]:
    """Of a node's outputs; None where one is no ordinary tensor. Before 2.5 none are known."""
    if not SHAPES:
        return []
    try:
        return [tuple(int(size) for size in one.shape) for one in node._input_metadata]
    except (RuntimeError, TypeError):  # nested tensors, symbolic shapes
        return [None] * len(node._input_metadata)


def is_probe(leaf: Tensor) -> bool:
    """Whether a leaf of a graph is one of :func:`probe_of`, and none of the user's."""
    return hasattr(leaf, "is_probe")
