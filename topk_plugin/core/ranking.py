"""Scores of any critic output, which end of them is more realistic, and which k rows are kept.

Pure functions of tensors: nothing here reads the device from the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from topk_plugin.compat import is_compiling
from topk_plugin.core.trees import fields_of, parts_of, tree_leaves
from topk_plugin.errors import ScoreShapeError

_EXPECTED = (
    "one score per sample, (B,), (B, 1) or (B, 1, 1, 1), or a one-channel patch map (B, 1, H, W)"
)


def score_heads(
    output: Any,
    batch: int | None = None,
    heads: Sequence[str | int] = (),
    depends: Callable[[Tensor], bool] | None = None,
) -> list[Tensor]:
    """The score tensors of a critic's output, in the order of ``heads``.

    A tensor is the score. Of a tuple, list or dict, nested ones too, all that are shaped like
    scores may be; which of them are is told by the gradient. ``heads`` names outputs that share
    one ranking, by key or index; ``"a.0"`` walks into nested containers.

    Args:
        output: whatever the critic returned.
        batch: number of rows B of the critic's input; None if unknown.
        heads: names of the score outputs; empty for the rule above.
        depends: whether a tensor depends on the generator's samples; only such ones are scores
            (a critic may score real samples in the same call). None: that is not known.

    Raises:
        ScoreShapeError: no such output, or none that could be a score.
    """
    if heads:
        found = [_walk(output, head) for head in heads]
        for head, leaf in zip(heads, found, strict=True):
            if depends is not None and leaf is not output and not depends(leaf):
                raise ScoreShapeError(
                    f"heads names {head!r}, which does not depend on the generator's samples, so "
                    f"it cannot rank them. The critic returns:{table(output, batch, depends)}"
                )
        return found
    if isinstance(output, Tensor) and output.is_floating_point():
        return [output]
    leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    if batch is None:
        rows = (len(x) for x in leaves if x.dim() and resembles_score(x, len(x)))
        batch = next(rows, None)
    likely = [] if batch is None else [x for x in leaves if resembles_score(x, batch)]
    found = [leaf for leaf in likely if depends is None or depends(leaf)]
    if found:
        return found
    raise ScoreShapeError(
        f"no score in the critic's output{'' if batch is None else f' for a batch of {batch}'}: "
        f"found{table(output, batch, depends)}\nexpected {_EXPECTED}. "
        "Name the outputs that hold scores: --heads, or TopK(heads=...)."
    )


def table(
    output: Any, batch: int | None = None, depends: Callable[[Tensor], bool] | None = None
) -> str:
    """What a critic returned, a line for each part: its dotted path, its shape, what it is of."""
    lines = []
    for name, leaf in named_leaves(output):
        of = ""
        if depends is not None and isinstance(leaf, Tensor):
            of = ", of the generator's samples" if depends(leaf) else ", not of the generator's"
        lines.append(f"\n  {name or 'the output'}: {describe(leaf)}{of}")
    return "".join(lines) or f"\n  {describe(output)}"


def named_leaves(output: Any) -> list[tuple[str, Any]]:
    """The parts of a critic's output, each with the name that ``heads`` takes."""
    parts = parts_of(output)
    if parts is None:
        return [("", output)]
    return [
        (f"{name}.{inner}" if inner else str(name), leaf)
        for name, part in parts
        for inner, leaf in named_leaves(part)
    ]


def per_sample(score: Tensor, batch: int, named: bool = False) -> Tensor:
    """One number a sample: (B,), (B, 1), (B, 1, 1, 1) flattened, patch maps averaged, to (B,).

    (B, N) and whatever has several channels may be class logits, features or an image, so they
    are only averaged where the user ``named`` them as a head.

    Raises:
        ScoreShapeError: any other shape.
    """
    shape = tuple(score.shape)
    if score.dim() == 0 and batch == 1:
        return score.reshape(1)
    if score.dim() == 0 or shape[0] != batch:
        if score.numel() == 1:
            raise ScoreShapeError(
                f"the critic's score has shape {shape} for a batch of {batch}: it is averaged "
                f"inside the critic, so no sample has a score of its own; expected {_EXPECTED}. "
                "Gate the module that computes the scores before the mean "
                "(--critic module:Class.attribute, or attach(critic.attribute, ...))."
            )
        raise ScoreShapeError(
            f"the critic's score has shape {shape} for a batch of {batch}; expected {_EXPECTED}. "
            "If it scores groups of what it is given (graphs, packed sequences), gate what it "
            "returns, in the script: topk(scores)."
        )
    width = score.numel() // batch if batch else 1
    if width == 1:
        return score.reshape(batch)
    if named or (score.dim() >= 3 and shape[1] == 1):
        # 16-bit averages would tie or reorder patches' means
        wide = score.float() if score.dtype in (torch.float16, torch.bfloat16) else score
        return wide.reshape(batch, -1).mean(dim=1)
    raise ScoreShapeError(
        f"the critic's score has shape {shape}: {width} numbers a sample, which may be class "
        f"logits, features or an image; expected {_EXPECTED}. If their mean ranks the samples, "
        "name the outputs that are scores: --heads 0,1 or TopK(heads=(0, 1)); 0 for a lone tensor."
    )


def rows_scored(output: Any, batch: int) -> int:
    """How many scores a critic gives for B samples: B, or B / p where each is of p samples.

    Packed critics join the p samples of a pack (Lin et al., 2018, "PacGAN"; CTGAN's is one). Packs
    are what is ranked then, since a loss sees no smaller part of a batch.

    Args:
        output: whatever the critic returned. All its tensors have a row for each pack, and one of
            them has nothing else; a lone number is the mean of a batch.
        batch: B.
    """
    if isinstance(output, Tensor) and output.shape[:1] == (batch,):
        return batch  # nearly always
    leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    rows = {len(leaf) if leaf.dim() else 1 for leaf in leaves}
    packs = min(rows, default=1)
    if len(rows) > 1 or not 1 < packs < batch or batch % packs:
        return batch
    scored = any(leaf.is_floating_point() and leaf.numel() == packs for leaf in leaves)
    return packs if scored else batch


def resembles_score(leaf: Tensor, batch: int) -> bool:
    """Whether :func:`per_sample` would take ``leaf`` without its being named."""
    if not leaf.is_floating_point() or not (leaf.dim() or batch == 1):
        return False
    if leaf.dim() and leaf.shape[0] != batch:
        return False
    return leaf.numel() == batch or (leaf.dim() >= 3 and leaf.shape[1] == 1)


def ranking_scores(scores: Sequence[Tensor], batch: int, named: bool = False) -> Tensor:
    """The numbers that rank a batch, (B,): the score, or the mean of several heads' scores.

    Of several that nobody ``named`` (H, B): :func:`order_of` tells which of them are heads.
    Detached; of one head a view of it, which an in-place change of the critic's output changes too.
    """
    rows = [per_sample(plain(score.detach()), batch, named) for score in scores]
    if len(rows) == 1:
        return rows[0]
    dtype = torch.promote_types(torch.float32, rows[0].dtype)
    wide = torch.stack([row.to(dtype) for row in rows])
    return wide.mean(dim=0) if named else wide


def order_of(ranking: Tensor, gradients: Sequence[Tensor | None]) -> Tensor:
    """What ranks a batch, (B,), once it is known which outputs the loss reads.

    Args:
        ranking: (B,), or (H, B) of H outputs that may be scores.
        gradients: of the loss by each of the H; those that have one share the ranking.
    """
    if ranking.dim() == 1:
        return ranking
    read = [row for row, g in zip(ranking, gradients, strict=True) if g is not None]
    if is_compiling():  # where no gradient is None, but zero
        used = torch.stack([(g != 0).any() for g in gradients if g is not None])
        rows = torch.where(used[:, None], torch.stack(read), 0.0)
        return rows.sum(dim=0) / used.sum().clamp(min=1)
    return read[0] if len(read) == 1 else torch.stack(read).mean(dim=0)


def plain(tensor: Tensor) -> Tensor:
    """``tensor`` without what a subclass of Tensor does differently (BigGAN-PyTorch has one)."""
    return tensor if type(tensor) is Tensor else tensor.as_subclass(Tensor)


def ballot(row_gradient: Tensor) -> Tensor:
    """Which direction one loss asks for, 0-d float64: 1 high, -1 low, 0 undecided.

    Descent moves a score against its gradient, so a negative gradient says that higher is more
    realistic. ``row_gradient`` is (B,); NaN rows do not vote: their sign is 0.
    """
    return -row_gradient.sign().sum(dtype=torch.float64).sign()


def kept_rows(scores: Tensor, k: Tensor | int, sign: Tensor | float = 1.0) -> Tensor:
    """The k most realistic rows as a mask (B,) of bool, exactly k of them.

    Descending by ``sign * scores`` (sign 1: high is realistic; -1: low), ties by position, NaN
    last. A k-th value threshold would keep too many under ties, and ``torch.topk`` ranks NaN
    first, hence two stable sorts.

    Args:
        scores: (B,) of any floating dtype.
        k: rows to keep, 1 to B; a 0-d tensor keeps the graph the same for all values.
    """
    # ascending order of the negated score: sort puts NaN, as the greatest, last
    order = torch.argsort(scores * -sign, stable=True)
    rank = torch.argsort(order)
    return rank < k


def describe(value: Any) -> str:
    """Shapes of a critic's output, for error messages."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {describe(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(describe(item) for item in value) + "]"
    return type(value).__name__


def part_of(output: Any, head: str | int) -> Any:
    """What ``heads`` calls ``head``, of a critic's output or of a structure like it.

    Raises:
        ScoreShapeError: there is no such part.
    """
    found = output
    steps = head.split(".") if isinstance(head, str) else [head]
    if isinstance(output, Tensor) and steps in ([0], ["0"]):
        steps = []
    for step in steps:
        try:
            if isinstance(found, Tensor):
                raise KeyError  # indexing would take a row
            if step in fields_of(found):
                found = getattr(found, str(step))
            else:
                found = found[int(step) if isinstance(found, Sequence) else step]
        except (KeyError, IndexError, TypeError, ValueError):
            raise ScoreShapeError(
                f"heads names {head!r}, which the critic's output does not have: "
                f"found {describe(output)}."
            ) from None
    return found


def _walk(output: Any, head: str | int) -> Tensor:
    found = part_of(output, head)
    if not isinstance(found, Tensor) or not found.is_floating_point():
        raise ScoreShapeError(
            f"heads names {head!r}, which is {describe(found)}; expected a floating tensor."
        )
    return found
