"""Which gated calls belong to a generator step: told by the optimizers that step.

A call of the critic does not say whose step it is in: many loops send un-detached fakes, augmented
reals or interpolates through it in the critic step. So a gated call is *pending* once its backward
ran, and the next optimizer settles it:

    backward through the gate ... optimizer of the generator steps   counted, one generator step
    backward through the gate ... optimizer of the critic steps      set aside
    then at once: optimizer of the generator steps                   recovered: both losses were
                                                                     backwarded before either step

A call whose gradient was thrown away by ``zero_grad()`` before the step counts for nothing.

A backward may also end at the samples, whose gradient the loop weighs against other losses' and
sends on to the generator by hand (loss balancers do). Where the generator's optimizer then steps,
and no backward went through a gate to the generator, it is known of the training from then on.
"""

from __future__ import annotations

import gc
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.optim import Optimizer

from topk_plugin.core.arrival import HOW_TO_MARK, NO_IDS, Arrival, sent_on
from topk_plugin.core.graph import LiveIds
from topk_plugin.core.parameters import owned_by
from topk_plugin.core.running import Running
from topk_plugin.core.sorted_choice import AnyChoice
from topk_plugin.core.training import Trainings
from topk_plugin.errors import GeneratorStepUnknown, TopKError

UNSETTLED_LIMIT = 1000
"""Gated backward passes without any optimizer step in between: no optimizer will ever tell."""


class StepLedger:
    """Pending calls and the rules that settle them.

    Args:
        counted: receives the calls of each generator step, on the host, after the optimizer; what
            was chosen in them and by line A; and that optimizer, if it is known.
        trainings: told of optimizers that are built, and that join in a step, if they are to be.
    """

    def __init__(
        self,
        counted: Callable[[list[Arrival], list[AnyChoice], Optimizer | None], None],
        trainings: Trainings | None,
    ) -> None:
        self.counted, self.trainings = counted, trainings
        self.pending: list[Arrival] = []
        self.aside: list[tuple[Arrival, Tensor | None]] = []  # with the parameter's gradient then
        self.stopped: deque[Arrival] = deque(maxlen=100)  # at the samples; penalties stop there too
        self.line_called = False  # a gate of line A saw a backward
        # its latest choices: only a loop whose optimizers nobody sees makes more
        self.line: deque[AnyChoice] = deque(maxlen=100)
        self.settled = False  # an optimizer settled, and nothing arrived since
        self._marked = 0  # depth of ``with topk.generator_step()``
        self._sparing = 0  # ... of those that spare the critic
        self.explicit = False  # the user marks generator steps: optimizers decide nothing
        self.optimizer_steps = 0
        self.failure: TopKError | None = None  # the first that the loop was told of: it may go on
        self.optimized = LiveIds()  # all parameters that an optimizer stepped
        # what the critic's optimizer owns: also layers and embeddings outside the critic
        self.of_critic = LiveIds()
        self.whole_process = False  # every optimizer alive is the script's (`topk run`)
        self.undetached = False  # critic steps send fakes that are not detached
        # optimizers of both networks: whether they are the critic's
        self._critics: weakref.WeakKeyDictionary[Optimizer, bool] = weakref.WeakKeyDictionary()
        self.on_optimizer_step: Callable[[], None] | None = None
        self.before_call: list[Callable[[], None]] = []  # of the critic
        self.after_step: list[Callable[[Optimizer], None]] = []  # told when it was settled
        self.after_zeroing: list[Callable[[set[int]], None]] = []  # told ids of parameters
        self._upstream = NO_IDS  # of the calls that were settled last
        self.running = Running()

    def arrive(self, arrival: Arrival) -> None:
        """A backward went through a gate."""
        if arrival.stopped:
            self.stopped.append(arrival)
            return
        self._forget(self.aside)
        self.settled = False
        if self.pending:
            self._met(arrival)
        self.pending.append(arrival)
        if len(self.pending) > UNSETTLED_LIMIT and self.optimized:
            del self.pending[0]  # something else than the two networks is being optimised
        elif len(self.pending) > UNSETTLED_LIMIT:
            raise GeneratorStepUnknown(
                f"{UNSETTLED_LIMIT} backward passes went through the critic and no optimizer of "
                "torch.optim stepped that owns a generator parameter, so generator steps cannot "
                f"be told from critic steps. {HOW_TO_MARK}"
            )

    def _met(self, arrival: Arrival) -> None:
        """Another backward ran, perhaps through a call that is pending: then both vote."""
        # no gradient, so what earlier passes left there was thrown away
        gone = arrival.parameter if arrival.parameter.grad is None else None
        pending, self.pending = self.pending, []
        for other in pending:
            if other.parameter is gone and other.task != arrival.task:
                continue
            if other.box is arrival.box:
                arrival.choice.votes_with(other.choice)
                arrival.earlier |= other.tasks
            else:
                self.pending.append(other)

    def calling(self) -> None:
        """The critic is being called, and its k is not decided yet."""
        for tell in list(self.before_call):
            tell()

    def line_arrive(self, choice: AnyChoice) -> None:
        """A backward went through a gate of line A, which only generator steps have."""
        self.line_called, self.settled = True, False
        self.line.append(choice)

    def line_compiled(self) -> None:
        """A compiled step with a gate of line A ran forward; its backward runs no Python."""
        self.line_called, self.settled = True, False

    def settle(self, optimizer: Optimizer | None = None) -> None:
        """Count what is pending, or was just set aside, as one generator step of ``optimizer``."""
        calls = self.pending or self._recoverable()
        choices = [*self.line, *[call.choice for call in calls]]
        self.pending, self.aside, self.line_called = [], [], False
        self.line.clear()
        self.settled = True
        self._upstream = NO_IDS.union(*[call.upstream for call in calls])
        self.counted(calls, choices, optimizer)
        for call in calls:
            call.training.stops_too |= any(one.box is call.box for one in self.stopped)
            call.counted()
        self.stopped.clear()

    def mark(self) -> None:
        """``topk.step()``: one generator step, told by hand.

        Counts even where nothing is pending, as in a replayed CUDA graph, which runs no Python;
        but not twice where the optimizer's step just before it was counted.
        """
        self.explicit = True
        if not self.settled:
            self.settle()
        self.settled = False

    @property
    def is_marked(self) -> bool:
        """Inside ``with topk.generator_step()``."""
        return bool(self._marked)

    @property
    def spares_critic(self) -> bool:
        """Inside ``with topk.generator_step(spare=True)``."""
        return bool(self._sparing)

    @contextmanager
    def marked(self, spare: bool = False) -> Iterator[None]:
        """``with topk.generator_step()``: its calls count when it ends, others do not."""
        self.explicit = True
        self._marked += 1
        self._sparing += spare
        try:
            yield
        except BaseException:
            self.pending = [call for call in self.pending if not call.known]
            raise
        finally:
            self._marked -= 1
            self._sparing -= spare
        known = [call for call in self.pending if call.known]
        if not self._marked and (known or self.line_called):
            self.pending = known
            self.settle()

    def optimizer_stepped(self, optimizer: Optimizer) -> None:
        """An outermost optimizer step ended."""
        self.optimizer_steps += 1
        if self.on_optimizer_step is not None:
            self.on_optimizer_step()
        parameters = owned_by(optimizer)
        owned = parameters.ids
        self.optimized.take_owned(parameters)
        known = [call for call in self.pending if call.known]
        if self.line_called or known:
            self.pending = known
            self.settle(optimizer)
            return
        calls = self.pending or self._recoverable()
        if not calls and not self.explicit and (sent := sent_on(self.stopped, owned)):
            self.pending = sent
            self.settle(optimizer)
        elif not calls:
            if self.trainings and self.settled and not self._upstream.isdisjoint(owned):
                self.trainings.joined(optimizer)
        elif self.explicit:
            self._set_aside(calls)
        else:
            self._attribute(optimizer, owned, calls)

    def _attribute(self, optimizer: Optimizer, owned: frozenset[int], calls: list[Arrival]) -> None:
        """Whose step it was, by what the optimizer ``owned`` of either network."""
        upstream = NO_IDS.union(*(call.upstream for call in calls)) - self.of_critic
        of_critic = NO_IDS.union(*(call.critic for call in calls))
        # where the nearest parameter has an optimizer, that one decides: another may optimise
        # what lies behind it, latents for instance
        nearest = {id(call.parameter) for call in calls} & self.optimized & upstream
        generator, critic = bool((nearest or upstream) & owned), bool(of_critic & owned)
        if generator and critic:
            # whoever owns the critic: nothing was left for it, as where the loop freezes it
            spared = all(call.spared and id(call.parameter) in owned for call in calls)
            critic = not spared and self._is_critics(optimizer, owned, upstream, of_critic)
            generator = not critic
        if generator and not owned.isdisjoint(self.of_critic - of_critic):
            raise GeneratorStepUnknown(
                f"this {type(optimizer).__name__} is the generator's and owns parameters outside "
                f"the critic that the critic's optimizer owns too. {HOW_TO_MARK}"
            )
        if generator:
            self.settle(optimizer)
        elif critic:
            self.of_critic.take_owned(owned_by(optimizer))
            self.undetached |= bool(upstream - owned)
            self._set_aside(calls)

    def _is_critics(
        self, optimizer: Optimizer,
        owned: frozenset[int], upstream: frozenset[int], of_critic: frozenset[int],
    ) -> bool:  # fmt: skip
        """Of an optimizer that owns parameters on both sides, whether it is the critic's.

        Layers or embeddings may lie outside the critic, or be shared with it: then the rest of
        that network, or the whole other one, is another optimizer's.
        """
        if optimizer not in self._critics:
            if self.whole_process:
                others = _optimizable() - owned
            else:  # other loops of the process may have optimizers
                others = (self.optimized - owned) & (upstream | of_critic)
            if not others:
                raise _owns_both(optimizer)
            rest_of_critic = of_critic - owned
            self._critics[optimizer] = not (rest_of_critic & others) or bool(upstream & others)
        return self._critics[optimizer]

    def zeroed(self, parameters: Iterable[Tensor]) -> None:
        """Gradients were set to zero: what calls left there is gone."""
        if self.running or not (self.pending or self.aside or self.after_zeroing):
            return  # an optimizer that does it inside its step has used them
        gone = {id(parameter) for parameter in parameters}
        for tell in self.after_zeroing:
            tell(gone)
        self.thrown_away(gone)

    def thrown_away(self, gone: set[int]) -> None:
        """What calls left in the gradients of parameters, by id, is gone."""
        self.pending = [call for call in self.pending if id(call.parameter) not in gone]
        for call in self.pending:
            call.spared |= not call.critic.isdisjoint(gone)
        self._forget([one for one in self.aside if id(one[0].parameter) in gone])

    def _forget(self, aside: list[tuple[Arrival, Tensor | None]]) -> None:
        """Of what was set aside these were the critic's, for certain."""
        for call, _ in aside:
            call.training.audit.masks_critic |= call.masks
        self.aside = [one for one in self.aside if one not in aside]

    def _set_aside(self, calls: list[Arrival]) -> None:
        self.aside = [(call, call.parameter.grad) for call in calls if not call.spared]
        self.pending = [call for call in calls if call.spared]

    def _recoverable(self) -> list[Arrival]:
        """What was set aside, as far as the generator's gradients are still those of then."""
        return [call for call, g in self.aside if g is None or call.parameter.grad is g]

    def leave(self, optimizer: Optimizer) -> None:
        """An optimizer's step ended; only the outermost one settles."""
        self.running.leave(optimizer)
        if not self.running:
            self.optimizer_stepped(optimizer)
            for tell in list(self.after_step):
                tell(optimizer)


def hand_over(learned: StepLedger, to: StepLedger) -> None:
    """What one ledger learned of a critic goes on in another, where it is attached only now."""
    to.of_critic.take(learned.of_critic.tensors)
    to.undetached |= learned.undetached
    to._critics.update(learned._critics)
    to.pending += learned.pending
    to.aside += learned.aside


def _owns_both(optimizer: Optimizer) -> GeneratorStepUnknown:
    return GeneratorStepUnknown(
        f"one {type(optimizer).__name__} owns parameters of both the generator and the critic, so "
        f"its steps do not tell generator steps from critic steps. {HOW_TO_MARK} If just layers of "
        "the critic lie outside the attached module, name the generator: attach(..., generator=G)."
    )


def _optimizable() -> set[int]:
    """Ids of the parameters of all optimizers alive, those that have not stepped yet included."""
    # by type: isinstance asks lazy objects for their class, and some warn
    alive = (o for o in gc.get_objects() if issubclass(type(o), Optimizer))
    return {id(p) for o in alive for group in o.param_groups for p in group["params"]}
