"""One training step as one graph: loss, gradient, and the optimizer's update in place."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_ext.training.compiled.bindings import bind
from pyro_ext.training.compiled.graph import Recorded
from pyro_ext.training.compiled.nonfinite import all_finite
from pyro_ext.training.compiled.optimizer import CLIP_NORM, CLIP_VALUE, AllParameters, clip
from pyro_ext.training.compiled.private import compile_graph, functional_graph, once
from pyro_ext.training.compiled.products import with_faster_products
from pyro_ext.training.compiled.rules import Rule, rule_of
from pyro_ext.training.moving import MovingBuffers

__all__ = ["StepGraph", "build_step"]


Call = Callable[[list[Tensor]], Sequence[Tensor]]

_LARGE = 1000  # entries from which a gradient is stored before it is used


@dataclass(frozen=True)
class Plan:
    """What the update in a graph reads and writes.

    Args:
        rule: The update of one parameter.
        params: Place of each trained parameter among the held tensors.
        groups: Place of its group among the optimizer's.
        state: Names of its state tensors.
        clip_norm: Largest norm of the gradient of all parameters together, or None.
    """

    rule: Rule
    params: list[int]
    groups: list[int]
    state: list[tuple[str, ...]]
    clip_norm: float | None


class StepGraph:
    """A step that can be taken again and again on tensors of the same shapes.

    Args:
        call: The step as a function of a list of all its inputs.
        reference: The same, run operation by operation.
        recorded: Loss and gradient.
        optimizer: The optimizer of all parameters.
        rule: The update in the graph, or None where the optimizer takes the step.
        state: The optimizer's state tensors, in the order of the inputs.
        skipped: Counter of the steps that were not applied, as they were not finite.
        moving: The buffers that the step changes.
    """

    def __init__(
        self,
        call: Call,
        reference: Call,
        recorded: Recorded,
        optimizer: AllParameters,
        rule: Rule | None,
        state: list[Tensor],
        skipped: Tensor,
        moving: MovingBuffers,
    ) -> None:
        self.call, self.reference = call, reference
        self.recorded, self.rule, self.state = recorded, rule, state
        self._optimizer, self._groups = optimizer, optimizer.groups
        self._skipped, self._moving = skipped, moving
        self._version = optimizer.version
        self._options = [_options(rule, group) for group in self._groups]
        self._rates = [float(group["lr"]) for group in self._groups]
        self.rates = _rate_tensors(optimizer, skipped.device)
        self._decaying = [group for group in self._groups if "lrd" in group]
        # Aliases without history, which may be written to whatever the gradient mode.
        held = [tensor.detach() for tensor in recorded.held]
        self.fixed = [*held, *state, *self.rates, skipped] if rule is not None else held

    def current(self) -> bool:
        """Tell whether the optimizer is the one that the graph was built for."""
        if self._optimizer.version != self._version:
            return False
        return self.rule is None or all(
            _options(self.rule, group) == given
            for group, given in zip(self._groups, self._options, strict=True)
        )

    def decay(self) -> None:
        """Bring the learning rates in the graph up to date."""
        for group in self._decaying:
            group["lr"] *= group["lrd"]
        for index, group in enumerate(self._groups):
            rate = group["lr"]
            # A rate in a tensor is changed in place.
            if isinstance(rate, Tensor) or rate is not self._rates[index]:
                self._rates[index] = rate
                self.rates[index].fill_(rate)

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        """Take a step and return the loss.

        Args:
            tensors: The step's tensors.
        """
        if self.rule is None:
            self._moving.keep()
            return self._outside(*self.call([*tensors, *self.fixed]))
        self.decay()
        return self.call([*tensors, *self.fixed])[0]

    def _outside(self, loss: Tensor, *grads: Tensor) -> Tensor:
        """Let the optimizer take the step, and return the loss."""
        params, average = self.recorded.params, self._optimizer.average
        finite = all_finite((loss, *grads))
        given: list[Tensor | None] = list(grads)
        if average is not None:
            loss, given, finite = average(loss, params, given, finite=finite)
        if finite:
            self._optimizer.step(params, given)
        else:
            self._moving.restore()
            self._skipped += 1
        return loss

    def many(self, tensors: Sequence[Tensor], count: int) -> list[Tensor]:
        """Take steps on the same tensors and return their losses.

        Args:
            tensors: The step's tensors.
            count: Number of steps.
        """
        if self.rule is None or self._decaying:
            return [self(tensors) for _ in range(count)]
        self.decay()
        call, inputs = self.call, [*tensors, *self.fixed]
        return [call(inputs)[0] for _ in range(count)]


def build_step(
    recorded: Recorded,
    optimizer: AllParameters,
    tensors: Sequence[Tensor],
    skipped: Tensor,
    moving: MovingBuffers,
    *,
    backend: str,
) -> StepGraph:
    """Build a step from loss and gradient.

    Args:
        recorded: Loss and gradient.
        optimizer: The optimizer, which knows every parameter.
        tensors: Tensors like the step's.
        skipped: Counter of the steps that were not applied.
        moving: The buffers that the step changes.
        backend: ``"inductor"``; ``"record"`` for loss and gradient as they were recorded, with
            the optimizer outside; ``"graph"`` for the graph that inductor is given.
    """
    if backend == "record":
        bind(recorded.graph)
        call = _interpreted(recorded.graph.forward)
        return StepGraph(call, call, recorded, optimizer, None, [], skipped, moving)
    plan = make_plan(recorded, optimizer)
    state = [] if plan is None else _state(recorded, optimizer, plan)
    whole = step_function(recorded, optimizer, plan, len(tensors), moving)
    rates = [] if plan is None else [*_rate_tensors(optimizer, skipped.device), skipped]
    # No two of these share memory, so that the compiler keeps the inputs as they are.
    examples = [_like(tensor) for tensor in (*tensors, *recorded.held, *state, *rates)]
    graph = functional_graph(whole, examples)
    call = reference = _interpreted(graph)
    if backend == "inductor":
        cpu = all(tensor.device.type == "cpu" for tensor in examples)
        fast = with_faster_products(graph) if cpu else graph
        call = compile_graph(fast, examples, native_noise=True, cpp_wrapper=cpu)
    rule = None if plan is None else plan.rule
    return StepGraph(call, reference, recorded, optimizer, rule, state, skipped, moving)


def make_plan(recorded: Recorded, optimizer: AllParameters) -> Plan | None:
    """Return how the graph updates the parameters, or None where the optimizer has to.

    Args:
        recorded: Loss and gradient.
        optimizer: The optimizer.
    """
    rule = None if optimizer.torch is None else rule_of(optimizer.torch)
    if rule is None or optimizer.average is not None:
        return None
    place = {id(tensor): index for index, tensor in enumerate(recorded.held)}
    group_of = {
        id(param): index
        for index, group in enumerate(optimizer.groups)
        for param in group["params"]
    }
    groups = [group_of[id(param)] for param in recorded.params]
    names = [rule.state(optimizer.groups[index]) for index in groups]
    params = [place[id(param)] for param in recorded.params]
    return Plan(rule, params, groups, names, optimizer.clip_norm)


def step_function(
    recorded: Recorded,
    optimizer: AllParameters,
    plan: Plan | None,
    count: int,
    moving: MovingBuffers,
) -> Callable[..., tuple[Tensor, ...]]:
    """Return the step as a function of tensors that changes some of them in place.

    Args:
        recorded: Loss and gradient.
        optimizer: The optimizer.
        plan: How the graph updates the parameters.
        count: Number of the step's own tensors.
        moving: The buffers that the step changes.
    """
    held, groups = len(recorded.held), optimizer.groups
    places = moving.places(recorded.held)

    def whole(*inputs: Tensor) -> tuple[Tensor, ...]:
        buffers = [inputs[count + place] for place in places]
        kept = [buffer.clone() for buffer in buffers]
        loss, *grads = recorded.graph(*inputs[: count + held])
        if plan is None:
            return loss, *grads
        state, rates, skipped = inputs[count + held :], inputs[-len(groups) - 1 : -1], inputs[-1]
        # Not computed again in each loop that reads it: one gathers, if it is of a triangle.
        grads = [once(grad) if grad.numel() >= _LARGE else grad for grad in grads]
        finite = torch.isfinite(loss)
        for grad in grads:
            if grad.numel():
                finite = finite & torch.isfinite(grad.abs().amax())
        clipped = clip([groups[index] for index in plan.groups], grads, plan.clip_norm)
        changes: list[tuple[Tensor, Tensor]] = []
        for buffer, before in zip(buffers, kept, strict=True):
            buffer.copy_(torch.where(finite, buffer, before))
        start = 0
        for place, index, names, grad in zip(
            plan.params, plan.groups, plan.state, clipped, strict=True
        ):
            param = inputs[count + place]
            old = dict(zip(names, state[start : start + len(names)], strict=True))
            start += len(names)
            new, new_state = plan.rule.update(param, grad, old, rates[index], groups[index])
            changes.append((param, new))
            changes += [(old[name], new_state[name]) for name in names]
        for before, after in changes:
            before.copy_(torch.where(finite, after, before))
        skipped.add_((~finite).to(skipped.dtype))
        return (loss,)

    return whole


def _interpreted(graph: Callable[..., Any]) -> Call:
    def call(inputs: list[Tensor]) -> Sequence[Tensor]:
        with torch.no_grad():
            outputs: Sequence[Tensor] = graph(*inputs)
        return outputs

    return call


def _state(recorded: Recorded, optimizer: AllParameters, plan: Plan) -> list[Tensor]:
    """Return the optimizer's own state tensors, made where there are none yet."""
    if optimizer.torch is None:
        return []
    tensors = []
    for param, names in zip(recorded.params, plan.state, strict=True):
        state = optimizer.torch.state[param]
        for name in names:
            if not isinstance(state.get(name), Tensor):
                scalar = torch.zeros((), dtype=torch.float32, device=param.device)
                state[name] = scalar if name == "step" else torch.zeros_like(param)
            tensors.append(state[name])
    return tensors


def _rate_tensors(optimizer: AllParameters, device: torch.device) -> list[Tensor]:
    rates = (float(group["lr"]) for group in optimizer.groups)
    return [torch.tensor(rate, dtype=torch.float64, device=device) for rate in rates]


def _options(rule: Rule | None, group: dict[str, Any]) -> tuple[Any, ...]:
    names = () if rule is None else (*rule.options, CLIP_NORM, CLIP_VALUE)
    return tuple([group.get(name) for name in names])


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )
