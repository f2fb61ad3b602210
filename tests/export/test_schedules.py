"""Where other programs call a student: the times that their own code was seen to stop at, from their spacing rules."""

import re
from pathlib import Path

import pytest
import torch
from scipy.stats import beta

from scott.diffusion import DiscreteSchedule, FlowSchedule, JumpGrid
from scott.export.schedules import PROGRAMS, called_times, flow_shift, nearest

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


def test_two_steps_of_a_flow_in_comfyui():
    """Its table at ModelSamplingSD3's shift s, σ(t) = s t / (1 + (s − 1) t), read by "simple" at t = 1 and 1/2."""
    schedule = FlowSchedule(3.0)
    first, second = schedule.sigma(torch.tensor(schedule.inference_times(2))).tolist()
    shift = flow_shift(second)
    assert first == 1
    assert shift * 0.5 / (1 + (shift - 1) * 0.5) == pytest.approx(second, abs=1e-3)
    four = schedule.sigma(torch.tensor(schedule.inference_times(4))).tolist()
    table = torch.arange(0, 1.0, 0.25).flip(0)[:-1]
    for shift in torch.arange(0.5, 100, 0.01):
        there = shift * table / (1 + (shift - 1) * table)
        assert (there - torch.tensor(four[1:])).abs().max() > 0.05, "the card says that no shift does in four"
