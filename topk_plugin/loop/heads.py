"""Which outputs of an attached critic are its scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node

from topk_plugin.core.graph import reaches
from topk_plugin.core.line import LineGate
from topk_plugin.core.ranking import (
    describe,
    named_leaves,
    plain,
    resembles_score,
    rows_scored,
    table,
)
from topk_plugin.core.trees import tree_leaves
from topk_plugin.errors import ScoreShapeError
from topk_plugin.streams import warn


class Heads:
    """Those of one critic.

    Args:
        line: asks plugins and settings.
        names: of them, given for this critic; none: as the settings say.
    """

    def __init__(self, line: LineGate, names: Sequence[str | int] = ()) -> None:
        self.line, self.names = line, names
        self._known: tuple[Any, list[bool]] = (None, [])  # a structure, which of its leaves depend
        self.seen = False  # a call returned something that is shaped like a score
        self._shapes: list[Any] | None = None  # of what it returned then, without the rows
        self.found = False  # nobody named them: what was seen of the loop did

    def look(self, output: Any, arguments: Sequence[Any]) -> None:
        """A call that is not gated gave ``output``, which may be scores too."""
        if not self.seen:
            batch = next((len(x) for x in arguments if isinstance(x, Tensor) and x.dim()), 0)
            self.see(output, rows_scored(output, batch))

    def see(self, output: Any, batch: int) -> bool:
        """Whether ``output`` may be gated: a critic that returned scores before may return its
        features alone in another mode, and these are left as they are. What has the shapes of then,
        in another number of rows, is no other mode.

        Args:
            batch: B, of what the critic was called with, or packs of it; see
                :func:`~topk_plugin.core.ranking.rows_scored`.
        """
        tensors = [output] if isinstance(output, Tensor) else tree_leaves(output)
        for leaf in tensors:
            if isinstance(leaf, Tensor) and resembles_score(leaf, batch):
                self.seen = True
                if self._shapes is None:
                    self._shapes = _shapes(tensors)
                return True
        if not self.seen or self.names or self.line.names_scores(output):
            return True
        return _shapes(tensors) == self._shapes

    def of(
        self, output: Any, source: Tensor, sources: Sequence[Node], places: Sequence[int]
    ) -> tuple[list[Tensor], bool]:
        """The scores in ``output``, and whether somebody named them.

        Args:
            source: (B, ...) the generator's samples.
            sources: what made those of the critic's arguments that are the generator's.
            places: of them among the arguments.

        Raises:
            ScoreShapeError: no score for each sample, or a named head that is none.
        """
        batch = rows_scored(output, source.shape[0])
        if not self.names and self.line.is_score(output, batch):
            return [output], False
        if isinstance(output, Tensor):
            heads, named = self.line.heads_of(output, batch, self.names)
        else:
            parts = [(n, leaf) for n, leaf in named_leaves(output) if isinstance(leaf, Tensor)]
            tensors = [leaf for _, leaf in parts]
            shape = ([(name, leaf.shape) for name, leaf in parts], list(places))
            if self._known[0] != shape:  # the walk takes longer than the gate
                nodes = {*sources}
                self._known = shape, [reaches(tensor, nodes) for tensor in tensors]
            answers = {id(t): yes for t, yes in zip(tensors, self._known[1], strict=True)}
            heads, named = self.line.heads_of(
                output, batch, self.names, lambda leaf: answers.get(id(leaf), True)
            )
            self._refuse_copies(output, tensors, heads, named)
        if not named and any(h.shape == source.shape and h.numel() > batch for h in heads):
            names = names_of(output, heads)
            raise ScoreShapeError(
                f"the critic returns {describe(output)}, as large as its input "
                f"{tuple(source.shape)}: an image, not a score; expected one score per sample. "
                "Top-k needs a critic that scores samples (an autoencoding critic does not). If it "
                "scores each pixel, the mean of its map ranks the samples: name all that are "
                f"scores, --heads {','.join(names)} or TopK(heads={tuple(names)!r})."
            )
        return heads, named

    def looks(
        self, output: Any, heads: Sequence[Tensor], left: Sequence[Tensor], batch: int, named: bool
    ) -> Callable[[Sequence[Tensor | None]], None] | None:
        """What is to be told the gradients of ``heads`` and of ``left``, the rest of ``output``.

        Args:
            named: somebody named the heads.
        """
        wide = {
            names_of(output, [head])[0]: (place, plain(head.detach()))
            for place, head in enumerate(heads)
            if head.numel() > batch and not resembles_score(head, batch)
        }
        left = left if self.found or not named else ()
        if not wide and not left:
            return None
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        known = {id(t): yes for t, yes in zip(tensors, self._known[1], strict=False)}
        generated = [known.get(id(leaf), True) for leaf in left]
        first = len(heads)

        def look(gradients: Sequence[Tensor | None]) -> None:
            for name, (place, scores) in wide.items():
                if (gradient := gradients[place]) is not None:
                    warn_of_logits(name, scores.reshape(batch, -1), gradient)
            if left:
                warn_of_scores_left(output, left, generated, batch, gradients[first:])

        return look

    def _refuse_copies(
        self, output: Any, tensors: Sequence[Tensor], heads: Sequence[Tensor], named: bool
    ) -> None:
        """A score map may be there twice, also flattened, and the loss reads either of them."""
        places = {(h.untyped_storage().data_ptr(), h.numel()): h for h in heads if not named}
        for leaf in tensors:
            head = places.get((leaf.untyped_storage().data_ptr(), leaf.numel()))
            if head is not None and leaf is not head and not any(leaf is h for h in heads):
                one, other = names_of(output, [head]), names_of(output, [leaf])
                raise ScoreShapeError(
                    f"the critic's outputs {one[0]} and {other[0]} hold the same numbers, so which "
                    f"of them the loss takes for the score is unknown. It returns:{table(output)}\n"
                    f"Name it, with all others that are scores: --heads {other[0]}, or "
                    f"TopK(heads=({other[0]!r},))."
                )


def _shapes(leaves: Sequence[Any]) -> list[Any]:
    """Those of tensors, without their rows."""
    return [leaf.shape[1:] for leaf in leaves if isinstance(leaf, Tensor)]


def names_of(output: Any, tensors: Sequence[Tensor]) -> list[str]:
    """Dotted paths of ``tensors`` in a critic's output, as ``heads`` takes them."""
    ids = {id(tensor) for tensor in tensors}
    return [name or "0" for name, leaf in named_leaves(output) if id(leaf) in ids]


def read_alike(scores: Tensor, gradient: Tensor) -> bool:
    """Whether a loss reads the numbers of a sample as scores: each by itself, or their mean.

    Then the gradient is the same all over a sample, or follows the number alone, rising or falling
    with it. That of class logits, of which one counts, or which softmax weighs, does neither.

    Args:
        scores, gradient: (B, N).
    """
    coarse = gradient.abs().max() * 1e-3
    if bool(((gradient - gradient[:, :1]).abs() <= coarse).all()):
        return True
    moves = gradient.flatten()[scores.flatten().argsort()].diff()
    return bool((moves >= -coarse).all()) or bool((moves <= coarse).all())


def warn_of_logits(name: str, scores: Tensor, gradient: Tensor) -> None:
    """Looks at what the loss sends to a head with several numbers a sample (the device is waited
    for); in a run's first steps only.

    Args:
        scores: (B, N).
        gradient: of the loss by them.

    Raises:
        ScoreShapeError: it adds up to nothing in each sample, so their mean is of no account.
    """
    rows = plain(gradient).double().reshape(scores.shape)
    size = rows.abs().sum(1)
    told = size > 0
    if not bool(told.any()):
        return
    what = f"the critic's output {name}, {describe(scores)},"
    gate = "If the script makes a score of them, gate that, topk(score), and leave the critic."
    if bool((rows.sum(1).abs()[told] / size[told]).mean() < 1e-3):
        raise ScoreShapeError(
            f"the loss's gradient by {what} adds up to nothing in each sample, as that of class "
            "logits does, so their mean, by which top-k ranks, says nothing of a sample; expected "
            f"scores. {gate}"
        )
    if not read_alike(scores, rows):
        warn(
            f"the loss reads {what} otherwise than as scores, as it does class logits, and top-k "
            f"ranks by their mean. {gate}",
            stacklevel=2,
        )


def warn_of_scores_left(
    output: Any, left: Sequence[Tensor], generated: Sequence[bool], batch: int,
    gradients: Sequence[Tensor | None],
) -> None:  # fmt: skip
    """Looks at what the loss sends to outputs that are not gated; in a run's first steps only.

    Gradients of class logits add up to nothing in each row, and those of most features are mixed;
    all the numbers of a score are pushed one way (the device is waited for).

    Args:
        left: outputs that are not gated.
        generated: of each, whether it depends on the generator's samples; reals' scores do not.
        batch: B; an output may have several rows for each sample, one after another.
        gradients: of the loss by each of them.
    """
    for leaf, depends, gradient in zip(left, generated, gradients, strict=True):
        if gradient is None or not depends or not leaf.dim() or len(leaf) % batch:
            continue
        rows = plain(gradient).double().reshape(len(leaf), -1)
        size = rows.abs().sum(1)
        told = size > 0
        if rows.shape[1] < 2 or not bool(told.any()):
            continue
        if bool((rows.sum(1).abs()[told] / size[told]).mean() > 0.99):
            (name,) = names_of(output, [leaf])
            each = len(leaf) // batch
            advice = (
                "If it is a score, name all that are: --heads, or TopK(heads=...)."
                if each == 1
                else f"It has {each} rows for each sample, and it is not known which, so that this "
                "part of the loss trains on all samples."
            )
            warn(
                f"the loss pushes all numbers of the critic's output {name}, {describe(leaf)}, one "
                "way, as it does with scores, and top-k leaves it alone. The critic returns:"
                f"{table(output)}\n{advice}",
                stacklevel=2,
            )
