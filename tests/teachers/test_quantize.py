"""A frozen network in 8 or 4 bits: near the whole one, a fraction of its bytes, and a student on it learns."""

import sys

import bitsandbytes as bnb
import pytest
import torch

from scott.errors import UserError
from scott.teachers import load_backbone
from scott.teachers.quantize import saved_bytes
from scott.training.config import DistillConfig

KINDS = {"int8": 0.02, "nf4": 0.15}
"""Kind → largest relative error of an answer."""


def linear_bytes(backbone):
    layers = [m for block in backbone.blocks() for m in block.modules() if isinstance(m, torch.nn.Linear)]
    return sum(tensor.nbytes for layer in layers for tensor in held(layer))


def held(layer):
    """A layer's weight, and what bitsandbytes keeps beside it."""
    yield layer.weight
    if state := getattr(layer.weight, "quant_state", None):
        yield from (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
    elif state := getattr(layer, "state", None):
        yield state.SCB


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_answers_nearly_as_the_whole_one(teacher_folders, inputs, family, kind, dtype):
    whole, quantised = load_backbone(teacher_folders[family]), load_backbone(teacher_folders[family], dtype, kind)
    x, t, cond = inputs(whole)
    with torch.no_grad():
        expected, got = whole.teacher(x, t, cond), quantised.teacher(x, t, cond)
    assert 0 < (got - expected).norm() < (KINDS[kind] + 0.02) * expected.norm()
    here = load_backbone(teacher_folders[family], dtype)
    assert saved_bytes(here.blocks(), kind) == linear_bytes(here) - linear_bytes(quantised)


@pytest.mark.parametrize(("kind", "variant"), [("int8", "lora"), ("nf4", "lora"), ("nf4", "dora")])
def test_student_and_critic_learn_and_the_teacher_stays(teacher_folders, inputs, kind, variant):
    backbone = load_backbone(teacher_folders["sd3"], quantized=kind)
    x, t, cond = inputs(backbone)
    with torch.no_grad():
        teacher = backbone.teacher(x, t, cond)
    backbone.add_student("lora", rank=4, alpha=4.0, variant=variant)
    backbone.add_critic(4)
    with torch.no_grad():
        torch.testing.assert_close(backbone.student(x, t, cond), teacher)
    optimizer = torch.optim.AdamW(backbone.student_parameters().values(), lr=1e-3)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = (backbone.student(x, t, cond) - teacher - 0.1).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    assert losses[2] < losses[0]
    assert {p.dtype for p in backbone.student_parameters().values()} == {torch.float32}
    with torch.no_grad():
        assert torch.equal(backbone.teacher(x, t, cond), teacher)


@pytest.mark.parametrize("called", [False, True], ids=["before-its-first-call", "after-it"])
def test_int8_layers_multiply_by_what_was_moved(teacher_folders, inputs, called):
    """A move gives a parameter another tensor, on whichever device."""
    backbone = load_backbone(teacher_folders["sd3"], quantized="int8")
    backbone.add_student("lora", rank=4, alpha=4.0)
    if called:
        with torch.no_grad():
            backbone.student(*inputs(backbone))
    layers = [m for m in backbone.network.modules() if isinstance(m, bnb.nn.Linear8bitLt)]
    for layer in layers:
        layer.weight.data = layer.weight.data.clone()
    backbone.place_network("cpu")
    assert layers
    for layer in layers:
        assert layer.weight.CB is None  # else the first call would take it
        assert layer.state.CB.data_ptr() == layer.weight.data_ptr()


def test_it_is_refused_before_anything_is_read_where_bitsandbytes_is_not_installed(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"--quantize needs bitsandbytes \(.*\); pip install bitsandbytes"):
        load_backbone(tmp_path / "nowhere", quantized="nf4")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"train": "full"}, "a copy cannot be made"),
        ({"critic": "full"}, "a copy cannot be made"),
        ({"lora_variant": "dora"}, "use nf4"),
    ],
    ids=str,
)
def test_what_does_not_go_with_it_is_refused(other, said, tmp_path):
    with pytest.raises(UserError, match=said):
        DistillConfig(teacher="mini", data="mini", out=tmp_path, quantize="int8", **other)
