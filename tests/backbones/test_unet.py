"""The four models on one network, beside the stock diffusers pipeline they come from and go back to."""

import os
import subprocess
import sys

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from scott.backbones import adapters, load_backbone
from scott.backbones.unet import CRITIC_LAYERS
from scott.diffusion import JumpGrid
from scott.errors import UserError
from scott.generators import StudentSampler, TeacherSampler

PREDICTIONS = ["epsilon", "v_prediction"]
TRAIN = ["lora", "full"]
PROMPT = "a cat"


def inputs(backbone, seed=0):
    generator = torch.Generator().manual_seed(seed)
    cond = backbone.encode_prompts(["a cat", "dog"]) | {"guidance": torch.tensor([3.0, 7.5])}
    return torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([999, 271]), cond


def draw_stock(pipeline, steps, scale, seed):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    options = {"num_inference_steps": steps, "guidance_scale": scale, "generator": generator}
    return pipeline(PROMPT, **options, output_type="latent").images


def critic_logits(backbone, x, t, cond):
    return backbone.critic_logits(backbone.critic_features(x, t, cond))


# --- the teacher ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_teacher_x0_is_what_ddim_predicts(make_backbone, sd_folders, prediction):
    backbone = make_backbone(prediction_type=prediction)
    x, t, cond = inputs(backbone)
    scheduler = DDIMScheduler.from_pretrained(sd_folders[prediction], subfolder="scheduler")
    scheduler.set_timesteps(1000)
    x0 = backbone.teacher(x, t, cond)
    for i in range(2):
        row = slice(i, i + 1)
        output = backbone.unet(x[row], t[row], cond["text"][row]).sample
        expected = scheduler.step(output, int(t[i]), x[row]).pred_original_sample
        torch.testing.assert_close(x0[row], expected, rtol=1e-4, atol=1e-4)


def test_prompts_are_encoded_as_in_the_stock_pipeline(make_backbone):
    backbone = make_backbone()
    for prompt in (PROMPT, "", "zebra " * 2):
        expected, _ = backbone.pipeline.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)
        assert torch.equal(backbone.encode_prompts([prompt])["text"], expected)


def test_the_longest_prompt_fits_and_a_longer_one_is_an_error(make_backbone):
    backbone = make_backbone()
    limit = backbone.tokenizer.model_max_length - 2
    assert backbone.encode_prompts(["b" * limit])["text"].shape == (1, limit + 2, 32)
    with pytest.raises(UserError, match=f"got a prompt of {limit + 1} tokens, expected at most {limit}"):
        backbone.encode_prompts(["fine", "b" * (limit + 1)])


def test_decode_and_encode_are_the_vae_scaled_and_in_unit_range(make_backbone):
    backbone = make_backbone()
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mean, std = backbone.encode_images(pixels)
    posterior = backbone.vae.encode(2 * pixels - 1).latent_dist
    scale = backbone.vae.config.scaling_factor
    torch.testing.assert_close(mean / scale, posterior.mean)
    torch.testing.assert_close(std / scale, posterior.std)
    decoded = backbone.decode(mean)
    expected = backbone.pipeline.image_processor.postprocess(backbone.vae.decode(mean / scale).sample, output_type="pt")
    torch.testing.assert_close(decoded, expected)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_teacher_sampler_is_the_stock_pipeline(make_backbone, prediction):
    backbone = make_backbone(prediction_type=prediction)
    scheduler = DDIMScheduler.from_config(
        backbone.pipeline.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True
    )
    parts = backbone.pipeline.components | {"scheduler": scheduler}
    expected = draw_stock(StableDiffusionPipeline(**parts, requires_safety_checker=False), 5, 7.5, seed=3)
    torch.testing.assert_close(TeacherSampler(backbone, 5, 7.5).latents([PROMPT], 3), expected, rtol=0, atol=1e-4)


# --- the models on it ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("train", TRAIN)
def test_student_and_target_start_as_the_teacher(make_backbone, train, prediction):
    backbone = make_backbone(train, critic_rank=4, prediction_type=prediction)
    x, t, cond = inputs(backbone)
    expected = make_backbone(prediction_type=prediction).teacher(x, t, cond)
    for model in (backbone.teacher, backbone.student, backbone.target):
        assert torch.equal(model(x, t, cond), expected)
    assert torch.equal(critic_logits(backbone, x, t, cond), torch.zeros(2, 8, 8))


@pytest.mark.parametrize("train", TRAIN)
def test_student_and_target_start_with_equal_parameters(make_backbone, train):
    backbone = make_backbone(train)
    student, target = backbone.student_parameters(), backbone.target_parameters()
    assert student.keys() == target.keys()
    assert all(torch.equal(student[name], target[name]) and student[name] is not target[name] for name in student)


@pytest.mark.parametrize("train", TRAIN)
def test_an_update_moves_its_own_model_only(make_backbone, train):
    backbone = make_backbone(train, critic_rank=4)
    x, t, cond = inputs(backbone)
    with torch.no_grad():
        teacher = backbone.teacher(x, t, cond)

    student = torch.optim.AdamW(backbone.student_parameters().values(), lr=1e-3)
    backbone.student(x, t, cond).square().mean().backward()
    student.step()
    critic = torch.optim.AdamW(backbone.critic_parameters().values(), lr=1e-3)
    for _ in range(2):  # the head starts at zero, so the first step moves the head alone
        critic.zero_grad()
        critic_logits(backbone, x, t, cond).sum().backward()
        critic.step()

    with torch.no_grad():
        assert torch.equal(backbone.teacher(x, t, cond), teacher)
        assert torch.equal(backbone.target(x, t, cond), teacher)
        assert (backbone.student(x, t, cond) - teacher).abs().max() > 1e-4
        assert critic_logits(backbone, x, t, cond).abs().max() > 1e-4
        adapted = backbone._lora("critic")
        assert all((p != 0).any() for name, p in adapted.items() if "lora_B" in name)


@pytest.mark.parametrize("train", TRAIN)
def test_each_optimizer_owns_its_own_parameters_and_the_base_none(make_backbone, train):
    backbone = make_backbone(train, critic_rank=4)
    owners = [backbone.student_parameters(), backbone.target_parameters(), backbone.critic_parameters()]
    ids = [{id(p) for p in owner.values()} for owner in owners]
    assert all(ids)
    assert len(set.union(*ids)) == sum(map(len, ids))
    base = [p for name, p in backbone.unet.named_parameters() if ".lora_" not in name]
    base += [*backbone.vae.parameters(), *backbone.text_encoder.parameters()]
    assert not any(p.requires_grad for p in base)
    assert not {id(p) for p in base} & set.union(*ids)
    assert all(p.requires_grad for owner in (owners[0], owners[2]) for p in owner.values())


@pytest.mark.parametrize("train", TRAIN)
def test_gradients_reach_their_model_and_never_the_base(make_backbone, perturb, train):
    backbone = make_backbone(train, critic_rank=4)
    x, t, cond = inputs(backbone)
    perturb(backbone.critic_parameters())
    perturb(backbone.student_parameters())
    critic_logits(backbone, backbone.student(x, t, cond), t, cond).sum().backward()
    for owner in (backbone.student_parameters(), backbone.critic_parameters()):
        assert all(p.grad is not None and (p.grad != 0).any() for p in owner.values())
    assert all(p.grad is None for p in backbone.target_parameters().values())
    assert all(p.grad is None for name, p in backbone.unet.named_parameters() if ".lora_" not in name)


def test_the_critic_adapts_the_decoder_only(make_backbone, perturb):
    backbone = make_backbone("lora", critic_rank=4)
    x, t, cond = inputs(backbone)
    lora = [name for name in backbone.critic_parameters() if not name.startswith("head.")]
    assert all(name.startswith("up_blocks.") for name in lora)
    before = backbone.critic_features(x, t, cond)
    perturb(backbone.critic_parameters())
    after = backbone.critic_features(x, t, cond)
    assert torch.equal(before.middle, after.middle)
    assert all(map(torch.equal, before.skips, after.skips))
    assert critic_logits(backbone, x, t, cond).shape == (2, 8, 8)


def test_the_critic_is_told_the_time_and_the_text(make_backbone, perturb):
    backbone = make_backbone(critic_rank=4)
    x, t, cond = inputs(backbone)
    perturb(backbone.critic_parameters())
    logits = critic_logits(backbone, x, t, cond)
    assert not torch.allclose(logits, critic_logits(backbone, x, t - 200, cond))
    assert not torch.allclose(logits, critic_logits(backbone, x, t, {"text": cond["text"].flip(0)}))


def test_the_papers_critic_is_3_6_percent_of_sd15():
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64,
            in_channels=4,
            out_channels=4,
            block_out_channels=(320, 640, 1280, 1280),
            layers_per_block=2,
            down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
            up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
            cross_attention_dim=768,
            attention_head_dim=8,
        )
        total = sum(p.numel() for p in unet.parameters())
        layers = adapters.lora_targets(unet, "up_blocks", CRITIC_LAYERS)
        critic = adapters.add_adapter(unet, "critic", layers, 64, 64.0)
    assert total == 859_520_964
    assert 0.034 < sum(p.numel() for p in critic.values()) / total < 0.038


# --- ω -------------------------------------------------------------------------------------------------------


def test_omega_reaches_a_full_student_as_the_stock_pipeline_feeds_it(make_backbone, perturb):
    backbone = make_backbone("full")
    x, t, cond = inputs(backbone)
    perturb(backbone.student_parameters())
    seen = []
    backbone.student_unet.register_forward_pre_hook(lambda m, a, kw: seen.append(kw["timestep_cond"]), with_kwargs=True)
    backbone.student(x, t, cond)
    stock = backbone.pipeline.get_guidance_scale_embedding(torch.tensor([3.0, 7.5]) - 1, embedding_dim=256)
    assert torch.equal(seen[0], stock)
    other = backbone.student(x, t, cond | {"guidance": torch.tensor([3.0, 8.0])})
    mine = backbone.student(x, t, cond)
    torch.testing.assert_close(other[0], mine[0])
    assert not torch.allclose(other[1], mine[1])


def test_an_unknown_train_is_an_error(make_backbone):
    with pytest.raises(UserError, match="expected lora or full"):
        make_backbone("ful")


# --- the student as a stock pipeline -------------------------------------------------------------------------

STOCK = """
import sys, torch
from diffusers import StableDiffusionPipeline
folder, out, steps, scale = sys.argv[1:]
pipeline = StableDiffusionPipeline.from_pretrained(folder)
images = pipeline("a cat", num_inference_steps=int(steps), guidance_scale=float(scale), output_type="latent",
                  generator=torch.Generator().manual_seed(5)).images
assert not [name for name in sys.modules if name.split(".")[0] == "scott"]
torch.save(images, out)
"""


def trained(make_backbone, perturb, train, prediction="epsilon"):
    backbone = make_backbone(train, critic_rank=2, prediction_type=prediction)
    for seed, owner in enumerate((backbone.student_parameters(), backbone.target_parameters())):
        perturb(owner, seed)
    perturb(backbone.critic_parameters(), 2)
    return backbone


@pytest.mark.parametrize(
    ("train", "prediction", "jump", "substeps"),
    [("lora", "epsilon", 24, 3), ("full", "epsilon", 20, 1), ("full", "v_prediction", 24, 3)],
)
def test_the_saved_student_is_the_target_in_a_stock_pipeline(
    make_backbone, perturb, tmp_path, train, prediction, jump, substeps
):
    backbone = trained(make_backbone, perturb, train, prediction)
    grid = JumpGrid(backbone.schedule, jump=jump, substeps=substeps)
    backbone.save_student(tmp_path, grid)
    stock = StableDiffusionPipeline.from_pretrained(tmp_path)
    reloaded = load_backbone(tmp_path)
    omega = 4.0 if train == "full" else 1.0
    for steps in (1, 2, 4):
        expected = draw_stock(stock, steps, omega, seed=5)
        ours = StudentSampler(backbone, backbone.target, grid, steps, omega).latents([PROMPT], 5)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
        again = StudentSampler(reloaded, reloaded.teacher, grid, steps, omega).latents([PROMPT], 5)
        torch.testing.assert_close(again, expected, rtol=0, atol=1e-4)


def test_the_saved_student_needs_no_scott(make_backbone, perturb, tmp_path):
    backbone = trained(make_backbone, perturb, "lora")
    grid = JumpGrid(backbone.schedule)
    backbone.save_student(tmp_path / "student", grid)
    command = [sys.executable, "-c", STOCK, tmp_path / "student", tmp_path / "out.pt", "2", "1.0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ)
    assert done.returncode == 0, done.stderr
    ours = StudentSampler(backbone, backbone.target, grid, 2, 1.0).latents([PROMPT], 5)
    torch.testing.assert_close(ours, torch.load(tmp_path / "out.pt"), rtol=0, atol=1e-4)


@pytest.mark.parametrize("train", TRAIN)
def test_saving_leaves_every_model_as_it_was(make_backbone, perturb, tmp_path, train):
    backbone = trained(make_backbone, perturb, train)
    x, t, cond = inputs(backbone)

    def answers():
        with torch.no_grad():
            models = (backbone.teacher, backbone.student, backbone.target)
            return [*(model(x, t, cond) for model in models), critic_logits(backbone, x, t, cond)]

    before = answers()
    backbone.save_student(tmp_path, JumpGrid(backbone.schedule))
    assert all(map(torch.equal, answers(), before))
    assert all(p.requires_grad for p in backbone.student_parameters().values())
