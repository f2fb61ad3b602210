"""A training step, and pictures encoded and drawn, on the meta device, where tensors have a size and no content: what
would they hold, and the step compute?

torch's own means stop at this step: MemTracker puts a hook on every parameter, which frozen ones refuse, FakeTensorMode
does not let the schedule read its times, and FlopCounterMode keeps what is to be computed again in the backward pass.
"""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from scott.data.batch import Batch
from scott.diffusion import Denoiser
from scott.solvers import Solver
from scott.teachers import Cond, LatentBackbone
from scott.training.config import PROMPTS, DistillConfig
from scott.training.counting import Counts, counted, storage_bytes, tensors_in
from scott.training.draws import Draws, sampling_times
from scott.training.step import Distillation, Engine


@dataclass(frozen=True)
class StepCost:
    """Operations: in all, of the teacher's walk, and of the passes that the student makes to have the gradient of L_adv
    by itself. Bytes at the highest: of the walk, of one whose two calls come one after the other (`low_memory`), and of
    all that follows."""

    flops: int
    walk_flops: int
    measuring_flops: int
    walk: int
    walk_apart: int
    update: int

    @property
    def peak(self) -> int:
        return max(self.walk, self.update)

    @property
    def peak_apart(self) -> int:
        """With `low_memory`."""
        return max(self.walk_apart, self.update)


def step_cost(
    backbone: LatentBackbone, config: DistillConfig, uncond: Cond, *, gradients_stay: bool = False
) -> tuple[StepCost, Counts]:
    """Of one step, its batch and its gradients included, on a skeleton that has its student and critic.

    `uncond` is the backbone's `unconditional()`. Times of drawn fakes are spread as their draws are on average. With
    `adversarial_share` the step is one that measures both gradients; where not each does, the counts are of the others.
    `gradients_stay`: those of an earlier pass are there from its beginning on, or DDP's buckets, in which they lie.
    """
    shape = torch.Size((config.batch_size, *backbone.latent_shape))
    grid = config.make_grid(backbone.schedule)
    drawn = Draws.make(shape, grid, config, torch.Generator())
    latents = partial(torch.empty, shape, device="meta")
    solver = cast(Solver, _Calls())
    stops = torch.tensor(sampling_times(grid)).to(drawn.drawn_t)
    drawn = replace(drawn, drawn_t=stops.sort().values[torch.arange(len(drawn.t_n)) * len(stops) // len(drawn.t_n)])
    trained = [*backbone.student_parameters().values(), *backbone.critic_parameters().values()]
    with Cost() as cost, gpu_kernels():
        for parameter in trained if gradients_stay else ():
            parameter.grad = torch.empty_like(parameter)
        # times and ω stay on the CPU: the schedule reads their values
        draws = drawn.map(lambda value: torch.empty_like(value, device="meta") if value.ndim > 1 else value)
        batch = Batch(latents(), latents(), _blank(uncond, config.batch_size))
        made = Distillation(backbone, config, solver, grid, uncond)
        if not config.low_memory:  # two sub-steps hold as much as any number
            apart = replace(made, config=replace(config, low_memory=True))
            apart.walk(batch, replace(draws, walk=draws.walk[:2]))
        walk_apart, cost.flops = cost.take_peak(), 0
        with counted(backbone) as counts:
            x_m = made.walk(batch, draws)
            walk, walk_flops = cost.take_peak(), cost.flops
            measuring = _Measuring(cost, counts, pause=config.measures_seldom)
            by_itself = nullcontext if config.draws_fakes else measuring.apart
            engine = Engine(apart=by_itself, mark=measuring.mark) if config.adversarial_share else Engine()
            made.step(batch, draws, engine, x_m)
        walk_apart = walk if config.low_memory else walk_apart
        for parameter in trained:
            parameter.grad = None
    return StepCost(cost.flops, walk_flops, measuring.flops, walk, walk_apart, cost.peak), counts


@torch.no_grad()
def encoding_peak(backbone: LatentBackbone, batch: int) -> int:
    """Bytes at the highest while so many pictures of the backbone's size go through its VAE's encoder."""
    pixels = torch.empty(batch, 3, backbone.resolution, backbone.resolution, device="meta")
    with Cost() as cost, gpu_kernels():
        backbone.encode_images(pixels)
    return cost.peak


@torch.no_grad()
def drawing_peak(backbone: LatentBackbone, config: DistillConfig, uncond: Cond) -> int:
    """Bytes at the highest while a run draws: of the guided teacher's calls, or of the VAE, which comes, with its
    weights, as it decodes."""
    x, t = torch.empty(PROMPTS, *backbone.latent_shape, device="meta"), config.make_grid(backbone.schedule).times[-1:]
    with Cost() as cost, gpu_kernels():
        backbone.guided_teacher(uncond, config.drawn_guidance)(x, t.expand(PROMPTS), _blank(uncond, PROMPTS))
        calls = cost.take_peak()
        backbone.decode(x)
    return max(calls, cost.peak + storage_bytes([*backbone.vae.parameters(), *backbone.vae.buffers()]))


def _blank(uncond: Cond, batch: int) -> Cond:
    """Conditions of the shape of this one, of so many samples."""
    return {name: torch.empty(batch, *value.shape[1:], device="meta") for name, value in uncond.items()}


class _Calls:
    """Stands for the run's solver: the teacher is called once a sub-step, and the state stays where it is."""

    def walk(self, denoiser: Denoiser, x: Tensor, times: list[Tensor], cond: Any, noises: list[Tensor]) -> Tensor:
        x0 = x
        for _ in noises:
            x0 = denoiser(x, times[0], cond)
        return x0


class _Measuring:
    """The operations that a step makes to have the gradient of L_adv by itself: of `Engine.apart` all but the critic's,
    which are from the mark "student" to the mark "critic". They may be left out of the counts of calls."""

    def __init__(self, cost: "Cost", counts: Counts, *, pause: bool) -> None:
        self.cost, self.counts, self.pause = cost, counts, pause
        self.flops, self._inside = 0, False

    @contextmanager
    def apart(self) -> Iterator[None]:
        self._inside = True
        self._begin()
        yield
        self._end()
        self._inside = False

    def mark(self, part: str) -> None:
        if self._inside:
            self._end() if part == "student" else self._begin()

    def _begin(self) -> None:
        self.flops, self.counts.paused = self.flops - self.cost.flops, self.pause

    def _end(self) -> None:
        self.flops, self.counts.paused = self.flops + self.cost.flops, False


class Cost(TorchDispatchMode):
    """Bytes of the storages that operations within it make, `live` now and `peak` at most; and `flops`, the operations
    of matrix products, convolutions and attention by torch's formulas, two a multiply-add.

    torch works out what an operation on meta tensors gives in Python. Blocks are alike, so that is kept by what the
    operation was given, unless it gives a view.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.flops = 0
        self._known: set[int] = set()
        self._results: dict[Any, tuple[Any, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        key = (func, _layout(args), _layout([*kwargs.items()]) if kwargs else None)
        if found := self._results.get(key):
            result = _empty_like(found[0])
            self.flops += found[1]
            self._hold(map(Tensor.untyped_storage, tensors_in(result)))
            return result
        result, flops = func(*args, **kwargs), 0
        if formula := flop_registry.get(func.overloadpacket):
            flops = formula(*args, **kwargs, out_val=result)
        self.flops += flops
        given, made = tensors_in((args, kwargs)), tensors_in(result)
        before = {tensor.untyped_storage()._cdata for tensor in given}
        new = [storage for storage in map(Tensor.untyped_storage, made) if storage._cdata not in before]
        self._hold(new)
        if len(new) == len(made) > 0 and not func._schema.is_mutable and all(t.is_meta for t in (*given, *made)):
            self._results[key] = _layout(result), flops
        return result

    def _hold(self, storages: Iterable[torch.UntypedStorage]) -> None:
        for storage in storages:
            number, size = storage._cdata, storage.nbytes()
            if number not in self._known:
                self._known.add(number)
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._free, number, size)

    def take_peak(self) -> int:
        """`peak`, which starts anew from what is live."""
        peak, self.peak = self.peak, self.live
        return peak

    def _free(self, key: int, size: int) -> None:
        self._known.remove(key)
        self.live -= size


@contextmanager
def gpu_kernels() -> Iterator[None]:
    """Gives meta tensors what torch has for a GPU and not for them: attention that keeps no scores, and autocast."""
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("scaled_dot_product_attention", _attention, "AutogradMeta")
        for name, dtype in _AUTOCAST.items():
            operation = getattr(torch.ops.aten, name).default
            library.impl(name, partial(_autocast, operation, dtype), "AutogradMeta")
        yield


_AUTOCAST = {"linear": None, "conv2d": None, "group_norm": torch.float32, "layer_norm": torch.float32}
"""What CUDA's autocast computes these networks' operations in; None is its lower precision."""


def _autocast(operation: Any, dtype: torch.dtype | None, *args: Any) -> Any:
    return operation.decompose(*_cast(args, dtype))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    query, key, value = _cast((query, key, value), None)
    if attn_mask is not None:
        attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    return attend(query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale)[0]


def _cast(values: tuple[Any, ...], dtype: torch.dtype | None) -> tuple[Any, ...]:
    """What autocast, where it is on, makes of an operation's tensors (the backbone asks for the CPU's on meta)."""
    if not torch.is_autocast_enabled("cpu"):
        return values
    dtype = dtype or torch.get_autocast_dtype("cpu")
    return tuple(v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for v in values)


class _Layout(NamedTuple):
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: str


def _layout(tree: Any) -> Any:
    """A tree of lists and tuples, each tensor by its layout and each other value with its type, for comparison."""
    if isinstance(tree, Tensor):
        return _Layout(tree.shape, tree.stride(), tree.dtype, tree.device.type)
    if isinstance(tree, (list, tuple)):
        return tuple(map(_layout, tree))
    return type(tree), tree


def _empty_like(layout: Any) -> Any:
    """The meta tensors that `_layout` tells of, and what else there was."""
    if isinstance(layout, _Layout):
        return torch.empty_strided(layout.shape, layout.stride, dtype=layout.dtype, device="meta")
    if isinstance(layout[0], type):
        return layout[1]
    return tuple(map(_empty_like, layout))
