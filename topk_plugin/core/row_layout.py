"""What becomes of the rows of a batch in one operation of autograd's graph.

A value on the way from the scores to the loss has a layout, which says along which dimensions the
rows lie, and is *mixed* once rows were added up or set against each other. Rows are coupled where
something mixed goes into a nonlinear operation, or where one is nonlinear over the rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

# Dimensions are products of atoms, as reshaping merges and splits them: (size, which rows), the
# latter None where no rows lie. Sizes of 1 are left out.
Atom = tuple[int, Hashable]
Dim = tuple[Atom, ...]


class Layout(NamedTuple):
    """A value that depends on the scores."""

    dims: tuple[Dim, ...]
    mixed: bool = False


Value = Layout | None
"""Of what depends on the scores in a way that is not known: None."""


class _Independent:
    """Of what does not depend on the scores."""


INDEPENDENT = _Independent()

State = Value | _Independent


class Coupled(Exception):
    """Rows are coupled here; never leaves :mod:`topk_plugin.core.coupling`."""


class Operation(NamedTuple):
    """One output of one node of the graph, as its rule sees it."""

    node: Any
    inputs: list[State]
    shape: tuple[int, ...]
    number: int  # of the output

    def saved(self, name: str) -> Any:
        """A number, or a list of them, that the operation was called with; None for none."""
        value = getattr(self.node, f"_saved_{name}", None)
        if isinstance(value, tuple | list):
            return [_signed(one) for one in value]
        return None if value is None else _signed(value)

    def axes(self, of: Layout, name: str = "dim") -> list[int]:
        """The dimensions of ``of`` that it was called with, none standing for all."""
        given, rank = self.saved(name), len(of.dims)
        if given is None or given == []:
            return list(range(rank))
        several = given if isinstance(given, list) else [given]
        return [axis % rank for axis in several] if rank else []


def _signed(value: int) -> int:
    """A number that autograd shows as unsigned."""
    return value - 2**64 if value >= 2**63 else value


def scores(shape: tuple[int, ...] | None) -> Value:
    """Scores (B, ...)."""
    if not shape:
        return None
    return Layout((_dim(shape[0], "scores"), *map(_plain, shape[1:])))


def _dim(size: int, rows: Hashable) -> Dim:
    return ((size, rows),) if size != 1 else ()


def _plain(size: int) -> Dim:
    return _dim(size, None)


def _has_rows(dim: Dim) -> bool:
    return any(rows is not None for _, rows in dim)


def _size(dim: Dim) -> int:
    return math.prod(size for size, _ in dim)


def output_of(operation: Operation) -> Value:
    """What comes out of one operation of which an input depends on the scores.

    Raises:
        Coupled: it couples rows.
    """
    if hasattr(type(operation.node), "_forward_cls"):  # written in Python
        return None
    name = re.fullmatch(r"(?:torch::autograd::)?(\w+?)Backwards?\d*", operation.node.name())
    return RULES.get(name[1], _pointwise)(operation) if name else None


# --- rules ----------------------------------------------------------------------------------------


def _unknown(operation: Operation) -> Value:
    return None


def _only(operation: Operation) -> Layout | None:
    """The one input that depends on the scores; None where it is not known."""
    given = [one for one in operation.inputs if one is not INDEPENDENT]
    return given[0] if isinstance(given[0], Layout) and len(given) == 1 else None


def _linear(operation: Operation) -> Value:
    """Linear in all inputs together, which are broadcast against each other."""
    shape = operation.shape
    layouts = [one for one in operation.inputs if isinstance(one, Layout)]
    if None in operation.inputs or any(len(one.dims) > len(shape) for one in layouts):
        return None
    padded = [((),) * (len(shape) - len(one.dims)) + one.dims for one in layouts]
    for dims in padded:
        if any(_size(dim) not in (1, size) for dim, size in zip(dims, shape, strict=True)):
            return None
    places = {
        tuple((axis, dim) for axis, dim in enumerate(dims) if _has_rows(dim)) for dims in padded
    } - {()}
    joined = (
        next((dims[axis] for dims in padded if _has_rows(dims[axis])), _plain(size))
        for axis, size in enumerate(shape)
    )
    # different rows may meet, as in a table of all pairs
    return Layout(tuple(joined), len(places) > 1 or any(one.mixed for one in layouts))


def _pointwise(operation: Operation) -> Value:
    """Nonlinear, element by element."""
    joined = _linear(operation)
    if joined is not None and joined.mixed:
        raise Coupled
    return joined


def _product(operation: Operation) -> Value:
    several = sum(one is not INDEPENDENT for one in operation.inputs) > 1
    return _pointwise(operation) if several else _linear(operation)


def _quotient(operation: Operation) -> Value:
    above, *below = operation.inputs
    linear = all(one is INDEPENDENT for one in below)
    return _linear(operation) if linear else _pointwise(operation)


def _loss(operation: Operation) -> Value:
    """A loss of each element, and perhaps its mean or sum."""
    if not operation.saved("reduction"):
        return _pointwise(operation)
    several = [one for one in operation.inputs if isinstance(one, Layout)]
    if any(one.mixed for one in several):
        raise Coupled
    alike = None not in operation.inputs and len({one.dims for one in several}) == 1
    return Layout((), True) if alike else None


def _class_loss(operation: Operation) -> Value:
    """Of (B, C) one number a row, and perhaps their mean or sum."""
    one = _only(operation)
    if one is None or len(one.dims) != 2 or _has_rows(one.dims[1]):
        return None
    return Layout(one.dims[:1], one.mixed) if operation.shape else Layout((), True)


def _sum(operation: Operation) -> Value:
    """A sum or mean over some dimensions."""
    one = _only(operation)
    if one is None:
        return None
    axes = operation.axes(one)
    dims = [() if axis in axes else dim for axis, dim in enumerate(one.dims)]
    if len(operation.shape) != len(dims):
        dims = [dim for axis, dim in enumerate(dims) if axis not in axes]
    return Layout(tuple(dims), one.mixed or any(_has_rows(one.dims[axis]) for axis in axes))


def _nonlinear_over(operation: Operation) -> Value:
    """A reduction that is nonlinear in what it reduces."""
    reduced = _sum(operation)
    if reduced is not None and reduced.mixed:
        raise Coupled
    return reduced


def _along(operation: Operation) -> Value:
    """Each element of the output is made of all those along a dimension."""
    one = _only(operation)
    if one is None:
        return None
    axes = operation.axes(one)
    if _permutes(operation, one):
        return one
    if one.mixed or any(_has_rows(one.dims[axis]) for axis in axes):
        raise Coupled
    dims = [_plain(operation.shape[n]) if n in axes else dim for n, dim in enumerate(one.dims)]
    return Layout(tuple(dims))


def _permutes(operation: Operation, one: Layout) -> bool:
    """Whether it is top-k by hand that keeps all of (B,) or (B, 1) rows, while k = B."""
    name = type(operation.node).__name__
    whole = list(operation.shape) == [_size(dim) for dim in one.dims]
    alone = sum(size > 1 for size in operation.shape) == 1
    return name.startswith("Topk") and whole and alone and not one.mixed


def _batch_norm(operation: Operation) -> Value:
    one = _only(operation)
    if one is not None and operation.node._saved_training:
        raise Coupled
    return one


def _reshaped(operation: Operation) -> Value:
    """The same elements in the same order."""
    one = _only(operation)
    if one is None:
        return None
    atoms = [atom for dim in one.dims for atom in dim]
    dims: list[Dim] = []
    for size in operation.shape:
        dim: list[Atom] = []
        while size > 1:
            if not atoms:
                return None
            (length, rows), *atoms = atoms
            if length > size and length % size == 0:  # what is outer here, and what comes after
                inner = length // size
                atoms.insert(0, (inner, rows and (rows, "inner", inner)))
                length, rows = size, rows and (rows, "outer", inner)
            elif size % length:
                return None
            dim.append((length, rows))
            size //= length
        dims.append(tuple(dim))
    return Layout(tuple(dims), one.mixed)


def _permuted(operation: Operation) -> Value:
    one = _only(operation)
    if one is None or len(one.dims) < 2:
        return one
    order = list(range(len(one.dims)))
    if hasattr(operation.node, "_saved_dims"):
        order = operation.axes(one, "dims")
    elif hasattr(operation.node, "_saved_dim0"):
        (a,), (b,) = operation.axes(one, "dim0"), operation.axes(one, "dim1")
        order[a], order[b] = order[b], order[a]
    else:
        order.reverse()
    return Layout(tuple(one.dims[axis] for axis in order), one.mixed)


def _selected(operation: Operation) -> Value:
    """One index of a dimension, which goes."""
    one = _only(operation)
    if one is None:
        return None
    (axis,) = operation.axes(one)
    if _has_rows(one.dims[axis]):  # a loop over the rows
        return None
    return Layout(one.dims[:axis] + one.dims[axis + 1 :], one.mixed)


def _part(operation: Operation) -> Value:
    """Some indices of a dimension, or all in another order."""
    one, node = _only(operation), operation.node
    if one is None or len(one.dims) != len(operation.shape):
        return None
    axes = operation.axes(one, "dims" if hasattr(node, "_saved_dims") else "dim")
    indices = [getattr(node, "_saved_index", None)]
    if hasattr(node, "_saved_indices"):
        indices = node._saved_indices
        axes = [axis for axis, index in enumerate(indices) if index is not None]
        if len(axes) != 1 or indices[axes[0]].dim() != 1:
            return None
    start, step = operation.saved("start"), operation.saved("step")
    pointers = [index.data_ptr() for index in indices if index is not None]
    which = (node.name(), operation.number, start, step, *pointers)
    dims = list(one.dims)
    for axis in axes:
        size = operation.shape[axis]
        if step is not None and size == _size(dims[axis]):
            continue  # all of them
        dims[axis] = _dim(size, (dims[axis], which) if _has_rows(dims[axis]) else None)
    return Layout(tuple(dims), one.mixed)


def _concatenated(operation: Operation) -> Value:
    several = [one for one in operation.inputs if isinstance(one, Layout)]
    if None in operation.inputs or len({len(one.dims) for one in several}) > 1:
        return None
    (axis,) = operation.axes(several[0])
    rest = {one.dims[:axis] + one.dims[axis + 1 :] for one in several}
    if len(rest) > 1:
        return None
    of = tuple(one.dims[axis] if isinstance(one, Layout) else None for one in operation.inputs)
    rows = of if any(_has_rows(one.dims[axis]) for one in several) else None
    (others,) = rest
    dims = (*others[:axis], _dim(operation.shape[axis], rows), *others[axis:])
    return Layout(dims, any(one.mixed for one in several))


def _stacked(operation: Operation) -> Value:
    shape = operation.shape
    axis = operation.saved("dim") % len(shape)
    one = _linear(operation._replace(shape=shape[:axis] + shape[axis + 1 :]))
    if one is None:
        return None
    return Layout((*one.dims[:axis], _plain(shape[axis]), *one.dims[axis:]), one.mixed)


def _matrix_product(operation: Operation) -> Value:
    """(…, n, m) @ (…, m, p) or a vector, of which one depends on the scores."""
    one, shape = _only(operation), operation.shape
    if one is None:
        return None
    rank = len(one.dims)
    if operation.inputs[0] is one:
        inside, dims = one.dims[-1], (*one.dims[:-1], *map(_plain, shape[rank - 1 :]))
    elif rank == 1:
        inside, dims = one.dims[0], tuple(map(_plain, shape))
    else:
        inside, dims = one.dims[-2], (*map(_plain, shape[:-1]), one.dims[-1])
    return Layout(dims, one.mixed or _has_rows(inside))


Rule = Callable[[Operation], Value]


def _table(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    **_table(_linear, "Add Sub Rsub Neg Clone ToCopy Alias Copy Expand MaskedFill NativeDropout"),
    **_table(_linear, "Tril Triu"),
    **_table(_product, "Mul"),
    **_table(_quotient, "Div"),
    **_table(_sum, "Sum Mean Nansum"),
    **_table(_nonlinear_over, "Logsumexp Std Var StdMean VarMean Norm LinalgVectorNorm Prod"),
    **_table(_nonlinear_over, "Max Min Amax Amin Aminmax Median Nanmedian Mode Kthvalue"),
    **_table(_along, "Softmax LogSoftmax Sort Topk Cumsum Cumprod Cummax Cummin Logcumsumexp"),
    **_table(_batch_norm, "NativeBatchNorm CudnnBatchNorm MiopenBatchNorm"),
    **_table(_loss, "MseLoss SmoothL1Loss HuberLoss SoftMarginLoss"),
    **_table(_loss, "BinaryCrossEntropy BinaryCrossEntropyWithLogits"),
    **_table(_class_loss, "NllLoss"),
    **_table(_reshaped, "View UnsafeView ReshapeAlias Squeeze Unsqueeze"),
    **_table(_permuted, "Permute Transpose T"),
    **_table(_selected, "Select Unbind"),
    **_table(_part, "Slice Split SplitWithSizes IndexSelect Index Flip Roll Gather"),
    **_table(_concatenated, "Cat"),
    **_table(_stacked, "Stack"),
    **_table(_matrix_product, "Mm Mv Dot Bmm"),
    # where the output may look like something element by element, and is not
    **_table(_unknown, "Diagonal Unfold AsStrided ConstantPadNd Repeat Convolution Renorm"),
    **_table(_unknown, "Addmm Addmv Addbmm Baddbmm FftC2C FftR2C FftC2R Put IndexPut IndexAdd"),
    **_table(_unknown, "IndexCopy IndexFill Scatter ScatterAdd MaskedScatter SliceScatter"),
    **_table(_unknown, "SelectScatter NativeLayerNorm NativeGroupNorm"),
}
