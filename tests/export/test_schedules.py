"""Where other programs call a student: the times that their own code was seen to stop at, from their spacing rules."""

import re
from pathlib import Path

import pytest
import torch
from scipy.stats import beta

from scott.diffusion import DiscreteSchedule, FlowSchedule, JumpGrid
from scott.export.elsewhere import EXACT, flow_table
from scott.export.schedules import PROGRAMS, called_times, flow_shift, flow_sigmas, furthest, nearest, schedule_of
from scott.export.trained import network_times

SEEN = {
    ("A1111", "Automatic"): [999, 19],
    ("A1111", "Uniform"): [999, 19],
    ("A1111", "Normal"): [999, 19],
    ("A1111", "Karras"): [999, 19],
    ("A1111", "Exponential"): [999, 19],
    ("A1111", "SGM Uniform"): [999, 499],
    ("A1111", "Simple"): [999, 499],
    ("ComfyUI", "normal"): [999, 0],
    ("ComfyUI", "karras"): [999, 0],
    ("ComfyUI", "exponential"): [999, 0],
    ("ComfyUI", "kl_optimal"): [999, 0],
    ("ComfyUI", "ddim_uniform"): [501, 1],
    ("ComfyUI", "simple"): [999, 499],
    ("ComfyUI", "sgm_uniform"): [999, 500],
}
"""(program, scheduler) → times of 2 steps in the programs; A1111's Exponential by its rule alone."""
PAGE = Path(__file__).parents[2] / "docs" / "using.md"


def test_every_scheduler_was_seen():
    assert set(SEEN) == {(program, name) for program, (rules, _) in PROGRAMS.items() for name in rules}


@pytest.mark.parametrize(("where", "times"), SEEN.items())
def test_times_of_two_steps(where, times):
    assert called_times(*where, 2) == times


def test_the_page_has_the_times_of_every_scheduler():
    said = {}
    for program, names, *cells in re.findall(
        r"^\| (ComfyUI|A1111) \| (.*?) \| (.*?) \| (.*?) \|$", PAGE.read_text(), re.M
    ):
        for name in re.sub(r"\*\*| \(.*?\)", "", names).split(", "):
            said[program, name] = [[int(number) for number in re.findall(r"\d+", cell)] for cell in cells]
    assert said.keys() == SEEN.keys()
    for where, (two, four) in said.items():
        times = called_times(*where, 4)
        assert two == called_times(*where, 2)
        assert four in (times, times[-1:])


def test_the_nearest_are_within_a_few_times_of_what_the_student_needs():
    """Of four steps too. A1111's table has every 20th time only; ComfyUI's beta, which needs scipy, is no nearer."""
    grid = JumpGrid(DiscreteSchedule.stable_diffusion())
    for steps, off in (
        (1, {"ComfyUI": 0, "A1111": 0}),
        (2, {"ComfyUI": 3, "A1111": 4}),
        (4, {"ComfyUI": 5, "A1111": 8}),
    ):
        wanted = grid.inference_times(steps)
        for program, largest in off.items():
            name, times = nearest(program, wanted)
            assert times == called_times(program, name, steps)
            assert max(abs(a - b) for a, b in zip(times, wanted, strict=True)) == largest
        by_beta = [round(999 * beta.ppf(1 - k / steps, 0.6, 0.6)) for k in range(steps)]
        assert max(abs(a - b) for a, b in zip(by_beta, wanted, strict=True)) >= off["ComfyUI"]


def test_pixarts_times_are_those_of_its_own_schedule():
    """β linear from .0001 to .02, which ComfyUI gives it: λ at the end is 157, where Stable Diffusion's is 14.6."""
    pixart, sd = schedule_of("PixArtSigmaPipeline"), schedule_of("StableDiffusionXLPipeline")
    alpha_bar = torch.linspace(0.0001, 0.02, 1000, dtype=torch.float64).mul(-1).log1p().cumsum(0).exp()
    assert pixart.lam(torch.tensor(999)) == pytest.approx(((1 - alpha_bar[-1]) / alpha_bar[-1]).sqrt().item(), rel=1e-4)
    assert sd.lam(torch.tensor(999)) == pytest.approx(14.6, abs=0.1)
    for steps in (1, 2, 4, 8):
        wanted = JumpGrid(pixart).inference_times(steps)
        name, times = nearest("ComfyUI", wanted, "PixArtSigmaPipeline")
        assert name in ("simple", "sgm_uniform")
        assert furthest(times, wanted) <= 7


@pytest.mark.parametrize("shift", [1.0, 2.0008, 3.1582, 6.0, 7.5636])
def test_a_flow_that_stops_evenly_is_drawn_exactly_in_comfyui(shift):
    """Chroma's, Qwen-Image's, FLUX's, Z-Image's and FLUX.2's at 1024 px: t = 1 − k / n, as "simple" has it."""
    grid = JumpGrid(FlowSchedule(shift, evenly=True))
    node = flow_shift(network_times(grid, 2)[1])
    for steps in (1, 2, 4, 8):
        assert furthest(flow_sigmas(node, steps), network_times(grid, steps)) < EXACT / 2


def test_one_that_does_not_is_in_two_steps_alone():
    """SD3's σ fall by the same factor: at no shift does "simple" stop where 4 steps do, as the card says."""
    grid = JumpGrid(FlowSchedule(3.0))
    two, four = network_times(grid, 2), network_times(grid, 4)
    assert flow_shift(two[1]) == 1.5
    assert flow_sigmas(1.5, 2) == pytest.approx(two)
    assert min(furthest(flow_sigmas(shift, 4), four) for shift in torch.arange(0.5, 20, 0.05).tolist()) > 0.05


def test_what_comfyui_reads_of_manual_sigmas_are_the_students_and_a_last_0():
    """It finds its numbers in the text by this pattern (comfy_extras/nodes_custom_sampler.py)."""
    times = {str(steps): network_times(JumpGrid(FlowSchedule(3.0)), steps) for steps in (1, 2, 4, 8)}
    rows = flow_table("StableDiffusion3Pipeline", times).splitlines()[2:]
    cells = [row.split("|")[2] for row in rows]
    found = [[float(number) for number in re.findall(r"[-+]?(?:\d*\.*\d+)", cell)] for cell in cells]
    assert found == [[*wanted, 0] for wanted in times.values()]
    assert ["not these" in row for row in rows] == [False, False, True, True]
