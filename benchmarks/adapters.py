"""The student with its adapter against the plain network, and against peft's stock layers in the same places."""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from diffusers import ModelMixin
from peft import LoraConfig
from torch import Tensor

from benchmarks.bare import TIME
from benchmarks.plain import PlainLCM
from benchmarks.timing import Call, Times
from scott.data.batch import Batch
from scott.teachers import LatentBackbone
from scott.teachers.lora import lora_targets
from scott.training.config import DistillConfig


def adapter_calls(backbone: LatentBackbone, plain: PlainLCM, batch: Batch, config: DistillConfig) -> dict[str, Call]:
    """A forward pass without gradient (`forward_…`) and one with the backward pass (`both_…`) of four networks.

    `plain` makes the gradients of all its weights, `frozen` only that of its input; `student` and `peft` those of
    adapters of one rank on the same layers.
    """
    peft = copy.deepcopy(plain.teacher)
    targets = lora_targets(peft, ("",), backbone.student_layers)
    peft.add_adapter(LoraConfig(r=config.lora_rank, lora_alpha=config.alpha, target_modules=targets))
    x, cond, t = batch.mean, batch.cond, torch.full((len(batch),), TIME)
    leaf = x.clone().requires_grad_()

    def calls(
        name: str,
        network: ModelMixin,
        inputs: Sequence[Tensor],
        x: Tensor = x,
        mode: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> dict[str, Call]:
        def forward() -> None:
            with torch.no_grad(), mode():
                backbone.predict(network, x, t, cond)

        def both() -> None:
            with mode():
                output = backbone.predict(network, x, t, cond)
            torch.autograd.grad(output.square().mean(), inputs)

        return {f"forward_{name}": forward, f"both_{name}": both}

    return {
        **calls("plain", plain.student, list(plain.student.parameters())),
        **calls("frozen", plain.teacher, [leaf], leaf),
        **calls(
            "student",
            backbone.network,
            list(backbone.student_parameters().values()),
            mode=lambda: backbone.adapters.use("student"),
        ),
        **calls("peft", peft, [parameter for parameter in peft.parameters() if parameter.requires_grad]),
    }


def adapter_figures(times: Times) -> dict[str, float]:
    """`adapter_overhead` is the larger of forward and forward with backward; the others stand beside it."""
    forward, both = times.ratio("forward_student", "forward_plain"), times.ratio("both_student", "both_plain")
    return {
        "adapter_overhead": max(forward, both),
        "adapter_overhead_forward": forward,
        "adapter_overhead_forward_backward": both,
        "adapter_overhead_over_frozen": times.ratio("both_student", "both_frozen"),
        "peft_overhead_forward": times.ratio("forward_peft", "forward_plain"),
        "peft_overhead_forward_backward": times.ratio("both_peft", "both_plain"),
    }
