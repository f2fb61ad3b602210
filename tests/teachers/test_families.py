"""What holds of every family: the teacher is the stock pipeline, and the four models stand on one frozen network."""

import json
import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
)
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift
from tests.teachers.published import write_configs
from tests.teachers.stock_pipelines import assert_same_latents, draw, teacher_pipeline
from tests.tiny.flows import SHIFT

from scott.diffusion import JumpGrid
from scott.errors import UserError
from scott.export.pipeline import save_student
from scott.samplers import StudentSampler, TeacherSampler, trailing_times
from scott.teachers import load_backbone
from scott.teachers.pixart import PixArtBackbone
from scott.teachers.sd3 import SD3Backbone
from scott.teachers.skeleton import skeleton

TRAIN = ["lora", "full"]
PROMPT = "a cat"


def base_weights(backbone):
    """The frozen network's, the VAE's and the text encoders' parameters by name."""
    parts = {name: part for name, part in backbone.pipeline.components.items() if isinstance(part, torch.nn.Module)}
    named = {f"{part}.{name}": p for part, module in parts.items() for name, p in module.named_parameters()}
    return {name: p for name, p in named.items() if ".lora_" not in name}


# --- the teacher ---------------------------------------------------------------------------------------------


def test_the_teacher_sampler_is_the_stock_pipeline(make_backbone, family):
    """Guidance, what is pushed away from (zeros for SDXL), masks and pooled text, and all of the steps."""
    backbone = make_backbone(family=family)
    sigmas = {"sigmas": [1 - k / 4 for k in range(4)]} if family == "sd3" else {}
    expected = draw(teacher_pipeline(backbone), PROMPT, 4, 7.5, seed=3, **sigmas)
    ours = TeacherSampler(backbone, 4, 7.5).latents([PROMPT], 3)
    assert_same_latents(ours, expected, 2e-5)
    assert (ours - TeacherSampler(backbone, 4, 1.0).latents([PROMPT], 3)).abs().max() > 0.1 * ours.std()


@pytest.mark.parametrize("name", ["sd1", "sd2", "pixart"])
def test_the_teacher_by_another_solver_is_the_stock_pipeline_under_its_scheduler(make_backbone, name):
    backbone = make_backbone(family=name)
    pipeline = teacher_pipeline(backbone)
    options = {"algorithm_type": "dpmsolver++", "solver_order": 2, "final_sigmas_type": "zero"}
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, **options)
    expected = draw(pipeline, PROMPT, 6, 4.5, seed=3)
    ours = TeacherSampler(backbone, 6, 4.5, solver="dpmpp").latents([PROMPT], 3)
    assert_same_latents(ours, expected, 1e-4)
    assert (ours - TeacherSampler(backbone, 6, 4.5).latents([PROMPT], 3)).abs().max() > 1e-2 * ours.std()


def test_the_teacher_by_a_solver_with_noise_draws_what_its_seed_says(make_backbone):
    backbone = make_backbone(family="sd1")
    walks = [TeacherSampler(backbone, 4, 4.5, solver="er-sde").latents([PROMPT] * 2, seed) for seed in (3, 3, 4)]
    assert torch.equal(walks[0], walks[1])
    assert (walks[0] - walks[2]).abs().max() > 0.1 * walks[0].std()
    assert (walks[0] - TeacherSampler(backbone, 4, 4.5).latents([PROMPT] * 2, 3)).abs().max() > 0.1 * walks[0].std()


def test_the_teachers_times_are_those_of_a_stock_scheduler(make_backbone):
    """Halves are rounded as numpy rounds them: 16 steps stop at 937 and not at 936."""
    backbone = make_backbone(family="sd1")
    stock = DDIMScheduler(timestep_spacing="trailing")
    for steps in (1, 2, 3, 4, 7, 16, 25, 32, 48, 50, 64, 80, 96, 1000):
        stock.set_timesteps(steps)
        *times, end = trailing_times(backbone, steps, 2)
        assert [time.tolist() for time in times] == [[time, time] for time in stock.timesteps.tolist()]
        assert end.tolist() == [backbone.schedule.t_data] * 2


def test_sdxl_pushes_away_from_the_empty_prompt_where_its_pipeline_does(make_backbone):
    backbone = make_backbone(family="sdxl")
    zeros = TeacherSampler(backbone, 2, 7.5).latents([PROMPT], 3)
    backbone.pipeline.register_to_config(force_zeros_for_empty_prompt=False)
    ours = TeacherSampler(backbone, 2, 7.5).latents([PROMPT], 3)
    assert_same_latents(ours, draw(teacher_pipeline(backbone), PROMPT, 2, 7.5, seed=3), 2e-5)
    assert (ours - zeros).abs().max() > 1e-2 * ours.std()


def test_pixart_at_1024_px_is_fed_the_size(make_backbone):
    pipeline = make_backbone(family="pixart").pipeline
    torch.manual_seed(0)
    wide = {"sample_size": 128, "patch_size": 8, "num_attention_heads": 3, "attention_head_dim": 16, "num_layers": 2}
    config = {**pipeline.transformer.config, **wide, "cross_attention_dim": 48, "use_additional_conditions": True}
    pipeline.register_modules(transformer=PixArtTransformer2DModel.from_config(config).eval())
    backbone = PixArtBackbone(pipeline)
    assert backbone.resolution == 1024
    assert_same_latents(
        TeacherSampler(backbone, 1, 4.5).latents([PROMPT], 3),
        draw(teacher_pipeline(backbone), PROMPT, 1, 4.5, seed=3),
        2e-5,
    )


def test_sd3_shifted_by_size_counts_its_networks_tokens(make_backbone, tmp_path):
    """Patches of two places a side, as the stock pipeline counts them: 4,096 at 1024 px."""
    pipeline = make_backbone(family="sd3").pipeline
    torch.manual_seed(0)
    network = SD3Transformer2DModel.from_config({**pipeline.transformer.config, "patch_size": 2}).eval()
    pipeline.register_modules(transformer=network, scheduler=FlowMatchEulerDiscreteScheduler(**SHIFT))
    ours = TeacherSampler(SD3Backbone(pipeline), 4, 7.5).latents([PROMPT], 3)
    assert_same_latents(ours, draw(pipeline, PROMPT, 4, 7.5, seed=3, sigmas=[1 - k / 4 for k in range(4)]), 2e-5)
    file = write_configs("sd3", tmp_path) / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | SHIFT))
    published = skeleton(tmp_path)
    assert published.resolution == 1024
    assert published.schedule.shift == pytest.approx(math.exp(calculate_shift(4096, max_shift=1.15)))


def test_prompts_are_encoded_as_in_the_stock_pipeline(make_backbone, family):
    backbone = make_backbone(family=family)
    pipeline = backbone.pipeline
    lengths = {"pixart": {"max_sequence_length": 120}, "sd3": {"max_sequence_length": 256}}.get(family, {})
    required = {"prompt_2": None, "prompt_3": None} if family == "sd3" else {}
    for prompt in (PROMPT, "", "zebra " * 2):
        stock = pipeline.encode_prompt(
            prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False, **required, **lengths
        )
        cond = backbone.encode_prompts([prompt])
        assert torch.equal(cond["text"], stock[0])
        if family in ("sdxl", "sd3"):
            assert torch.equal(cond["pooled"], stock[2])
        if family == "pixart":
            assert torch.equal(cond["mask"], stock[1])


def test_the_longest_prompt_fits_and_a_longer_one_is_an_error_or_cut(make_backbone, family):
    backbone = make_backbone(family=family)
    # without CLIP's two marks or T5's one; the tiny T5 spends one more on the leading space
    word, limit, more = {"pixart": ("b", 118, 1), "sd3": ("b", 254, 1)}.get(family, ("b ", 14, 0))
    taken = limit + more
    cond = backbone.encode_prompts([word * limit])
    with pytest.raises(UserError, match=f"got a prompt of {taken + 1} tokens, expected at most {taken}"):
        backbone.encode_prompts(["fine", word * (limit + 1)])
    cut = backbone.encode_prompts([word * (limit + 9)], truncate=True)
    assert all(torch.equal(cut[name], cond[name]) for name in cond)


def test_decode_and_encode_are_the_vae_scaled_and_in_unit_range(make_backbone, family):
    backbone = make_backbone(family=family)
    side = backbone.resolution
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    mean, std = backbone.encode_images(pixels)
    assert mean.shape[1:] == backbone.latent_shape
    posterior = backbone.vae.encode(2 * pixels - 1).latent_dist
    scale, shift = backbone.vae.config.scaling_factor, backbone.vae.config.shift_factor or 0.0
    torch.testing.assert_close(mean / scale + shift, posterior.mean)
    torch.testing.assert_close(std / scale, posterior.std)
    stock = backbone.vae.decode(mean / scale + shift).sample
    expected = backbone.pipeline.image_processor.postprocess(stock, output_type="pt")
    torch.testing.assert_close(backbone.decode(mean), expected)


# --- the models on it ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", TRAIN)
def test_student_target_and_critic_start_as_the_teacher(make_backbone, inputs, family, train):
    backbone, plain = make_backbone(train, critic_rank=4, family=family), make_backbone(family=family)
    student, target = backbone.student_parameters(), backbone.target_parameters()
    assert student.keys() == target.keys()
    assert all(torch.equal(student[name], target[name]) and student[name] is not target[name] for name in student)
    x, t, cond = inputs(backbone)
    with torch.no_grad():
        expected = plain.teacher(x, t, cond)
        for model in (backbone.teacher, backbone.student, backbone.target):
            assert torch.equal(model(x, t, cond), expected)
        assert torch.equal(backbone.output("critic", x, t, cond), plain.output(None, x, t, cond))
        logits = backbone.critic(x, t, cond)
    assert len(logits) == 2
    assert torch.equal(logits, torch.zeros_like(logits))


@pytest.mark.parametrize("train", TRAIN)
def test_an_update_moves_its_own_model_only(make_backbone, inputs, family, train):
    backbone = make_backbone(train, critic_rank=4, family=family)
    x, t, cond = inputs(backbone)
    before = {name: p.clone() for name, p in base_weights(backbone).items()}
    with torch.no_grad():
        teacher = backbone.teacher(x, t, cond)

    student = torch.optim.AdamW(backbone.student_parameters().values(), lr=1e-3)
    backbone.student(x, t, cond).square().mean().backward()
    student.step()
    critic = torch.optim.AdamW(backbone.critic_parameters().values(), lr=1e-3)
    for _ in range(2):  # the head starts at zero, so the first step moves the head alone
        critic.zero_grad()
        backbone.critic(x, t, cond).square().add(backbone.critic(x, t, cond)).sum().backward()
        critic.step()

    with torch.no_grad():
        assert torch.equal(backbone.teacher(x, t, cond), teacher)
        assert torch.equal(backbone.target(x, t, cond), teacher)
        assert (backbone.student(x, t, cond) - teacher).abs().max() > 1e-4
        assert backbone.critic(x, t, cond).abs().max() > 1e-4
    after = base_weights(backbone)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("train", "critic"), [("lora", "full"), ("full", "lora")])
def test_each_optimizer_owns_its_own_parameters_and_the_base_none(make_backbone, family, train, critic):
    backbone = make_backbone(train, critic_rank=4, family=family, critic=critic)
    models = [backbone.student_parameters(), backbone.target_parameters(), backbone.critic_parameters()]
    ids = [{id(p) for p in model.values()} for model in models]
    assert all(ids)
    assert len(set.union(*ids)) == sum(map(len, ids))
    base = base_weights(backbone).values()
    assert not any(p.requires_grad for p in base)
    assert not {id(p) for p in base} & set.union(*ids)
    assert all(p.requires_grad for model in (models[0], models[2]) for p in model.values())
    # nothing that is trained is left out
    trained = [backbone.network, *backbone.copies.values(), backbone.critic_model]
    assert {id(p) for module in trained for p in module.parameters() if p.requires_grad} <= set.union(*ids)


@pytest.mark.parametrize("train", TRAIN)
def test_gradients_reach_their_model_and_never_the_base(make_backbone, inputs, perturb, family, train):
    backbone = make_backbone(train, critic_rank=4, family=family)
    x, t, cond = inputs(backbone)
    perturb(backbone.critic_parameters())
    perturb(backbone.student_parameters())
    backbone.critic(backbone.student(x, t, cond), t, cond).sum().backward()
    idle = idle_parameters(backbone)
    for model in (backbone.student_parameters(), backbone.critic_parameters()):
        assert all(p.grad is not None for p in model.values())
        still = {name for name, p in model.items() if not (p.grad != 0).any()}
        assert not {name for name in still if not any(part in name for part in idle)}, still
    assert all(p.grad is None for p in backbone.target_parameters().values())
    assert all(p.grad is None for p in base_weights(backbone).values())


def idle_parameters(backbone):
    """Parts of a network that its output does not depend on."""
    if backbone.part == "unet":
        return ()
    last = f"transformer_blocks.{len(backbone.network.transformer_blocks) - 1}"
    # SD3's last block drops its text, which still asks; a key's bias adds one number to a row of the softmax;
    # the variance's half of PixArt's output is dropped
    return (f"{last}.attn.add_q_proj", "to_k.bias", "add_k_proj.bias")


def test_the_critic_adapts_the_decoder_only(make_backbone, inputs, perturb, family):
    backbone = make_backbone("lora", critic_rank=4, family=family)
    x, t, cond = inputs(backbone)
    lora = [name for name in backbone.critic_parameters() if not name.startswith("heads.")]
    assert all(name.startswith(backbone.decoder_prefixes) for name in lora)
    first = backbone.decoder_prefixes[0].removesuffix(".")
    seen = []
    decoder = backbone.network.get_submodule(first if backbone.part == "transformer" else f"{first}.0")
    decoder.register_forward_pre_hook(
        lambda module, args, given: seen.append([*args, *given.values()]), with_kwargs=True
    )
    backbone.critic(x, t, cond)
    perturb(backbone.critic_parameters())
    backbone.critic(x, t, cond)
    assert all(map(torch.equal, *([v for v in fed if isinstance(v, torch.Tensor)] for fed in seen)))


def test_the_critic_is_given_the_time_and_the_text(make_backbone, inputs, perturb, family):
    backbone = make_backbone(critic_rank=4, family=family)
    x, t, cond = inputs(backbone)
    perturb(backbone.critic_parameters())
    with torch.no_grad():
        logits = backbone.critic(x, t, cond)
        assert not torch.allclose(logits, backbone.critic(x, t.flip(0), cond))
        other = {name: value.flip(0) for name, value in cond.items()}
        assert not torch.allclose(logits, backbone.critic(x, t, other))


def test_an_unknown_train_or_critic_is_an_error_with_the_choices(make_backbone, family):
    with pytest.raises(UserError, match="'lora', 'full'"):
        make_backbone("ful", family=family)
    with pytest.raises(UserError, match="'lora', 'full', 'unconditional'"):
        make_backbone(critic_rank=4, critic="lor", family=family)


# --- the student as a stock pipeline -------------------------------------------------------------------------


@pytest.mark.parametrize("train", TRAIN)
def test_the_saved_student_is_the_target_in_a_stock_pipeline(make_backbone, inputs, perturb, tmp_path, family, train):
    backbone = make_backbone(train, critic_rank=2, family=family)
    for seed, model in enumerate((backbone.student_parameters(), backbone.target_parameters())):
        perturb(model, seed)
    perturb(backbone.critic_parameters(), 2)
    x, t, cond = inputs(backbone)

    def answers():
        with torch.no_grad():
            models = (backbone.teacher, backbone.student, backbone.target)
            return [*(model(x, t, cond) for model in models), backbone.critic(x, t, cond)]

    before = answers()
    jump, substeps = (24, 3) if train == "lora" else (20, 1)
    grid = JumpGrid(backbone.schedule, jump=jump, substeps=substeps)
    save_student(backbone, tmp_path, grid)
    assert all(map(torch.equal, answers(), before))
    assert all(p.requires_grad for p in backbone.student_parameters().values())

    stock = type(backbone.pipeline).from_pretrained(tmp_path)
    reloaded = load_backbone(tmp_path)
    assert reloaded.original_inference_steps == (125 if family == "sd3" else grid.original_inference_steps)
    # a flow's own times depend on its shift, which the few-step scheduler has changed
    spacing = reloaded.schedule.training_steps // reloaded.original_inference_steps
    again = JumpGrid(reloaded.schedule, jump=spacing, substeps=1)
    omega = 4.0 if train == "full" and backbone.takes_guidance else 1.0
    for steps in (1, 4):
        expected = draw(stock, PROMPT, steps, omega, seed=5)
        ours = StudentSampler(backbone, backbone.target, grid, steps, omega).latents([PROMPT], 5)
        assert_same_latents(ours, expected)
        read = StudentSampler(reloaded, reloaded.teacher, again, steps, omega).latents([PROMPT], 5)
        assert_same_latents(read, expected)
