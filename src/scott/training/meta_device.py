"""The meta device, where tensors have a size and no content: what would operations hold, and compute?

torch's own means stop at a training step: MemTracker puts a hook on every parameter, which frozen ones refuse,
FakeTensorMode does not let the schedule read its times, and FlopCounterMode keeps what is to be computed again in the
backward pass.
"""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from scott.training.counting import tensors_in


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
        if func.is_view:  # of a storage that it was given, and nothing is computed
            return func(*args, **kwargs)
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
