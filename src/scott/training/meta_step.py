"""One training step on the meta device, where tensors have a size and no content: what would it hold and compute?

torch's own means stop at this step: MemTracker puts a hook on every parameter, which frozen ones refuse, and
FakeTensorMode does not let the schedule read its times.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from scott.data.batch import Batch
from scott.diffusion import Denoiser, NoiseSchedule
from scott.solvers.ddim import DDIM
from scott.teachers import LatentBackbone
from scott.training.config import DistillConfig
from scott.training.step import Draws, distillation_step


def step_peak(backbone: LatentBackbone, config: DistillConfig) -> int:
    """The most bytes that one step makes and holds at a time, its batch and its gradients included.

    The backbone is a skeleton with its student and critic. The teacher makes one of its calls: each holds as much as
    the others.
    """
    step = _prepared_step(backbone, config)
    with LiveBytes() as live, gpu_kernels():
        step(_Calls(backbone.schedule, 1))
    return live.peak


def step_flops(backbone: LatentBackbone, config: DistillConfig) -> int:
    """Floating-point operations of one step's matrix products and convolutions, two a multiply-add."""
    step = _prepared_step(backbone, config)
    with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter, gpu_kernels():
        step(_Calls(backbone.schedule, config.substeps))
    return counter.get_total_flops()


def _prepared_step(backbone: LatentBackbone, config: DistillConfig) -> Callable[[DDIM], None]:
    """The step but for its solver. What is there before a step is made here, where it is not counted."""
    shape = torch.Size((config.batch_size, *backbone.latent_shape))
    grid, uncond = config.make_grid(backbone.schedule), backbone.unconditional()
    drawn = Draws.make(shape, grid, config, torch.Generator())

    def step(solver: DDIM) -> None:
        latents = partial(torch.empty, shape, device="meta")
        # times and ω stay on the CPU: the schedule looks at their values
        draws = replace(
            drawn,
            latent=latents(),
            noise=latents(),
            walk=[latents() for _ in drawn.walk],
            critic_noise=(latents(), latents()),
        )
        cond = {name: torch.empty(len(drawn.t_n), *v.shape[1:], device="meta") for name, v in uncond.items()}
        batch = Batch(latents(), latents(), cond)
        distillation_step(backbone, solver, grid, batch, uncond, draws, config, critic=countable(backbone.critic))
        for parameters in (backbone.student_parameters(), backbone.critic_parameters()):
            for parameter in parameters.values():
                parameter.grad = None

    return step


def countable(critic: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A critic whose input is no leaf: torch's counters put hooks on modules' inputs, which `autograd.grad` refuses."""
    return lambda x0, t, cond: critic(x0.view_as(x0), t, cond)


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that operations within it make: `live` now, and `peak` at most."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            key, size = storage._cdata, storage.nbytes()
            if key not in self._known and key not in given:
                self._known.add(key)
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._free, key, size)
        return result

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
    # the CPU's fused kernel keeps what a GPU's does: query, key, value, output and one number a row
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return attend(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


def _cast(values: tuple[Any, ...], dtype: torch.dtype | None) -> tuple[Any, ...]:
    """What autocast, where it is on, makes of an operation's tensors (the backbone asks for the CPU's on meta)."""
    if not torch.is_autocast_enabled("cpu"):
        return values
    dtype = dtype or torch.get_autocast_dtype("cpu")
    return tuple(v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for v in values)


def _attention_flops(query: Any, key: Any, value: Any, *others: Any, **more: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward_flops(gradient: Any, query: Any, key: Any, value: Any, *others: Any, **more: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
"""torch's counter has these formulas for a GPU's kernels only."""


class _Calls(DDIM):
    """Stands for the run's solver: the teacher is called some times, and the state stays where it is."""

    def __init__(self, schedule: NoiseSchedule, count: int) -> None:
        super().__init__(schedule)
        self.count = count

    def walk(
        self,
        denoiser: Denoiser,
        x: Tensor,
        times: list[Tensor],
        cond: Any,
        generator: torch.Generator | None = None,
        noises: list[Tensor] | None = None,
    ) -> Tensor:
        return [denoiser(x, times[0], cond) for _ in range(self.count)][-1]


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    return (leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
