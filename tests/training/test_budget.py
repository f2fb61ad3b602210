"""What `--dry-run` says of a run, against the run: parts, calls, and what a step holds, each measured in a real one."""

import contextlib
import dataclasses
import gc
import math

import pytest
import torch
from tests.training.runs import InMemory
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed._tools.mem_tracker import MemTracker
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from scott.data.batch import Batch
from scott.diffusion import DiscreteSchedule
from scott.errors import UserError
from scott.mini.embedded import TEACHER
from scott.teachers import load_backbone
from scott.teachers.skeleton import skeleton
from scott.training.budget import BLOCK, SMALL, budget_of, optimizer_bytes
from scott.training.config import LCM_SETTINGS, PROMPTS, DistillConfig
from scott.training.counting import storage_bytes
from scott.training.draws import Draws
from scott.training.meta_device import Cost
from scott.training.meta_step import drawing_peak, encoding_peak, step_cost
from scott.training.step import Distillation, Engine
from scott.training.trainer import Hooks, distill

SIZE = 4
GPU_ATTENTION = "_scaled_dot_product_efficient_attention"


@pytest.fixture
def make_bones(teacher_folders, tmp_path):
    """`make_bones(family, **settings)`: a config, and the models it asks for without weights."""

    def make(family, **settings):
        small = {"batch_size": SIZE, "lora_rank": 4, "critic_rank": 4, "max_steps": 1, "tracker": "none"}
        config = DistillConfig(**{"teacher": family, "data": "random", "out": tmp_path / "run", **small, **settings})
        return config, equipped(skeleton(folder_of(family, teacher_folders), config.dtype), config)

    return make


@pytest.fixture
def make(make_bones, teacher_folders):
    """`make(family, **settings)`: a config, and the models it asks for twice, with weights and without."""

    def both(family, **settings):
        config, bones = make_bones(family, **settings)
        return config, equipped(load_backbone(folder_of(family, teacher_folders), config.dtype), config), bones

    return both


def folder_of(family, teacher_folders):
    return TEACHER if family == "mini" else teacher_folders[family]


def equipped(backbone, config):
    backbone.add_student(config.train, rank=config.lora_rank, alpha=config.alpha)
    if config.has_critic:
        backbone.add_critic(config.critic_rank, config.critic)
    if config.gradient_checkpointing:
        backbone.checkpoint_activations()
    return backbone


def samples(backbone):
    shape = (SIZE, *backbone.latent_shape)
    cond = {name: torch.randn(SIZE, *value.shape[1:]) for name, value in backbone.unconditional().items()}
    return Batch(torch.randn(shape), torch.rand(shape), cond)


def given(backbone):
    """A batch, and the condition that guidance pushes away from."""
    return samples(backbone), backbone.unconditional()


def step(backbone, config, made=None):
    """A step of the real thing; all it is given is made here."""
    batch, uncond = made or given(backbone)
    grid, solver = config.make_grid(backbone.schedule), config.make_solver(backbone.schedule)
    shape = torch.Size((SIZE, *backbone.latent_shape))
    draws = Draws.make(shape, grid, config, torch.Generator().manual_seed(0))
    apart = contextlib.nullcontext if config.adversarial_share else None

    def critic(x0, t, cond):
        """Its input is no leaf: torch's counter puts hooks on modules' inputs, which `autograd.grad` refuses."""
        return backbone.critic(x0.view_as(x0), t, cond)

    distillation = Distillation(backbone, config, solver, grid, uncond)
    distillation.step(batch, draws, Engine(critic=critic, apart=apart))


def held(module):
    return [*module.parameters(), *module.buffers()]


# --- resident parts ----------------------------------------------------------------------------------------------


def measured(backbone, config):
    """Bytes by part while a run of one step is on, from what is alive in it."""
    found = {}

    def measure(done, terms):
        trained = {id(p) for p in [*backbone.student_parameters().values(), *backbone.critic_parameters().values()]}
        optimizers = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.optim.Optimizer)]
        states = [
            value
            for optimizer in optimizers
            for parameter, state in optimizer.state.items()
            if id(parameter) in trained
            for value in state.values()
        ]
        found["optimizers"] = storage_bytes(states)

    distill(backbone, InMemory(samples(backbone)), config, Hooks(progress=measure))
    adapted = {p for parts in (backbone.student_parameters(), backbone.target_parameters()) for p in parts.values()}
    adapted |= set(backbone.critic_parameters().values())
    base = [tensor for tensor in held(backbone.network) if tensor not in adapted]
    encoders = [part for name, part in backbone.pipeline.components.items() if name.startswith("text_encoder")]
    return found | {
        "frozen network": storage_bytes(base),
        "VAE": storage_bytes(held(backbone.vae)),
        "student": storage_bytes(models(backbone, "student")),
        "EMA target": storage_bytes(models(backbone, "target")),
        "critic": storage_bytes([*models(backbone, "critic"), *backbone.critic_model.heads.parameters()]),
        "text encoders": storage_bytes(tensor for part in encoders for tensor in held(part)),
    }


def models(backbone, name):
    return held(backbone.copies[name]) if name in backbone.copies else backbone.adapters.parameters(name).values()


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("mini", {}),
        ("mini", {"train": "full"}),
        ("sdxl", {"precision": "bf16"}),
        ("sdxl", {"train": "full"}),
        ("sd3", {"critic": "full"}),
    ],
    ids=str,
)
def test_resident_parts_are_what_a_run_holds(make, family, settings):
    """Each within 1 %, where 10 % was asked for; optimizers differ by a step count a tensor."""
    config, backbone, bones = make(family, **settings)
    budget = budget_of(bones, config)
    budgeted = budget.training | budget.preparing
    real = measured(backbone, config)
    assert real.keys() == budgeted.keys() - {"gradients", "activations", "encoding"}
    for part, size in real.items():
        assert budgeted[part] == pytest.approx(size, rel=0.05 if part == "optimizers" else 0.01), part
    assert budgeted["gradients"] == storage_bytes(
        [*backbone.student_parameters().values(), *backbone.critic_parameters().values()]
    )
    resident = sum(size for part, size in real.items() if part in budget.training) + budgeted["gradients"]
    assert budget.total - budgeted["activations"] == pytest.approx(resident, rel=0.02)
    network = dict(backbone.network.named_parameters())
    assert budget.parameters == sum(p.numel() for name, p in network.items() if ".lora_" not in name)
    assert budget.student == sum(p.numel() for p in backbone.student_parameters().values())
    assert budget.critic == sum(p.numel() for p in backbone.critic_parameters().values())


def test_eight_bit_optimizers_keep_two_bytes_and_a_scale_a_block():
    large, small = torch.empty(64, SMALL, device="meta"), torch.empty(SMALL - 1, device="meta")
    assert optimizer_bytes([large], "adamw") == 8 * large.numel()
    assert optimizer_bytes([large], "adamw8bit") == large.numel() * (2 + 2 * 4 / BLOCK)
    assert optimizer_bytes([small], "adamw8bit") == optimizer_bytes([small], "adamw")


# --- network calls -----------------------------------------------------------------------------------------------


SCOTT = {"teacher": (3, 0, 8), "target": (1, 0, 4), "student": (1, 1, 4)}
LORA = {"critic encoder": (2, 1, 4), "critic decoder": (2, 3, 4)}
TWICE = {"critic_fakes": "drawn", "critic_r1": 0.1}


@pytest.mark.parametrize(
    ("family", "settings", "expected"),
    [
        ("sd3", {}, SCOTT | LORA),
        ("sd3", {"gradient_checkpointing": True, "shard": "full"}, SCOTT | LORA | {"critic encoder": (2, 2, 4)}),
        ("sd1", {"low_memory": True}, SCOTT | LORA | {"teacher": (6, 0, 4)}),
        ("sd1", {"guidance_min": 1.0, "guidance_max": 1.0}, SCOTT | LORA | {"teacher": (3, 0, 4)}),
        ("sd1", {"critic": "none"}, SCOTT),
        ("sd3", {"critic": "full"}, SCOTT | {"critic": (2, 3, 4)}),
        ("sd1", LCM_SETTINGS, SCOTT | {"teacher": (1, 0, 8)}),
        ("sd1", {"adversarial_share": 0.3}, SCOTT | LORA | {"student": (2, 2, 4)}),
        # of 2 rows one goes on from a first step
        ("sd1", TWICE, SCOTT | {"critic encoder": (3, 1, 2), "critic decoder": (3, 4, 2)}),
        ("sd1", TWICE | {"critic": "heads", "critic_input": "clean"}, SCOTT | {"critic encoder": (3, 1, 2)}),
    ],
    ids=["sd3", "split", "low memory", "no guidance", "no critic", "full critic", "lcm", "share", "drawn", "heads"],
)
def test_calls_of_a_step(make_bones, family, settings, expected):
    """Forward passes, backward passes and samples; a fake's logits go back once for each of the two updates."""
    config, bones = make_bones(family, **settings)
    rows = [dataclasses.astuple(calls) for calls in budget_of(bones, config).calls]
    drawn = [("student", 1, 0, 1), ("student", 1, 1, 2)] if config.draws_fakes else []
    assert sorted(rows) == sorted([*((model, *row) for model, row in expected.items()), *drawn])


# --- what a step holds besides -----------------------------------------------------------------------------------


def real_step(backbone, config):
    """(bytes at the highest, bytes that autograd saves beside weights) of one step on the CPU."""
    networks = [backbone.network, *backbone.copies.values(), *backbone.heads]
    ours = {tensor.untyped_storage()._cdata for network in networks for tensor in held(network)}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in ours:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    with Cost() as cost, saved_tensors_hooks(pack, lambda tensor: tensor):
        step(backbone, config)
    return cost.peak, sum(saved.values())


@pytest.mark.parametrize("family", ["mini", "sdxl", "pixart", "sd3"])
def test_a_step_holds_what_was_said(make, family):
    """In fp32 the CPU runs the operations that the meta device did, so the peaks are equal up to small inputs.

    Activations are from 1 to 1.4 times what autograd saves: inputs and what is being computed come on top.
    """
    config, backbone, bones = make(family)
    budget = budget_of(bones, config)
    activations, gradients = budget.training["activations"], budget.training["gradients"]
    peak, saved = real_step(backbone, config)
    assert activations + gradients == pytest.approx(peak, rel=0.02)
    assert saved <= activations <= 1.4 * saved


@pytest.mark.parametrize(
    ("family", "settings", "tolerance"),
    [
        ("sdxl", {"gradient_checkpointing": True}, 0.02),
        ("sd3", {"gradient_checkpointing": True}, 0.02),
        ("pixart", {"precision": "bf16"}, 0.02),
        ("sd1", {"train": "full"}, 0.02),
        ("sd1", {"critic": "full"}, 0.02),
        ("pixart", {"critic": "unconditional"}, 0.02),
        # autocast normalises in fp32 on a GPU, which is what is counted, and in bf16 on the CPU
        ("sd3", {"train": "full", "precision": "bf16", "gradient_checkpointing": True}, 0.25),
    ],
    ids=str,
)
def test_a_step_of_other_settings_holds_what_was_said(make, family, settings, tolerance):
    config, backbone, bones = make(family, **settings)
    assert step_cost(bones, config, bones.unconditional())[0].peak == pytest.approx(
        real_step(backbone, config)[0], rel=tolerance
    )


@pytest.mark.parametrize("train", ["lora", "full"])
def test_a_later_pass_holds_the_gradients_of_those_before(make, train):
    config, backbone, bones = make("sd1", train=train)
    with Cost() as cost:
        step(backbone, config)
        first = cost.take_peak()
        step(backbone, config)
    of_two = budget_of(bones, dataclasses.replace(config, batch_size=2 * config.batch_size, gradient_accumulation=2))
    said = of_two.training["activations"] + of_two.training["gradients"]
    assert said == pytest.approx(cost.peak, rel=0.02)
    assert said > 1.02 * first or train == "lora"


def test_activations_grow_with_the_batch_and_shrink_with_checkpoints(make_bones):
    def activations(**settings):
        config, bones = make_bones("sd1", critic="none", **settings)
        return budget_of(bones, config).training["activations"]

    few, many = activations(batch_size=4), activations(batch_size=64)
    assert many == pytest.approx(16 * few, rel=0.1)
    assert activations(batch_size=64, gradient_checkpointing=True) < many / 2


def test_a_walk_of_two_calls_one_after_the_other_holds_half(make_bones):
    config, bones = make_bones("sd1")
    uncond = bones.unconditional()
    cost, apart = (step_cost(bones, dataclasses.replace(config, low_memory=low), uncond)[0] for low in (False, True))
    assert cost.walk_apart == apart.walk < 0.6 * cost.walk
    assert (cost.flops, cost.update) == (apart.flops, apart.update)


@pytest.mark.parametrize("family", ["mini", "sdxl", "sd3", "qwen-image"])
def test_pictures_and_samples_hold_what_was_said(make, family):
    """While they are encoded before a run, and drawn in it. A GPU's attention holds a logarithm a query besides, which
    is some percent of networks as small as these."""
    config, backbone, bones = make(family)
    for one in (backbone, bones):
        one.resize(min(one.resolution, 128))  # of later families' pipelines it is 1024
    pixels = torch.rand(SIZE, 3, backbone.resolution, backbone.resolution)
    with torch.no_grad(), Cost() as cost:
        backbone.encode_images(pixels)
    assert encoding_peak(bones, SIZE) == pytest.approx(cost.peak, rel=0.02)

    x, t = torch.randn(PROMPTS, *backbone.latent_shape), config.make_grid(backbone.schedule).times[-1:].expand(PROMPTS)
    uncond = backbone.unconditional()
    cond = {name: value.repeat(PROMPTS, *[1] * (value.ndim - 1)) for name, value in uncond.items()}
    with torch.no_grad(), Cost() as cost:
        backbone.guided_teacher(uncond, config.drawn_guidance)(x, t, cond)
        calls = cost.take_peak()
        backbone.decode(x)
    expected = max(calls, cost.peak + storage_bytes(held(backbone.vae)))
    budget = budget_of(bones, config)
    assert drawing_peak(bones, config, bones.unconditional()) == pytest.approx(expected, rel=0.08)
    resident = budget.total - budget.training["gradients"] - budget.training["activations"]
    assert budget.drawing == pytest.approx(resident + expected, rel=0.08)
    assert budget.peak == max(budget.total, budget.drawing, budget.start)


def test_the_live_bytes_of_a_known_computation():
    kept = torch.zeros(1000)
    with Cost() as live:
        first = kept + 1
        assert live.live == 4000
        view = first.view(10, 100)
        del first
        assert live.live == 4000, "a view holds its storage"
        second = view * 2
        second.add_(1)
        kept.mul_(2)
        assert (live.live, live.peak) == (8000, 8000)
        del view, second
    assert (live.live, live.peak) == (0, 8000)


def test_nothing_of_torch_is_changed_afterwards(make_bones):
    config, bones = make_bones("sd1")
    query = torch.empty(1, 2, 8, 8, device="meta", requires_grad=True)
    before = type(torch.nn.functional.scaled_dot_product_attention(query, query, query).grad_fn)
    step_cost(bones, dataclasses.replace(config, batch_size=1), bones.unconditional())
    assert type(torch.nn.functional.scaled_dot_product_attention(query, query, query).grad_fn) is before


# --- several processes -------------------------------------------------------------------------------------------


def test_a_process_of_several_has_its_part_of_the_batch(make_bones):
    config, bones = make_bones("sdxl")
    _, again = make_bones("sdxl")
    alone = budget_of(bones, dataclasses.replace(config, batch_size=SIZE // 2))
    of_two = budget_of(again, config, 2)
    assert of_two.calls == alone.calls
    assert of_two.exchanged == alone.training["gradients"]
    assert alone.exchanged == 0
    same = alone.training.keys() - {"gradients", "activations"}
    assert {part: of_two.training[part] for part in same} == {part: alone.training[part] for part in same}
    in_buckets = of_two.training["activations"] - alone.training["activations"]
    assert 0 < in_buckets <= alone.training["gradients"]
    with pytest.raises(UserError, match="got batch size 4; expected a multiple of 3"):
        budget_of(again, config, 3)


def test_passes_multiply_calls_and_what_is_split_is_held_in_parts(make_bones):
    config, bones = make_bones("sd3", gradient_accumulation=2, shard="full")
    _, again = make_bones("sd3")
    split = budget_of(bones, config, 2)
    whole = dataclasses.replace(config, shard="none")
    in_passes = budget_of(again, dataclasses.replace(whole, batch_size=SIZE // 2))
    plain = budget_of(again, dataclasses.replace(whole, batch_size=SIZE // 4, gradient_accumulation=1))
    assert [c.forward for c in split.calls] == [2 * c.forward for c in plain.calls]
    assert [c.samples for c in split.calls] == [c.samples for c in plain.calls]
    assert split.training["activations"] == in_passes.training["activations"] > plain.training["activations"]
    for part in plain.training.keys() - {"activations"}:
        assert split.training[part] == plain.training[part] // 2, part
    network = bones.network
    sizes = [storage_bytes(block.parameters()) for block in network.transformer_blocks]
    adapters = [storage_bytes(p for p in b.parameters() if p.requires_grad) for b in network.transformer_blocks]
    whole = storage_bytes(network.parameters()) - sum(sizes) + 2 * max(sizes) + max(adapters)
    assert split.training["gathered"] == whole > 0
    assert split.exchanged > 2 * plain.training["gradients"], "once a pass, and the weights (test_processes)"


def test_networks_are_split_within_a_machine(make_bones):
    """More than 8 processes are on machines of 8, which each hold all of it."""
    config, bones = make_bones("sd3", shard="full", batch_size=16)
    of_one, of_two = (budget_of(bones, config, processes) for processes in (8, 16))
    held = of_one.training.keys() - {"activations"}
    assert {part: of_two.training[part] for part in held} == {part: of_one.training[part] for part in held}


def test_gradients_of_the_passes_before_stay_beside_buckets(make_bones):
    """L_CD's, L_adv's and those that DDP averages: three of the student's, and two where there is one pass."""
    config, bones = make_bones("sd1", adversarial_share=0.3, critic_fakes="drawn", drawn_fraction=1.0)
    once, twice = (budget_of(bones, dataclasses.replace(config, gradient_accumulation=n), 2) for n in (1, 2))
    student = storage_bytes(bones.student_parameters().values())
    assert twice.training["gradients"] - once.training["gradients"] == student


# --- arithmetic --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("sd1", {}),
        ("sd3", {"train": "full"}),
        ("sdxl", LCM_SETTINGS),
        ("sd1", {"adversarial_share": 0.3}),
        ("sd1", {"adversarial_share": 0.3, "critic_fakes": "drawn"}),
    ],
    ids=["sd1", "sd3-full", "sdxl-lcm", "share", "share-drawn"],
)
def test_operations_are_those_of_a_real_step(make, family, settings):
    """By torch's own counter and its formulas of a GPU's fused attention for the CPU's, which has none."""
    config, backbone, bones = make(family, **settings)
    made = given(backbone)  # the text encoders are no part of a step
    fused, aten = "_scaled_dot_product_flash_attention_for_cpu", torch.ops.aten
    formulas = {
        getattr(aten, f"{fused}{end}"): flop_registry[getattr(aten, f"{GPU_ATTENTION}{end}")].__wrapped__
        for end in ("", "_backward")
    }
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter, sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        step(backbone, config, made)
    assert counter.get_flop_counts()["Global"].keys() > {*formulas}
    assert budget_of(bones, config).flops == counter.get_total_flops()


def test_steps_that_use_a_jump_again_make_no_walk_and_keep_its_end(make_bones):
    """A walk of six sub-steps over one of three is one more walk of three."""
    given = {"max_steps": 8, "train": "full", "adversarial_weight": 0.0}

    def planned(**settings):
        config, bones = make_bones("sd1", **given | settings)
        return budget_of(bones, config), math.prod(bones.latent_shape)

    (plain, size), (longer, _) = planned(), planned(substeps=6)
    assert plain.run_flops == 8 * plain.flops
    assert "kept jumps" not in plain.training
    reused, _ = planned(jump_reuse=4, jump_store=SIZE)  # steps 0 to 3 use one batch of jumps, 4 to 7 another
    assert reused.run_flops == 8 * plain.flops - 6 * (longer.flops - plain.flops)
    assert reused.training["kept jumps"] == 4 * SIZE * size == reused.total - plain.total


def test_steps_before_the_critics_start_are_those_of_a_run_without_one(make_bones):
    def planned(**settings):
        config, bones = make_bones("sd1", max_steps=8, **settings)
        return budget_of(bones, config)

    late, always, never = planned(critic_start=0.6), planned(), planned(adversarial_weight=0.0)
    assert late.flops == always.flops > never.flops
    assert late.run_flops == 5 * never.flops + 3 * always.flops


def test_norms_that_are_measured_now_and_then_cost_as_often(make_bones):
    """The student's second pass is in the steps that measure, and neither in the calls of a step nor in its flops."""

    def planned(**settings):
        config, bones = make_bones("sd1", max_steps=250, **settings)
        return budget_of(bones, config, processes=2)

    fixed, each = planned(), planned(adversarial_share=0.3)
    seldom = planned(adversarial_share=0.3, adversarial_share_every=10)
    assert each.flops > seldom.flops == fixed.flops
    assert (seldom.calls, seldom.exchanged) == (fixed.calls, fixed.exchanged) != (each.calls, each.exchanged)
    assert each.run_flops == 250 * each.flops
    assert seldom.run_flops == (100 + 15) * each.flops + 135 * fixed.flops
    assert seldom.training == each.training, "what a step that measures holds"
    early = planned(adversarial_share=0.3, adversarial_share_every=10, critic_start=0.2)
    alone = planned(adversarial_weight=0.0)
    assert early.run_flops == 50 * alone.flops + (100 + 10) * each.flops + 90 * fixed.flops


def test_torchs_own_trackers_do_not_take_this_step():
    """Why `meta_device` has one: where either passes, it can go."""
    frozen = torch.nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(RuntimeError, match="hook on a tensor that doesn't require gradient"), MemTracker():
        frozen(torch.ones(1, 2))
    with pytest.raises(DataDependentOutputException), FakeTensorMode():
        DiscreteSchedule.stable_diffusion().alpha(torch.tensor([5]))


def test_a_prepared_picture_is_as_large_as_its_tensors(make):
    config, backbone, bones = make("sdxl")
    batch = samples(backbone)
    tensors = [batch.mean, batch.std, *batch.cond.values()]
    assert budget_of(bones, config).sample_bytes == sum(2 * tensor[0].numel() for tensor in tensors)
