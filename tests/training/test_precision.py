"""Training in half precision: what is fp32 regardless, and the loss scale that keeps fp16 gradients from underflow."""

import functools
import math
import sys

import pytest
import torch
from tests.training.runs import assert_same_run, final, metrics
from torch import nn

from scott.errors import UserError
from scott.training import optimization
from scott.training.optimization import optimizer_class
from scott.training.step import Distillation

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture
def half(make_backbone):
    """`half(precision, train, family)`: a backbone whose frozen part is in half precision."""

    def make(precision, train="lora", family="sd1"):
        return make_backbone(train, critic_rank=2, family=family, dtype=DTYPES[precision])

    return make


CASES = [
    *(("fp16", "lora", family) for family in ("sd1", "sd2", "sdxl", "pixart", "sd3")),
    *(("bf16", "lora", family) for family in ("sd1", "sd3")),
    *((precision, "full", "sdxl") for precision in DTYPES),
]


@pytest.mark.parametrize(("precision", "train", "family"), CASES)
def test_three_steps_in_half_precision(start, half, tmp_path, precision, train, family):
    backbone = half(precision, train, family)
    before = {name: p.clone() for name, p in backbone.student_parameters().items()}
    base = {name: p.clone() for name, p in backbone.network.named_parameters() if ".lora_" not in name}
    # a jump by which a flow reaches its first time
    start(tmp_path, train, backbone=backbone, precision=precision, max_steps=3, jump=20)
    records = metrics(tmp_path)
    assert [record["step"] for record in records] == [1, 2, 3]
    assert all(math.isfinite(value) for record in records for value in record.values())
    parts, _ = final(tmp_path)
    for name, tensors in parts.items():
        assert {value.dtype for value in tensors.values()} == {torch.float32}, name
    assert any(not torch.equal(p, before[name]) for name, p in backbone.student_parameters().items())
    assert {p.dtype for p in base.values()} == {DTYPES[precision]}
    network = dict(backbone.network.named_parameters())
    assert all(torch.equal(network[name], value) for name, value in base.items())


def test_half_precision_follows_fp32(start, half, make_backbone, tmp_path):
    """The first gradient is the same up to rounding, whatever the loss scale."""
    norms = {}
    for precision in ("fp32", *DTYPES):
        backbone = make_backbone("lora", critic_rank=2) if precision == "fp32" else half(precision)
        start(tmp_path / precision, backbone=backbone, precision=precision, max_steps=1)
        norms[precision] = metrics(tmp_path / precision)[0]["student_gradient_norm"]
    assert norms["bf16"] == pytest.approx(norms["fp32"], rel=0.05)
    assert norms["fp16"] == pytest.approx(norms["fp32"], rel=0.01)


# --- the loss scale ------------------------------------------------------------------------------------------


@pytest.fixture
def scale(monkeypatch):
    """`scale(value)`: what GradScaler starts with."""

    def begin(value):
        scaler = functools.partial(torch.amp.GradScaler, init_scale=value)
        monkeypatch.setattr(optimization.torch.amp, "GradScaler", scaler)

    return begin


def test_an_overflow_lowers_the_scale_and_moves_nothing(start, half, tmp_path, scale):
    scale(2.0**60)
    backbone = half("fp16")
    models = (backbone.student_parameters, backbone.target_parameters, backbone.critic_parameters)
    before = [p.clone() for model in models for p in model().values()]
    start(tmp_path, backbone=backbone, precision="fp16", max_steps=3)
    parts, state = final(tmp_path)
    assert (state["scaler"]["scale"], state["scaler"]["_growth_tracker"]) == (2.0**57, 0)
    assert all(map(torch.equal, before, [p for model in models for p in model().values()]))
    assert parts["student_optimizer"] == {}
    assert [record["step"] for record in metrics(tmp_path)] == [1, 2, 3]
    assert all("student_gradient_norm" not in record for record in metrics(tmp_path))


def test_training_goes_on_where_the_overflow_ends_and_resumes_bit_for_bit(start, half, tmp_path, scale):
    scale(2.0**30)
    for name, stops in (("whole", [10]), ("twice", [6, 10])):
        for max_steps in stops:
            settings = {"precision": "fp16", "max_steps": max_steps, "adversarial_weight": 0.0}
            settings |= {"solver": "ddim", "eta": 0.0, "checkpoint_every": 6, "sample_every": 1000}
            start(tmp_path / name, backbone=half("fp16"), **settings)
    good = ["student_gradient_norm" in record for record in metrics(tmp_path / "whole")]
    assert {True, False} == set(good[:6]) == set(good[6:]), "overflows and steps on both sides of the stop"
    assert final(tmp_path / "whole")[1]["scaler"]["scale"] == 2.0 ** (30 - good.count(False))
    assert_same_run(tmp_path / "whole", tmp_path / "twice")


def infinite(distillation, batch, draws, engine, x_m):
    """A step whose gradients overflow at any scale."""
    loss = engine.scale(torch.tensor(1.0))
    for parameter in distillation.backbone.student_parameters().values():
        parameter.grad = torch.full_like(parameter, math.inf)
    return {"consistency": loss / loss, "moments": torch.ones(4, 5)}


@pytest.mark.parametrize(("precision", "steps"), [("fp16", 16), ("bf16", 0)])
def test_a_gradient_that_overflows_at_scale_one_stops_the_run(start, half, tmp_path, monkeypatch, precision, steps):
    monkeypatch.setattr(Distillation, "step", infinite)
    with pytest.raises(FloatingPointError, match=f"step {steps + 1}: student_gradient_norm = inf"):
        start(
            tmp_path,
            backbone=half(precision),
            precision=precision,
            adversarial_weight=0.0,
            max_steps=40,
            checkpoint_every=1,
        )
    assert len(metrics(tmp_path)) == steps


def test_a_loss_that_is_not_finite_stops_the_run_at_any_scale(start, half, tmp_path, monkeypatch):
    def poisoned(*parts):
        return infinite(*parts) | {"consistency": torch.tensor(math.nan)}

    monkeypatch.setattr(Distillation, "step", poisoned)
    with pytest.raises(FloatingPointError, match="step 1: consistency = nan"):
        start(tmp_path, backbone=half("fp16"), precision="fp16", adversarial_weight=0.0, log_every=100)


# --- optimizers ----------------------------------------------------------------------------------------------


def test_the_8_bit_optimizer_says_what_it_needs(monkeypatch):
    assert isinstance(optimizer_class("adamw")([nn.Parameter(torch.zeros(1))]), torch.optim.AdamW)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"adamw8bit needs bitsandbytes \(.*\); pip install bitsandbytes") as caught:
        optimizer_class("adamw8bit")
    assert "\n" not in str(caught.value)
