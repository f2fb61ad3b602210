"""The families of 2024 and later: the teacher is the stock pipeline, and so is what is made of its student."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline
from tests.teachers.stock_pipelines import assert_same_latents
from tests.tiny.families import FLOWS

from scott import evaluation
from scott.commands.distill import add_models
from scott.commands.distill import config_of as config_of_teacher
from scott.data.batch import Batch
from scott.errors import UserError
from scott.evaluation.stock import PipelineSampler
from scott.export.lora import read_lora, save_lora
from scott.export.pipeline import read_student, save_student
from scott.export.trained import Trained
from scott.recipes import RECIPES
from scott.samplers import TeacherSampler
from scott.teachers import load_backbone
from scott.teachers.skeleton import skeleton
from scott.training.budget import budget_of
from scott.training.draws import Draws
from scott.training.step import Distillation

SIDE = 64
"""In pixels: what pipelines draw at by default is too many for a test."""
PROMPT = "a cat"
OMEGA = 4.0
STEPS = 3
GUIDANCE = {
    "QwenImagePipeline": {"true_cfg_scale": OMEGA, "negative_prompt": "", "guidance_scale": None},
    "ZImagePipeline": {"guidance_scale": OMEGA - 1},
    "SanaPipeline": {"guidance_scale": OMEGA, "use_resolution_binning": False},
}
"""How a pipeline is asked for OMEGA, if it is not by `guidance_scale` alone."""


@pytest.fixture(params=FLOWS)
def family(request):
    return request.param


@pytest.fixture
def backbone(make_backbone, family):
    made = make_backbone(family=family)
    made.resize(SIDE)
    return made


def stock(backbone, **options):
    """What the stock pipeline makes of the noise of seed 3, at the σ that scott's teacher stops at."""
    pipeline, call = backbone.pipeline, {"generator": torch.manual_seed(3), "height": SIDE, "width": SIDE}
    pipeline.set_progress_bar_config(disable=True)
    call |= {"guidance_scale": OMEGA, "output_type": "latent", "num_inference_steps": STEPS}
    call |= GUIDANCE.get(type(pipeline).__name__, {})
    if isinstance(pipeline.scheduler, DPMSolverMultistepScheduler):  # the ODE solver that scott's teacher sampler is
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=pipeline.scheduler.config.flow_shift)
    if isinstance(pipeline, Flux2KleinPipeline):  # which shifts few steps more
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=backbone.schedule.shift)
    if not backbone.shifts_evenly:
        call["sigmas"] = [1 - k / STEPS for k in range(STEPS)]
    return pipeline(prompt=PROMPT, **call | options).images


def test_the_teacher_sampler_is_the_stock_pipeline(backbone):
    """Latents, time, text and guidance, and the shift that goes with the size."""
    sampler, rows = TeacherSampler(backbone, STEPS, OMEGA), []
    handle = backbone.network.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    ours = sampler.latents([PROMPT], 3)
    handle.remove()
    assert sum(rows) == sampler.network_calls == STEPS * backbone.teacher_calls
    assert_same_latents(ours, backbone.from_pipeline(stock(backbone)), 2e-5)
    assert (ours - sampler.latents(["dog"], 3)).abs().max() > 1e-3
    assert (ours - TeacherSampler(backbone, STEPS, 1.0).latents([PROMPT], 3)).abs().max() > 1e-3


@pytest.mark.parametrize(("kind", "error"), [("int8", 0.04), ("nf4", 0.2)])
def test_a_quantised_teacher_answers_nearly_as_the_whole_one(backbone, family, teacher_folders, kind, error):
    quantised = load_backbone(teacher_folders[family], quantized=kind)
    quantised.resize(SIDE)
    x, t = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.9])
    cond = backbone.encode_prompts([PROMPT, "dog"]) | {"guidance": torch.full((2,), OMEGA)}
    with torch.no_grad():
        expected, got = backbone.teacher(x, t, cond), quantised.teacher(x, t, cond)
    assert 0 < (got - expected).norm() < error * expected.norm()


def test_a_stock_pipeline_is_measured_at_its_own_size_and_guidance(family, teacher_folders, monkeypatch):
    made = load_backbone(teacher_folders[family])
    sampler = PipelineSampler(made.pipeline, STEPS, OMEGA)
    assert sampler.resolution == made.resolution
    made.resize(SIDE)
    places = SIDE // made.pipeline.vae_scale_factor
    monkeypatch.setattr(evaluation.stock, "DEFAULT_SIZE", places)
    made.pipeline.default_sample_size = places  # which most flows' pipelines have
    call = {"generator": torch.manual_seed(3), "height": SIDE, "width": SIDE, "guidance_scale": OMEGA}
    call |= GUIDANCE.get(type(made.pipeline).__name__, {})
    expected = made.pipeline(prompt=PROMPT, num_inference_steps=STEPS, output_type="pt", **call).images
    torch.testing.assert_close(sampler([PROMPT], 3), expected, atol=1e-5, rtol=0)
    assert sampler.network_calls == STEPS * made.teacher_calls


def test_prompts_in_a_batch_are_encoded_as_alone(backbone):
    both, alone = backbone.encode_prompts([PROMPT, "zebra zebra"]), backbone.encode_prompts([PROMPT])
    x, t = torch.randn(1, *backbone.latent_shape), torch.tensor([0.5])
    first = {name: value[:1] for name, value in both.items()}
    torch.testing.assert_close(backbone.teacher(x, t, first), backbone.teacher(x, t, alone))
    assert all(value.shape[1:] == alone[name].shape[1:] for name, value in both.items())


def test_a_prompt_too_long_is_shown_without_its_template(backbone):
    """Which it is measured in."""
    prompt = "zebra " * 100  # 600 letters, each a token
    with pytest.raises(UserError, match=r"got a prompt of \d+ tokens, expected at most \d+; shorten it: 'zebra zebra"):
        backbone.encode_prompts([PROMPT, prompt])
    assert backbone.encode_prompts([prompt], truncate=True)["text"].isfinite().all()


def test_pictures_are_decoded_as_the_stock_pipeline_does(backbone):
    latents = TeacherSampler(backbone, STEPS, OMEGA).latents([PROMPT], 3)
    pixels = stock(backbone, output_type="pt")
    torch.testing.assert_close(backbone.decode(latents), pixels, atol=1e-4, rtol=0)
    mean, std = backbone.encode_images(pixels)
    assert mean.shape == std.shape == latents.shape
    z, _ = backbone._encode(2 * pixels - 1)
    torch.testing.assert_close(backbone.normaliser.restore(mean), z, atol=1e-4, rtol=0)


def config_of(family, teacher_folders, **settings):
    small = {"batch_size": 2, "lora_rank": 2, "critic_rank": 2, "precision": "fp32", "resolution": SIDE, "data": "none"}
    recipe = family if family != "sd35" else "sd35-medium"
    return RECIPES[recipe](teacher=str(teacher_folders[family]), **small | settings)


@pytest.mark.parametrize("critic", ["lora", "heads"])
def test_a_step_trains_student_and_critic(backbone, family, teacher_folders, critic):
    """With the recipe's own settings: from the teacher's walk to gradients of both losses, blocks checkpointed."""
    config = config_of(family, teacher_folders, critic=critic, critic_input="matched")
    add_models(backbone, config)
    distillation, shape = Distillation.of(backbone, config), torch.Size((2, *backbone.latent_shape))
    batch = Batch(torch.zeros(shape), torch.ones(shape), backbone.encode_prompts([PROMPT, "dog"]))
    terms = distillation.step(batch, Draws.make(shape, distillation.grid, config, torch.Generator().manual_seed(0)))
    assert all(bool(value.isfinite().all()) for value in terms.values())
    assert terms["consistency"] > 0
    for parameters in (backbone.student_parameters(), backbone.critic_parameters()):
        grads = [parameter.grad for parameter in parameters.values()]
        assert any(bool((grad != 0).any()) for grad in grads if grad is not None)


@pytest.mark.parametrize("train", ["lora", "full"])
def test_an_export_is_drawn_by_the_stock_pipeline(backbone, family, teacher_folders, perturb, tmp_path, train):
    """`read_student` and `read_lora` compare what the stock pipeline draws with what the student in memory does."""
    backbone.add_student(train, rank=2, alpha=4.0)
    perturb(backbone.target_parameters())
    lora = {"lora_alpha": 4.0} if train == "lora" else {}
    trained = Trained(backbone, config_of(family, teacher_folders, train=train, **lora), updates=1)
    expected = trained.expected()
    save_student(backbone, tmp_path / "student", trained.grid)
    read_student(tmp_path / "student", expected)
    if train == "lora":
        (tmp_path / "lora").mkdir()
        assert save_lora(trained, tmp_path / "lora", "lora") == "diffusers"
        read_lora(tmp_path / "lora", "lora", "diffusers", expected)


@pytest.mark.parametrize(("family", "recipe"), [("sd3", "sd3"), ("sd35", "sd35-medium"), ("sd35-large", "sd35-large")])
def test_editions_of_sd3_are_told_by_their_networks(teacher_folders, family, recipe):
    assert config_of_teacher(None, {"teacher": str(teacher_folders[family]), "data": "none"})[0] == recipe


def test_a_skeleton_has_the_conditions_and_tensors_of_the_loaded_one(teacher_folders, family):
    loaded, made = load_backbone(teacher_folders[family]), skeleton(teacher_folders[family])

    def shapes(tensors):
        return {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}

    assert shapes(made.network.state_dict()) == shapes(loaded.network.state_dict())
    for mine, theirs in zip(
        (made.unconditional(), made.encode_prompts(["a", "b"])),
        (loaded.unconditional(), loaded.encode_prompts(["a", "b"])),
        strict=True,
    ):
        assert shapes(mine) == shapes(theirs)
    for name in ("schedule", "prediction", "latent_shape", "resolution"):
        assert getattr(made, name) == getattr(loaded, name), name


@pytest.mark.parametrize(("name", "passes"), [("flux", 1), ("chroma", 2)])
def test_a_teacher_that_embeds_guidance_is_counted_once(teacher_folders, name, passes):
    config, bones = config_of(name, teacher_folders), skeleton(teacher_folders[name])
    bones.resize(SIDE)
    add_models(bones, config)
    teacher = next(calls for calls in budget_of(bones, config).calls if calls.model == "teacher")
    assert teacher.samples == passes * config.batch_size


def test_chromas_mask_counts_where_activations_are_computed_again(teacher_folders):
    """diffusers leaves it out of what it recomputes a single block with."""
    backbone = load_backbone(teacher_folders["chroma"])
    backbone.resize(SIDE)
    backbone.checkpoint_activations()
    x, t, cond = torch.randn(1, *backbone.latent_shape), torch.tensor([0.5]), backbone.encode_prompts([PROMPT])
    output = backbone.teacher(x.requires_grad_(), t, cond)
    with torch.no_grad():
        torch.testing.assert_close(backbone.teacher(x, t, cond), output.detach())
        full = cond | {"mask": torch.ones_like(cond["mask"])}
        assert (backbone.teacher(x, t, full) - output).abs().max() > 1e-4
    gradient = torch.autograd.grad(output.sum(), x)[0]
    assert bool((gradient != 0).any())
