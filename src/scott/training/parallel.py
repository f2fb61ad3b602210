"""The trained models over several processes: whole in each with averaged gradients (DDP), or all split (FSDP2).

A model is a set of parameters and a call that uses them: an adapter in the frozen network, which other models share, as
well as a copy of its own. `Model` makes a module of either, so that torch's DDP and state-dict functions see it alone.
With `shard` the parameters are split where they lie, block by block, and whoever calls the network gathers them.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from scott.device import best_device
from scott.errors import UserError
from scott.teachers import LatentBackbone
from scott.training.config import DistillConfig

_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)
_DOT = "/"  # stands for the dots of a name, which a module's own parameters may not have


class Model(nn.Module):
    """Some parameters of a backbone, by name, and the call that they answer."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], call: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        for name, parameter in parameters.items():
            self.register_parameter(name.replace(".", _DOT), parameter)
        self.tensors, self.call = dict(parameters), call

    def forward(self, *inputs: Any) -> Tensor:
        assert self.call is not None, "this model is only stored"
        return self.call(*inputs)


def rows_of_pass(config: DistillConfig, process: int, processes: int) -> list[slice]:
    """Which rows of a step's batch a process takes in each of its passes. Raises `UserError` unless all get as many."""
    passes = config.gradient_accumulation
    size, rest = divmod(config.batch_size, processes * passes)
    if rest or not size:
        raise UserError(
            f"got batch size {config.batch_size}; expected a multiple of {processes * passes}, as it is the batch of "
            f"all processes ({processes}) and their passes (gradient_accumulation {passes})"
        )
    drawn = config.drawn_rows(config.batch_size)
    if config.draws_fakes and drawn % (processes * passes):
        raise UserError(
            f"got drawn_fraction {config.drawn_fraction}, {drawn} rows of {config.batch_size}; expected a multiple of "
            f"{processes * passes} rows, so that each pass of each process has as many"
        )
    first = process * passes
    return [slice((first + k) * size, (first + k + 1) * size) for k in range(passes)]


def shard(backbone: LatentBackbone) -> None:
    """Split the frozen network, the copies and the critic's heads over the processes, with all adapters in them.

    They may lie in main memory: a block at a time goes to the device, and its part stays there. A block is gathered
    while it computes. What lies outside the blocks is gathered once a step, until `release`: its
    hooks are on the network's output, which the critic's graph does not reach. Over several machines that run as many
    processes each, every machine holds all of it (HSDP).
    """
    mesh = _mesh(best_device().type)
    for network in (backbone.network, *backbone.copies.values()):
        for block in backbone.blocks(network):
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
        root = fully_shard(network, mesh=mesh, reshard_after_forward=False)
        root.set_reshard_after_backward(False, recurse=False)
    for head in backbone.heads:
        fully_shard(head, mesh=mesh, reshard_after_forward=True)


def release(backbone: LatentBackbone) -> None:
    """Drop what is gathered of a split network, after its parameters have changed."""
    for network in (backbone.network, *backbone.copies.values()):
        if isinstance(network, FSDPModule):
            network.reshard()


def _mesh(device: str) -> DeviceMesh:
    processes, on_machine = dist.get_world_size(), int(os.environ.get("LOCAL_WORLD_SIZE", "0"))
    machines = processes // on_machine if on_machine and processes % on_machine == 0 else 1
    if 1 < machines < processes:
        return init_device_mesh(device, (machines, on_machine), mesh_dim_names=("replicate", "shard"))
    return init_device_mesh(device, (processes,))


def averaged(model: Model, config: DistillConfig, *, unused: bool = False) -> nn.Module:
    """The model, its gradients averaged over the processes as `backward` makes them; with `shard` they are already.

    `unused`: whether it has parameters that no output depends on, which DDP has to look for.
    """
    if not dist.is_initialized() or config.shard == "full":
        return model
    made = DistributedDataParallel(model, gradient_as_bucket_view=True, find_unused_parameters=unused)
    if dist.get_backend() == "gloo":
        made.register_comm_hook(None, _mean_in_order)
    return made


def _mean_in_order(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Adds the processes' gradients up in the order of their ranks, all of which each process gathers.

    Gloo's own order depends on where in a bucket a value lies, and DDP moves it after a first step: a run that goes on
    would not be bit for bit one that was not stopped.
    """
    parts = [torch.empty_like(bucket.buffer()) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, bucket.buffer())
    future: torch.futures.Future[Tensor] = torch.futures.Future()
    future.set_result(sum(parts[1:], parts[0]) / len(parts))
    return future


@contextmanager
def without_averaging(*models: nn.Module) -> Iterator[None]:
    """All passes of a step but the last: DDP adds gradients up."""
    with ExitStack() as stack:
        for model in models:
            if isinstance(model, DistributedDataParallel):
                stack.enter_context(model.no_sync())
        yield


def local(tensor: Tensor) -> Tensor:
    """This process's part of a split tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a split tensor, in every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def model_tensors(model: Model) -> dict[str, Tensor]:
    """The parameters by name, whole, in the first process; the others get none. All call it."""
    state: dict[str, Any] = get_model_state_dict(model, options=_FULL)
    return {name.replace(_DOT, "."): value for name, value in state.items()}


def load_parameters(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor], name: str) -> None:
    """Copy whole tensors into parameters, split or not; `UserError` unless names and shapes agree."""
    shapes = {key: value.shape for key, value in parameters.items()}
    if shapes != {key: value.shape for key, value in tensors.items()}:
        raise UserError(
            f"the checkpoint's {name} does not fit this teacher and config; resume with those it was made with"
        )
    state: dict[str, Any] = {key.replace(".", _DOT): value for key, value in tensors.items()}
    set_model_state_dict(Model(parameters), state, options=StateDictOptions(full_state_dict=True))


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """State as `parameter.entry` → whole tensor, of split parameters in the first process. Hyper-parameters are the
    config's.

    A whole number, which 8-bit optimizers count steps in, becomes an int64 scalar.
    """
    if not optimizer.state:  # nothing was updated yet: torch would make a first step
        return {}
    if _is_split(model):
        full: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=_FULL)
        state = full.get("state", {})
    else:  # as it is: bitsandbytes' state_dict has it in a form that torch's functions do not read
        state = {name: optimizer.state[p] for name, p in model.named_parameters() if p in optimizer.state}
    return {
        f"{name.replace(_DOT, '.')}.{entry}": value if isinstance(value, Tensor) else torch.tensor(value)
        for name, entries in state.items()
        for entry, value in entries.items()
    }


def load_optimizer_tensors(model: nn.Module, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`, bit for bit, in any number of processes."""
    if not tensors:
        return
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    keys = {name.replace(_DOT, "."): name for name in names.values()}
    state: dict[str, Any] = {name: {} for name in names.values()}
    for key, value in tensors.items():
        name, entry = key.rsplit(".", 1)
        state[keys[name]][entry] = int(value) if value.dtype == torch.int64 and value.ndim == 0 else value
    groups: Any = [{**group, "params": [names[id(p)] for p in group["params"]]} for group in optimizer.param_groups]
    if _is_split(model):
        full = {"state": state, "param_groups": groups}
        set_optimizer_state_dict(model, optimizer, full, options=StateDictOptions(full_state_dict=True))
        return
    ordered = [name for group in groups for name in group["params"]]
    by_index = {index: state[name] for index, name in enumerate(ordered) if state[name]}
    optimizer.load_state_dict({"state": by_index, "param_groups": optimizer.state_dict()["param_groups"]})


def _is_split(model: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())
