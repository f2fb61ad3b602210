"""What makes a recipe right on a real teacher, on a tiny one of its family: where jumps begin, precision, rates."""

import pytest
import torch

from scott.diffusion import ConsistencyFunction
from scott.guidance import GuidedDenoiser
from scott.mini import embedded
from scott.objective import consistency_loss
from scott.recipes.configs import RECIPES
from scott.teachers import load_backbone

TINY = {"sd15": "sd1", "realistic-vision": "sd1", "sdxl": "sdxl", "pixart": "pixart", "sd3": "sd3"}
BATCH = 16


@pytest.fixture(scope="module")
def teacher(teacher_folders):
    """`teacher(name, dtype)`: a tiny teacher of a recipe's family, or the embedded one, which is trained."""

    def load(name, dtype=torch.float32):
        return load_backbone(embedded.TEACHER if name == "mini" else teacher_folders[TINY[name]], dtype)

    return load


def draws(backbone, config):
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, *backbone.latent_shape)
    return [torch.randn(shape, generator=generator) for _ in range(2 + config.substeps)]


@torch.no_grad()
def walked(backbone, config, x_n, t_n, noises):
    """x̂_m, and the condition a student is given."""
    cond = {
        name: value.expand(len(x_n), *value.shape[1:]) for name, value in backbone.encode_prompts(["a cat"]).items()
    }
    omega = torch.full((len(x_n),), config.guidance_max)
    denoiser = GuidedDenoiser(backbone.teacher, backbone.unconditional(), omega)
    times = config.make_grid(backbone.schedule).substep_times(t_n)
    x_m = config.make_solver(backbone.schedule).walk(denoiser, x_n, times, cond, noises=noises)
    return x_m, times[-1], cond | {"guidance": omega}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_target_depends_on_x_n_at_every_time(recipe, teacher):
    config, backbone = RECIPES[recipe]["scott"](data="d"), teacher(recipe)
    times = config.make_grid(backbone.schedule).times
    t_n = times[config.substeps + 1 :: max(1, len(times) // BATCH)][-BATCH:]
    t_n = torch.cat([t_n, times[-1:]])[-BATCH:]
    x0, other, *walk = (noise[: len(t_n)] for noise in draws(backbone, config))
    ends = [walked(backbone, config, backbone.schedule.add_noise(x0, eps, t_n), t_n, walk)[0] for eps in (x0, other)]
    spread = backbone.schedule.sigma(config.make_grid(backbone.schedule).target(t_n)).clamp(min=0.05)
    moved = (ends[1] - ends[0]).flatten(1).square().mean(1).sqrt()
    assert bool((moved > 0.2 * spread).all()), moved / spread


@pytest.mark.parametrize("recipe", [*TINY, "mini"])
def test_the_loss_at_the_highest_time_survives_the_recipes_precision(recipe, teacher):
    """L_CD of the untrained student at t_max within 10 % of fp32's; the paper's settings on the embedded teacher, whose
    weights are trained."""
    config = RECIPES["sd15" if recipe == "mini" else recipe]["scott"](data="d")
    losses = {}
    for dtype in (torch.float32, config.dtype, torch.bfloat16):
        backbone = teacher(recipe, dtype)
        t_n = config.make_grid(backbone.schedule).times[-1:].expand(BATCH)
        x0, noise, *walk = draws(backbone, config)
        x_n = backbone.schedule.add_noise(0.8 * x0, noise, t_n)
        x_m, t_m, cond = walked(backbone, config, x_n, t_n, walk)
        f = ConsistencyFunction(backbone.teacher, backbone.schedule)
        with torch.no_grad():
            losses[dtype] = consistency_loss(f(x_n, t_n, cond), f(x_m, t_m, cond))
    values = {dtype: float(getattr(loss, "loss", loss)) for dtype, loss in losses.items()}
    assert values[config.dtype] == pytest.approx(values[torch.float32], rel=0.1)
    if recipe == "mini":  # the check can fail: it does in bf16
        assert values[torch.bfloat16] != pytest.approx(values[torch.float32], rel=0.1)
