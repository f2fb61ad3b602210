"""Pictures of another size, from another picture, and away from a prompt, are what stock pipelines draw."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    ChromaImg2ImgPipeline,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    LCMScheduler,
    QwenImageImg2ImgPipeline,
    StableDiffusion3Img2ImgPipeline,
    ZImageImg2ImgPipeline,
)
from PIL import Image

from scott.commands.drawn import Drawn
from scott.commands.framing import drawing, fitted
from scott.diffusion import DiscreteSchedule
from scott.errors import UserError
from scott.export.pipeline import call_options, save_student
from scott.export.trained import difference, student_grid
from scott.samplers import StudentSampler
from scott.students import Student
from scott.teachers import load_backbone

LEADING = {"timestep_spacing": "leading"}
"""Of an Euler scheduler: its first state is N(0, I)."""
IMAGE_TO_IMAGE = {
    "sd3": StableDiffusion3Img2ImgPipeline,
    "flux": FluxImg2ImgPipeline,
    "chroma": ChromaImg2ImgPipeline,
    "qwen-image": QwenImageImg2ImgPipeline,
    "z-image": ZImageImg2ImgPipeline,
}
"""Of flows, which have the size said; others take the picture's."""


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    file = tmp_path_factory.mktemp("picture") / "start.png"
    torch.manual_seed(0)
    small = torch.randint(0, 255, (5, 7, 3), dtype=torch.uint8).numpy()
    Image.fromarray(small).resize((112, 80), Image.Resampling.BICUBIC).save(file)
    return file


@pytest.fixture
def student(make_trained, tmp_path):
    """`student(family, train)`: a saved one, and its folder."""

    def make(family="sd1", train="lora"):
        trained = make_trained(family, train)
        save_student(trained.backbone, tmp_path / "student", trained.grid)
        backbone = load_backbone(tmp_path / "student")
        grid = student_grid(backbone.schedule, backbone.original_inference_steps)
        return Student("it", backbone, backbone.teacher, grid, trained.info), tmp_path / "student"

    return make


def stock(pipe, student, **call):
    pipe.set_progress_bar_config(disable=True)
    call |= {"guidance_scale": student.info.guidance_scale} | call_options(student.info.pipeline)
    return pipe(prompt="a dog", generator=torch.manual_seed(3), output_type="latent", **call).images


@pytest.mark.parametrize(("family", "train"), [("sd1", "full"), ("sdxl", "lora"), ("sd3", "lora")])
def test_another_size(student, family, train):
    made, folder = student(family, train)
    sampler = drawing(made, Drawn(height=96, width=48))
    ours = sampler.latents(["a dog"], 3)
    assert ours.shape[2:] == (12, 6)
    assert sampler(["a dog"], 3).shape[2:] == (96, 48)
    theirs = stock(DiffusionPipeline.from_pretrained(folder), made, num_inference_steps=2, height=96, width=48)
    assert difference(theirs, ours) < 1e-4


@pytest.mark.parametrize(("family", "train"), [("sd1", "full"), ("sdxl", "lora"), ("pixart", "lora")])
def test_at_timesteps_of_ones_own(student, family, train):
    made, folder = student(family, train)
    sampler = drawing(made, Drawn(timesteps=(999, 599)))
    assert (sampler.steps, sampler.network_calls) == (2, 2)
    ours = sampler.latents(["a dog"], 3)
    theirs = stock(DiffusionPipeline.from_pretrained(folder), made, timesteps=[999, 599])
    assert difference(theirs, ours) < 1e-4
    assert difference(drawing(made, Drawn(steps=2)).latents(["a dog"], 3), ours) > 0.01


@pytest.mark.parametrize(("family", "train"), [("sd1", "full"), ("sdxl", "lora"), ("sd3", "lora"), ("flux", "lora")])
def test_where_noise_is_kept_it_draws_as_stock_euler(student, family, train):
    made, folder = student(family, train)
    stops = {} if made.info.is_flow else {"timesteps": (999, 303)}
    ours = drawing(made, Drawn(gamma=0, **stops)).latents(["a dog"], 3)
    pipe = DiffusionPipeline.from_pretrained(folder)
    if made.info.is_flow:
        config, own = dict(pipe.scheduler.config), {"num_inference_steps": 2}
        pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(config, stochastic_sampling=False)
    else:
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, **LEADING)
        own = {"timesteps": [999, 303]}
    theirs = stock(pipe, made, **own)
    if made.backbone.packed:
        theirs = made.backbone.unpack(theirs, ours)
    assert difference(theirs, ours) < 1e-4
    assert difference(drawing(made, Drawn(**stops)).latents(["a dog"], 3), ours) > 0.01


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"gamma": 1.2}, "got gamma 1.2; expected 0"),
        ({"gamma": float("nan")}, "got gamma nan; expected 0"),
        ({"gamma": 0.5, "steps": 1}, "got --gamma 0.5 with one step, which has no later noise"),
    ],
)
def test_a_gamma_that_is_none_or_says_nothing(asked, said):
    with pytest.raises(UserError, match=said):
        Drawn(**asked)


def test_a_flows_timesteps_are_thousandths_of_sigma(student):
    made, _ = student("sd3")
    (times,) = [torch.tensor(drawing(made, Drawn(timesteps=(1000, 600.0))).times)]
    torch.testing.assert_close(made.grid.schedule.timestep(times), torch.tensor([1000.0, 600.0]))


@pytest.mark.parametrize(
    ("family", "asked", "said"),
    [
        ("sd1", {"timesteps": (999, 600)}, "got timestep 600, which it was not trained at; near it are 599 607"),
        ("sd1", {"timesteps": (599, 999)}, "got timesteps 599 999; expected them to descend"),
        ("sd1", {"timesteps": (999, 599), "steps": 4}, "got 4 steps and 2 timesteps; leave out --steps"),
        ("sd1", {"timesteps": tuple(range(999, 0, -100))}, "got 10 steps; expected 1 to 8"),
        ("sd3", {"timesteps": (1001, 600)}, "got timesteps 1001 600; expected 1000 σ"),
    ],
)
def test_timesteps_that_cannot_be_drawn_at(student, family, asked, said):
    with pytest.raises(UserError, match=said):
        drawing(student(family)[0], Drawn(**asked))


@pytest.mark.parametrize(
    ("family", "train", "strength", "calls"),
    [
        ("sd1", "full", 0.5, 2),
        ("sdxl", "lora", 0.6, 2),
        ("sd3", "lora", 0.5, 2),
        ("sd3", "lora", 0.6, 3),
        ("sd3", "lora", 0.2, 1),
        ("flux", "lora", 0.5, 2),
        ("chroma", "lora", 0.5, 2),
        ("chroma", "lora", 0.6, 3),
        ("qwen-image", "lora", 0.5, 2),
        ("z-image", "lora", 0.5, 2),
    ],
)
def test_from_a_picture(student, picture, family, train, strength, calls):
    made, folder = student(family, train)
    asked = Drawn(steps=4, image=picture, strength=strength, height=64, width=96)
    sampler = drawing(made, asked)
    assert sampler.network_calls == calls
    pipe = DiffusionPipeline.from_pretrained(folder)
    kind = IMAGE_TO_IMAGE.get(family, AutoPipelineForImage2Image)
    size = {"height": 64, "width": 96} if family in IMAGE_TO_IMAGE else {}
    call = {"image": fitted(picture, (64, 96)), "num_inference_steps": 4, "strength": strength, **size}
    theirs, ours = stock(kind.from_pipe(pipe), made, **call), sampler.latents(["a dog"], 3)
    if made.backbone.packed:
        theirs = made.backbone.unpack(theirs, ours)
    assert difference(theirs, ours) < 1e-4
    away = drawing(made, replace(asked, strength=1.0)).latents(["a dog"], 3)
    assert difference(theirs, away) > 0.1


STOCK_MEAN = {
    "flux2-klein": lambda pipe, pixels: pipe._encode_vae_image(2 * pixels - 1, None),
    "sana": lambda pipe, pixels: pipe.vae.encode(2 * pixels - 1).latent * pipe.vae.config.scaling_factor,
}
"""Families of which diffusers has no pipeline of image to image (FLUX.2's take pictures as tokens to edit by, Sana
Sprint's is of another schedule) → what it makes of a picture."""


@pytest.mark.parametrize("family", STOCK_MEAN)
@pytest.mark.parametrize(("strength", "made"), [(1.0, 4), (0.5, 2), (0.2, 1)])
@torch.no_grad()
def test_from_a_picture_where_there_is_no_such_pipeline(student, picture, family, strength, made):
    """From (1 − σ) z + σ ε, as pipelines of flows do it: z of the pipeline's VAE, σ of its scheduler."""
    it, folder = student(family)
    pipe, pixels = DiffusionPipeline.from_pretrained(folder), fitted(picture, (64, 96))
    sigmas = [1 - k / 4 for k in range(4)] if it.backbone.shifts_evenly else None
    pipe.scheduler.set_timesteps(**{"sigmas": sigmas} if sigmas else {"num_inference_steps": 4})
    sigma = pipe.scheduler.sigmas[4 - made].item()
    sampler = drawing(it, Drawn(steps=4, image=picture, strength=strength, height=64, width=96))
    fed = []

    def network(x, t, cond):
        fed.append(x)
        return it.network(x, t, cond)

    ours = replace(sampler, network=network).latents(["a dog"], 3)
    generator = torch.Generator().manual_seed(3)
    z, std = STOCK_MEAN[family](pipe, pixels), it.backbone.encode_images(pixels)[1]
    if family == "flux2-klein":
        z = z + std * torch.randn(z.shape, generator=generator)
    noise = torch.randn(z.shape, generator=generator)
    torch.testing.assert_close(fed[0], (1 - sigma) * z + sigma * noise)
    assert len(fed) == made
    other = replace(sampler, image=1 - pixels).latents(["a dog"], 3)
    assert (difference(other, ours) < 1e-6) == (strength == 1)
    if (family, strength) == ("sana", 1.0):  # whose VAE draws nothing, so that the seed's noise is the same
        assert torch.equal(ours, drawing(it, Drawn(steps=4, height=64, width=96)).latents(["a dog"], 3))


@pytest.mark.parametrize("family", STOCK_MEAN)
def test_hardly_noised_a_picture_stays_what_its_vae_makes_of_it(student, picture, family, monkeypatch):
    it, _ = student(family)
    sampler = drawing(it, Drawn(image=picture, strength=0.1, height=64, width=96))
    mean, std = it.backbone.encode_images(sampler.image)
    z = mean + std * torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    off = []
    for t in (1e-2, 1e-3):  # at a tenth of this, c_skip + c_out of LCM's boundary is no longer 1
        monkeypatch.setattr(StudentSampler, "times", [t])
        off.append(difference(z, sampler.latents(["a dog"], 3)))
    assert off[1] < off[0] / 5


AWAY = {
    "sd1": {"guidance_scale": 4.0},
    "sdxl": {"guidance_scale": 4.0, "height": 96, "width": 48},  # the size is part of what it is pushed away from
    "qwen-image": {"true_cfg_scale": 4.0, "guidance_scale": None, "height": 64, "width": 48},
    "z-image": {"guidance_scale": 3.0, "height": 64, "width": 48},
    "sana": {"guidance_scale": 4.0, "height": 64, "width": 64, "use_resolution_binning": False, "clean_caption": False},
}
"""How a family's pipeline is asked for ω = 4."""


@pytest.mark.parametrize(("family", "call"), AWAY.items(), ids=AWAY.keys())
def test_away_from_a_prompt(student, family, call):
    """Of a student without guidance, which a stock pipeline guides as it does a teacher, in its own form."""
    made, folder = student(family)
    with pytest.raises(UserError, match="the guidance of it is built into its network"):
        drawing(made, Drawn(negative_prompt="cat", guidance=4.0))
    made = replace(made, info=replace(made.info, guidance_min=1.0, guidance_max=1.0, drawn_guidance=1.0))
    with pytest.raises(UserError, match="without --guidance above 1"):
        drawing(made, Drawn(negative_prompt="cat"))
    asked = Drawn(negative_prompt="cat", guidance=4.0, height=call.get("height"), width=call.get("width"))
    ours = drawing(made, asked).latents(["a dog"], 3)
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    call = call | {"negative_prompt": "cat", "num_inference_steps": 2, "output_type": "latent"}
    theirs = pipe(prompt="a dog", generator=torch.manual_seed(3), **call).images
    if made.backbone.packed:
        theirs = made.backbone.unpack(theirs, ours)
    assert difference(theirs, ours) < 1e-4


BAD = {
    "no multiple": ("sd1", {"height": 60}, "expected multiples of 8"),
    "one size alone": ("pixart", {"width": 64}, "draws 256 pixels a side alone"),
    "too large": ("sd3", {"width": 256}, "has positions for 128"),
    "no picture": ("sd1", {"image": Path("nowhere.png")}, "expected a picture as --image"),
}


@pytest.mark.parametrize(("family", "asked", "said"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_drawn(make_backbone, family, asked, said):
    backbone = make_backbone(family=family)
    made = Student("it", backbone, backbone.teacher, student_grid(backbone.schedule, 125), None)
    with pytest.raises(UserError, match=said):
        drawing(made, Drawn(guidance=3.0, **asked))


@pytest.mark.parametrize("count", [0, -1, 1001, None, "50", True])
def test_a_student_whose_grid_is_no_number_of_steps(count):
    with pytest.raises(UserError, match=r"got original_inference_steps .*; expected a number from 1 to 1000"):
        student_grid(DiscreteSchedule.stable_diffusion(), count)


@pytest.mark.parametrize(("count", "near"), [(60, 62), (120, 125), (300, 333)])
def test_a_student_whose_grid_is_not_even(count, near):
    """Stock times of 60 are 16 apart and begin at 959, those of a grid that is 16 apart at 991."""
    scheduler = LCMScheduler(original_inference_steps=count)
    scheduler.set_timesteps(1)
    assert scheduler.timesteps[0] < 1000 // count * near - 1
    with pytest.raises(UserError, match=f"got original_inference_steps {count}, which no grid .*such as {near}"):
        student_grid(DiscreteSchedule.stable_diffusion(), count)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_a_start_of_16_bits_keeps_its_greys(tmp_path, form):
    levels = np.repeat(np.linspace(0, 255, 8).astype(np.uint16), 8)
    Image.fromarray(np.tile(257 * levels, (64, 1))).save(tmp_path / "grey", format=form)
    expected = torch.from_numpy(levels / 255).float().expand(1, 3, 64, 64)
    torch.testing.assert_close(fitted(tmp_path / "grey", (64, 64)), expected)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "CMYK"])
def test_a_start_of_another_mode_is_as_data_have_it(tmp_path, mode):
    """What is transparent is white, and what is opaque as it is."""
    picture = Image.new("L", (64, 64), 51).convert("RGB").convert(mode)
    if mode != "CMYK":
        picture.putalpha(Image.linear_gradient("L").resize((64, 64)).point(lambda value: 255 * (value > 127)))
    picture.save(tmp_path / "start", format="TIFF")
    above, below = fitted(tmp_path / "start", (64, 64))[0, :, [0, -1], 0].T
    assert (255 * above).tolist() == [51 if mode == "CMYK" else 255] * 3
    assert (255 * below).tolist() == [51] * 3


def test_a_start_that_is_no_picture_says_what_one_is(tmp_path):
    (tmp_path / "start.png").write_text("no picture")
    with pytest.raises(UserError, match=r"start.png cannot be read \(not-a-picture\); .* one of JPEG, PNG, WEBP"):
        fitted(tmp_path / "start.png", (64, 64))


def test_a_strength_that_leaves_no_step(make_backbone, picture):
    """Of a flow none does: it rounds up."""
    for family in ("sd1", "sd3"):
        backbone = make_backbone(family=family)
        made = Student("it", backbone, backbone.teacher, student_grid(backbone.schedule, 125), None)
        asked = Drawn(guidance=3.0, image=picture, strength=0.4)
        if family == "sd3":
            assert drawing(made, asked).network_calls == 1
            continue
        with pytest.raises(UserError, match=r"which leaves none; expected 0.5 \(one\) to 1"):
            drawing(made, asked)


def test_the_strength_that_a_refusal_names_is_drawn(make_backbone, picture):
    """A third is no number of three digits."""
    backbone = make_backbone(family="sd1")
    made = Student("it", backbone, backbone.teacher, student_grid(backbone.schedule, 125), None)
    for steps in (3, 6, 7):
        with pytest.raises(UserError, match="which leaves none; expected ") as refused:
            drawing(made, Drawn(steps=steps, guidance=3.0, image=picture, strength=0.1))
        least = float(str(refused.value).split("expected ")[1].split()[0])
        assert drawing(made, Drawn(steps=steps, guidance=3.0, image=picture, strength=least)).network_calls == 1


@pytest.mark.parametrize("strength", [0.0, 1.2, float("nan")])
def test_a_strength_out_of_range(picture, strength):
    with pytest.raises(UserError, match="expected more than 0, and 1 at most"):
        Drawn(image=picture, strength=strength)
    with pytest.raises(UserError, match="without --image"):
        Drawn(strength=strength)


@pytest.mark.parametrize("side", ["height", "width"])
@pytest.mark.parametrize("pixels", [0, -64])
def test_a_size_of_no_pixels(side, pixels):
    with pytest.raises(UserError, match=f"got --{side} {pixels}; expected a number of pixels, 1 or more"):
        Drawn(**{side: pixels})
