"""The embedded teacher's networks as CUDA graphs: they are so small that launching their kernels one by one would take
most of a step's time on a GPU."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from scott.teachers import LatentBackbone

WARMUP = 3
"""Calls that are made before one is recorded, as torch asks for."""

Tensors = dict[str, Tensor]


class Launched:
    """A function of tensors whose later calls are one launch on a GPU: `WARMUP` calls are made as they are, and what
    the next one does is recorded as a CUDA graph, which is replayed from then on. On a CPU it is only called."""

    def __init__(self, function: Callable[[Tensors], Tensor], device: str) -> None:
        self.function, self.device, self.calls = function, torch.device(device), 0
        self.given: Tensors = {}
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, given: Tensors) -> Tensor:
        if self.device.type != "cuda":
            return self.function(given)
        if not self.given:
            self.given = {name: torch.empty_like(value, device=self.device) for name, value in given.items()}
        for name, value in given.items():
            self.given[name].copy_(value, non_blocking=True)
        self.calls += 1
        if self.graph is None and self.calls <= WARMUP:
            side = torch.cuda.Stream()  # a graph is recorded on another stream than the default, and warmed up on one
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                made = self.function(self.given)
            torch.cuda.current_stream().wait_stream(side)
            return made
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # a loader pins memory beside it
                self.made = self.function(self.given)
        self.graph.replay()
        return self.made


def record(backbone: LatentBackbone) -> None:
    """From now on launch the forward and backward passes of a full student, its target, the teacher and a critic of
    heads as graphs; each shape of input is recorded when it first comes. Adapters, which are switched on the way, stay
    as they are, with all that stands on their network."""
    critic: Any = backbone.critic_model
    if backbone.train_mode != "full" or (critic is not None and critic.kind != "heads"):
        return
    if critic is not None:
        plain, timestep = critic.forward, backbone.network_time

        def logits(x0: Tensor, time: Tensor, text: Tensor) -> Tensor:
            with _set(backbone, network_time=lambda t: t):  # the time the network is fed is an input already
                return plain(x0, time, {"text": text})

        graphs = Graphs(logits, [*critic.heads.parameters()])
        critic.forward = lambda x0, t, cond: graphs(x0, timestep(t).to(x0.device), cond["text"])
    networks: list[Any] = [backbone.network, *backbone.copies.values()]
    for network in networks:
        network.forward = _unet(network)


def _unet(network: Any) -> Callable[..., SimpleNamespace]:
    plain = network.forward

    def output(x_t: Tensor, timestep: Tensor, text: Tensor, *guidance: Tensor) -> Tensor:
        return plain(x_t, timestep, text, timestep_cond=guidance[0] if guidance else None).sample

    graphs = Graphs(output, [parameter for parameter in network.parameters() if parameter.requires_grad])

    def forward(
        x_t: Tensor, timestep: Tensor, text: Tensor, *, timestep_cond: Tensor | None, added_cond_kwargs: None
    ) -> SimpleNamespace:
        assert added_cond_kwargs is None
        return SimpleNamespace(sample=graphs(x_t, timestep, text, *([] if timestep_cond is None else [timestep_cond])))

    return forward


class Graphs:
    """A function of tensors and trained parameters, each kind of call to which is recorded once and then replayed.

    The gradients of a call have to go back before the next of its kind. Kinds differ in shapes and in what has a
    gradient: the critic's fakes have one and its data do not.
    """

    def __init__(self, function: Callable[..., Tensor], trained: Sequence[nn.Parameter]) -> None:
        self.function, self.trained = function, trained
        self.recorded: dict[Any, _Recorded] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        graded = torch.is_grad_enabled()
        kind = graded, *((x.shape, x.dtype, x.requires_grad) for x in inputs)
        trained = self.trained if graded else []
        if kind not in self.recorded:
            self.recorded[kind] = _Recorded(self.function, inputs, trained)
        made: Tensor = _Replay.apply(self.recorded[kind], *inputs, *trained)
        return made


class _Recorded:
    """One call, and what goes back from it, as two graphs on memory of their own.

    Not torch's `make_graphed_callables`: what it kept for going back is gone after once, and the critic's fakes go back
    twice.
    """

    def __init__(self, function: Callable[..., Tensor], inputs: Sequence[Tensor], trained: Sequence[Tensor]) -> None:
        graded = torch.is_grad_enabled()
        self.inputs = [x.detach().clone().requires_grad_(x.requires_grad and graded) for x in inputs]
        towards = [x for x in (*self.inputs, *trained) if x.requires_grad]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), torch.set_grad_enabled(graded):
            for _ in range(WARMUP):
                made = function(*self.inputs)
                if towards:
                    torch.autograd.grad(made, towards, torch.ones_like(made), allow_unused=True)
        torch.cuda.current_stream().wait_stream(side)
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.forward, capture_error_mode="thread_local"), torch.set_grad_enabled(graded):
            self.output = function(*self.inputs)
        self.grads: list[Tensor | None] = []
        if towards:
            self.grad_output = torch.empty_like(self.output)
            with torch.cuda.graph(self.backward, pool=self.forward.pool(), capture_error_mode="thread_local"):
                back = torch.autograd.grad(self.output, towards, self.grad_output, allow_unused=True, retain_graph=True)
            grads = iter(back)
            self.grads = [next(grads) if x.requires_grad else None for x in (*self.inputs, *trained)]


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recorded: _Recorded, *given: Tensor) -> Tensor:
        ctx.recorded = recorded
        for mine, theirs in zip(recorded.inputs, given, strict=False):
            mine.detach().copy_(theirs)
        recorded.forward.replay()
        return recorded.output.detach().clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        recorded = ctx.recorded
        recorded.grad_output.copy_(grad)
        recorded.backward.replay()
        inputs = len(recorded.inputs)  # autograd copies the parameters' itself, and hands these on
        copies = [None if grad is None else grad.clone() for grad in recorded.grads[:inputs]]
        return None, *copies, *recorded.grads[inputs:]


@contextmanager
def _set(of: object, **values: Any) -> Iterator[None]:
    """Attributes of an object's own, within."""
    of.__dict__.update(values)
    try:
        yield
    finally:
        for name in values:
            del of.__dict__[name]
