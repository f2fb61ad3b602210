"""Jumps: sub-steps, noise, mixed times, landing on clean data; and `make`."""

import pytest
import torch

from scott.diffusion import DiscreteSchedule, FlowSchedule, JumpGrid
from scott.errors import UserError
from scott.solvers import make
from teachers import mixture

SD = DiscreteSchedule.stable_diffusion()
ZERO_SNR = DiscreteSchedule("scaled_linear", 0.00085, 0.012, rescale_betas_zero_snr=True)
FLOW = FlowSchedule(3.0)
SOLVERS = [
    ("ddim", {"eta": 0.2}),
    ("dpmpp-sde", {"eta": 1.0, "order": 2}),
    ("er-sde", {"phi": "ode", "order": 3}),
    ("er-sde", {"phi": "5", "order": 2}),
    ("er-sde", {"phi": "5", "order": 3}),
]
everywhere = pytest.mark.parametrize("schedule", [SD, ZERO_SNR, FLOW], ids=["sd", "zero-snr", "flow"])
every_solver = pytest.mark.parametrize(("name", "options"), SOLVERS, ids=str)


def problem(schedule, dtype=torch.float64):
    """A batch of four with t_n from the top, the middle and the jump that lands on clean data."""
    generator = torch.Generator().manual_seed(0)
    times = JumpGrid(schedule).times
    x, *noises = torch.randn(4, 4, 2, 3, generator=generator, dtype=dtype)
    return mixture(schedule, [-1.0, 0.3, 1.5], 0.4), x, times[[125, 60, 4, 3]], times[[122, 57, 1, 0]], noises


@everywhere
@every_solver
def test_mixed_times_are_each_sample_alone(schedule, name, options):
    denoiser, x, t_n, t_m, noises = problem(schedule)
    solver = make(name, schedule, **options)
    together = solver.jump(denoiser, x, t_n, t_m, 3, None, noises=noises)
    assert bool(together.isfinite().all())
    for i in range(4):
        one = slice(i, i + 1)
        alone = solver.jump(denoiser, x[one], t_n[one], t_m[one], 3, None, noises=[w[one] for w in noises])
        torch.testing.assert_close(together[one], alone, rtol=1e-12, atol=1e-12)


@everywhere
@every_solver
def test_a_step_to_clean_data_is_the_prediction(schedule, name, options):
    denoiser, x, _, _, noises = problem(schedule)
    solver = make(name, schedule, **options)
    middle, low, data = (JumpGrid(schedule).times[[i] * 4] for i in (2, 1, 0))
    x, history = solver.step(denoiser, x, middle, low, None, noises[0])
    landed, _ = solver.step(denoiser, x, low, data, None, noises[1], history)
    assert torch.equal(landed, denoiser(x, low, None))


@every_solver
def test_equal_noise_is_equal_to_the_bit(name, options):
    denoiser, x, t_n, t_m, _ = problem(SD, torch.float32)
    solver = make(name, SD, **options)
    draws = [
        solver.jump(denoiser, x, t_n, t_m, 3, None, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    ]
    assert draws[0].dtype == torch.float32
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2]) is not solver.stochastic


@every_solver
def test_a_jump_is_its_steps(name, options):
    denoiser, x, t_n, t_m, noises = problem(SD)
    solver, walked, history = make(name, SD, **options), x, None
    seen = []

    def recorded(x, t, cond):
        seen.append((t.tolist(), cond))
        return denoiser(x, t, cond)

    for k in range(3):
        walked, history = solver.step(denoiser, walked, t_n - 8 * k, t_n - 8 * (k + 1), None, noises[k], history)
    assert torch.equal(solver.jump(recorded, x, t_n, t_m, 3, "cond", noises=noises), walked)
    assert seen == [((t_n - 8 * k).tolist(), "cond") for k in range(3)]


def test_the_network_gets_its_own_precision():
    def denoiser(x, t, cond):
        assert (x.dtype, t.dtype) == (torch.bfloat16, torch.float32)
        return x

    x = torch.zeros(2, 3, dtype=torch.bfloat16)
    t = torch.tensor([0.5, 0.4], dtype=torch.float64)
    out = make("er-sde", FLOW).jump(denoiser, x, t, t - 0.024, 3, None)
    assert out.dtype == torch.bfloat16


def test_walk_errors():
    denoiser, x, t_n, t_m, noises = problem(SD)
    solver = make("ddim", SD, eta=0.2)
    with pytest.raises(UserError, match="jump must be a multiple of substeps"):
        solver.jump(denoiser, x, t_n, t_m, 5, None)
    with pytest.raises(UserError, match="got 3 noises for 2 sub-steps"):
        solver.jump(denoiser, x, t_n, t_m, 2, None, noises=noises)
    with pytest.raises(UserError, match="expected t < s"):
        solver.step(denoiser, x, t_m, t_n, None, noises[0])
    with pytest.raises(UserError, match="got no noise"):
        solver.step(denoiser, x, t_n, t_m, None, None)
    with pytest.raises(UserError, match="got noise of shape"):  # of which all samples would have the same
        solver.step(denoiser, x, t_n, t_m, None, noises[0][:1])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "er_sde",
            {},
            r"got solver 'er_sde'; expected one of 'ddim', 'er-sde', 'dpmpp-sde'. Did you mean 'er-sde'",
        ),
        (
            "ddim",
            {"etta": 0.2},
            r"got option of solver ddim 'etta'; expected one of 'eta'. Did you mean 'eta'",
        ),
        ("ddim", {"eta": 1.5}, "a finite number from 0 to 1"),
        ("ddim", {"eta": "big"}, "got eta 'big'"),
        ("dpmpp-sde", {"eta": -0.1}, "got eta -0.1"),
        ("dpmpp-sde", {"eta": float("inf")}, "finite"),
        ("dpmpp-sde", {"order": 3}, "got order 3; expected one of 1, 2"),
        ("er-sde", {"order": 4}, "expected one of 1, 2, 3"),
        ("er-sde", {"order": True}, "got order True"),
        ("er-sde", {"phi": "6"}, "got phi '6'; expected one of 'ode', '1', '2', '3', '4', '5'"),
        ("er-sde", {"phi": 5}, "got phi 5"),
    ],
)
def test_make_errors(name, options, message):
    with pytest.raises(UserError, match=message):
        make(name, SD, **options)


@pytest.mark.parametrize(("name", "options"), [("ddim", {"eta": 0.3}), ("er-sde", {"order": 3}), ("dpmpp-sde", {})])
def test_a_sample_on_clean_data_rests_while_others_walk(name, options):
    """The lowest jumps of a grid end early: each sample is what it would be alone with its own shorter walk."""
    solver, grid = make(name, SD, **options), JumpGrid(SD)
    x, *noises = (torch.randn(4, 2, generator=torch.Generator().manual_seed(k)) for k in range(4))
    t_n = torch.tensor([7, 15, 23, 999])
    walked = solver.walk(lambda x, t, cond: 0.5 * x, x, grid.substep_times(t_n), None, noises=noises)
    for row, steps in enumerate([1, 2, 3, 3]):
        times = [time[row : row + 1] for time in grid.substep_times(t_n)[: steps + 1]]
        own = [noise[row : row + 1] for noise in noises[:steps]]
        alone = solver.walk(lambda x, t, cond: 0.5 * x, x[row : row + 1], times, None, noises=own)
        torch.testing.assert_close(walked[row : row + 1], alone, rtol=0, atol=0)
