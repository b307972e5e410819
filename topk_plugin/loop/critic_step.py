"""What the critic's own step says of the direction: it lowers fakes' scores and raises reals'.

A step of the critic is read where calls of it are known to be of fakes: those whose input reaches
the generator's parameters, and those whose input is what a module of the generator returned
(``fake.detach()``, ``fake.data``, a fake made under ``no_grad()``), or holds a copy of it. All
other calls of that step are taken for reals, and so are the other rows of a batch that has copies
of fakes. It says something only where the two are pushed opposite ways, so a loss that seeks a
target, and now raises both, says nothing. What was computed on from a detached fake (augmented,
say) is not known for a fake, and such steps are not read. An optimizer that maximises turns the
sign round.

Where the critic's optimizer steps on the very backward that is the generator's step (a gradient
that is reversed on its way, say), the loss is the critic's: it says nothing of the generator's.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable, Sequence, Set
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.optim import Optimizer

from topk_plugin.compat import node_of
from topk_plugin.core.graph import executes, is_capturing
from topk_plugin.core.parameters import GRADIENT, way_of
from topk_plugin.core.ranking import resembles_score, rows_scored
from topk_plugin.core.training import Training, Trainings
from topk_plugin.core.trees import tree_leaves
from topk_plugin.loop.generated import Generated

REMEMBERED = 1000
"""Gradients that are remembered: more come only where no optimizer is seen."""


class CriticCall:
    """A call of an attached critic.

    Args:
        critic: owns the critic's parameters.
        training: whose fakes it is of; None: it is of something else.
        places: of its arguments that the generator made.
        detached: whether those were cut off from the generator.
    """

    def __init__(
        self, critic: nn.Module, training: Training | None, places: Sequence[int], detached: bool
    ) -> None:
        self._critic = weakref.ref(critic)
        self.training, self.places, self.detached = training, tuple(places), detached
        # its gradient is itself differentiated: a penalty, which says nothing of its samples
        self.differentiated = False

    @property
    def parameters(self) -> Iterable[Tensor]:
        """The critic's."""
        critic = self._critic()
        return () if critic is None else critic.parameters()


class Pull(NamedTuple):
    """A gradient that reached one score output of a call, in one backward pass."""

    call: CriticCall
    place: int  # of the output
    summed: Tensor  # 0-d: the gradient, over all rows; negative: the scores are raised
    task: int  # which backward pass
    onward: bool  # it went on to the generator


class CriticSteps:
    """Reads the critics' own steps for the votes of ``trainings``."""

    def __init__(self, trainings: Trainings) -> None:
        self.trainings, self.generated = trainings, Generated(self._training_of)
        self._pulls: deque[Pull] = deque(maxlen=REMEMBERED)
        # read of fakes that were not detached; recovered by the generator's optimizer, they are a
        # generator step's
        self._aside: list[tuple[Training, Tensor, bool]] = []
        self._used: list[Pull] = []  # by the latest generator step
        self._counted = trainings.steps

    def _training_of(self, module: nn.Module) -> Training | None:
        """The one whose generator's optimizer owns ``module``."""
        ids = [id(parameter) for parameter in module.parameters()]
        return next((t for t in self.trainings.all if not t.parameters.isdisjoint(ids)), None)

    def scored(
        self, critic: nn.Module, arguments: Sequence[Any], places: Sequence[int],
        training: Training | None, output: Any, part: slice | None = None,
    ) -> None:  # fmt: skip
        """A call of ``critic``, by its ``arguments`` and its ``output``.

        Args:
            places: of the arguments that reach the generator, if any do.
            training: theirs.
            part: of the batch that does, where it is known.
        """
        tensors = {p: a for p, a in enumerate(arguments) if isinstance(a, Tensor) and a.dim()}
        if not tensors:
            return
        detached, rows = not places, None
        if detached:
            places = [p for p, tensor in tensors.items() if self.generated.by(tensor) is not None]
            training = self.generated.by(tensors[places[0]]) if places else None
        size = len(next(iter(tensors.values())))
        batch = rows_scored(output, size)
        whole = bool(places) and self.generated.by(arguments[places[0]]) is not None
        if part is not None and batch == size:
            whole, rows = True, rows_at(part, arguments[places[0]])
        for place in () if whole else places[:1] or tensors:
            tensor = tensors.get(place)
            if tensor is not None and len(tensor) == size:
                copied = self.generated.copied_to(tensor)
                if copied is not None:
                    training, places = training or copied[0], places or [place]
                    rows = scores_of(copied[1], batch)
                    break
        calls = [(CriticCall(critic, training, places, detached), rows)]
        if rows is not None:
            calls.append((CriticCall(critic, None, (), detached), ~rows))
        source = None if detached else getattr(arguments[places[0]], "grad_fn", None)
        for place, leaf in enumerate(tree_leaves(output)):
            if isinstance(leaf, Tensor) and leaf.requires_grad and resembles_score(leaf, batch):
                leaf.register_hook(partial(self._pulled, calls, place, source))

    def _pulled(
        self, calls: Sequence[tuple[CriticCall, Tensor | None]], place: int, source: Node | None,
        gradient: Tensor | None,
    ) -> None:  # fmt: skip
        """A backward reached a score of ``calls``, each of which has some (B,) of its rows.

        Args:
            source: of the samples, in the generator's graph; None: they were cut off from it.
        """
        if gradient is None:  # the loss reads other outputs of the call
            return
        call, _ = calls[0]
        if torch.is_grad_enabled():  # inside a backward: create_graph
            for call, _ in calls:
                call.differentiated = True
            return
        if call.places and not call.detached:
            self._read_aside()  # nothing recovers them any more
        task = torch._C._current_graph_task_id()
        reached = reached_of(call.parameters)
        if reached is None or is_capturing(gradient):
            return
        if GRADIENT.__get__(reached) is None:  # so what earlier passes left there was thrown away
            self.zeroed({id(reached)}, but=task)
        wide = torch.promote_types(gradient.dtype, torch.float32)  # 16 bits overflow
        onward = source is not None and executes(source)
        for call, rows in calls:
            here = gradient if rows is None else gradient[rows]
            self._pulls.append(Pull(call, place, here.sum(dtype=wide), task, onward))

    def zeroed(self, parameters: set[int], but: int | None = None) -> None:
        """Gradients of ``parameters``, by id, were set to zero: what led to them is gone."""
        kept = [
            pull
            for pull in self._pulls
            if pull.task == but or parameters.isdisjoint(map(id, pull.call.parameters))
        ]
        self._pulls = deque(kept, maxlen=REMEMBERED)
        self._used = [p for p in self._used if parameters.isdisjoint(map(id, p.call.parameters))]

    def optimizer_stepped(self, optimizer: Optimizer) -> None:
        """An outermost optimizer step ended, and is counted if it was the generator's."""
        counted, self._counted = self.trainings.steps > self._counted, self.trainings.steps
        if self.trainings.of_optimizer(optimizer) is not None:
            for training, _, joint in self._aside if counted else ():
                training.vote.joint_steps += joint
            self._used = [*self._pulls] if counted else []
            self._aside.clear()
            self._pulls.clear()
            return
        way = way_of(optimizer)
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        mine, used = by_critic(self._pulls, owned), by_critic(self._used, owned)
        self.zeroed(owned)
        if not way:
            return  # it pulls its critic both ways
        for pulls in mine.values():
            self._read(pulls, way)
        for critic in used.keys() - mine.keys():
            self._read(used[critic], way, counted=True)

    def _read(self, pulls: Sequence[Pull], way: int, counted: bool = False) -> None:
        """One step of one critic, by all that pulled at its scores.

        Args:
            way: 1: its optimizer minimises, -1: it maximises.
            counted: all of them were a generator step's, which was counted.
        """
        pulls = [pull for pull in pulls if not pull.call.differentiated]
        fakes = [pull for pull in pulls if pull.call.places]
        detached = [pull for pull in fakes if pull.call.detached]
        fakes = detached or fakes
        others = [pull for pull in pulls if not pull.call.places]
        if len({pull.call.places for pull in fakes}) != 1:
            return  # pairs, of which the generator made now one half, now the other
        training = fakes[0].call.training
        if training is None or training.by_hand or not training.progress.begun:
            return  # nothing tells its steps from the critic's
        says = opposition(fakes, others)
        if says is None:
            return
        if way == -1:
            says[0].neg_()
        one_backward = len({pull.task for pull in pulls}) == 1
        joint = way == 1 and one_backward and all(pull.onward for pull in fakes)
        if counted:
            training.vote.joint_steps += joint
        elif detached:
            training.vote.critic_stepped(says)
        else:
            self._aside.append((training, says, joint))

    def _read_aside(self) -> None:
        for training, says, _ in self._aside:
            training.vote.critic_stepped(says)
        self._aside.clear()

    def clear(self) -> None:
        """Forget everything that is under way."""
        self._aside.clear()
        self._pulls.clear()
        self._used.clear()
        self.generated.clear()


def by_critic(pulls: Iterable[Pull], owned: Set[int]) -> dict[int, list[Pull]]:
    """``pulls`` at critics that an optimizer owns, by the first parameter that it ``owned``."""
    mine: dict[int, list[Pull]] = {}
    for pull in pulls:
        first = next((id(p) for p in pull.call.parameters if id(p) in owned), None)
        if first is not None:
            mine.setdefault(first, []).append(pull)
    return mine


def rows_at(part: slice, batch: Tensor) -> Tensor:
    """(B,) bool: the rows ``part`` of a ``batch`` (B, ...)."""
    rows = torch.zeros(len(batch), dtype=torch.bool, device=batch.device)
    rows[part] = True
    return rows


def scores_of(rows: Tensor, batch: int) -> Tensor | None:
    """Of ``batch`` scores (of samples, or of packs of them) those of ``rows`` (B,) bool.

    Returns:
        (batch,) bool; None where that is all of them (the device is waited for).
    """
    scores = rows.reshape(batch, -1).all(1) if batch else rows
    return None if bool(scores.all()) else scores


def opposition(fakes: Iterable[Pull], others: Iterable[Pull]) -> Tensor | None:
    """What one step of a critic says, by all pulls at the scores of fakes and of others.

    Returns:
        (2,): 1 if it lowers fakes' scores and raises others', -1 for the reverse, 0 if it pushes
        both one way, or one output so and another so; and 1 if there was something to be read,
        0 where one of the two got no gradient. None if they have no output in common.
    """
    of_fakes, of_others = _by_place(fakes), _by_place(others)
    places = [place for place in of_fakes if place in of_others]
    if not places:
        return None
    signs = torch.stack(
        [
            torch.stack([of_fakes[place], of_others[place].to(of_fakes[place].device)]).sign()
            for place in places
        ]
    )
    high, low = ((signs[:, 0] - signs[:, 1] == 2 * end).all() for end in (1, -1))
    read = (signs.abs() == 1).all()  # no zero, and no NaN
    return torch.stack([high.to(torch.float64) - low.to(torch.float64), read.to(torch.float64)])


def _by_place(pulls: Iterable[Pull]) -> dict[int, Tensor]:
    totals: dict[int, Tensor] = {}
    for pull in pulls:
        before = totals.get(pull.place)
        totals[pull.place] = pull.summed if before is None else before + pull.summed
    return totals


def reached_of(parameters: Iterable[Tensor]) -> Tensor | None:
    """One of ``parameters`` that the running backward goes on to."""
    for parameter in parameters:
        if parameter.requires_grad and executes(node_of(parameter)):
            return parameter
    return None
