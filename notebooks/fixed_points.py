# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What a student of each solver converges to
#
# On a mixture of three Gaussians the score is known, and so is the consistency function of the ODE. What the student of a
# *stochastic* solver converges to follows by backing its target up the grid, over Gauss-Hermite quadrature: no network, no
# training error (`experiments/mixture`). What is wrong with the samples below is the method's own doing.

# %%
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

sys.path.append(str(next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "experiments").is_dir())))

from experiments.mixture.data import THREE_MODES
from experiments.mixture.exact import THRESHOLDS
from experiments.mixture.fixed_point import FixedPoint

from scott.diffusion import DiscreteSchedule, JumpGrid
from scott.solvers import make

schedule = DiscreteSchedule.stable_diffusion()
grid = JumpGrid(schedule)
print(f"{grid.substeps} sub-steps a jump, {len(grid.times)} times from {grid.times[0]} to {grid.times[-1]}")

# %% [markdown]
# ## Four students
#
# Squared L2 learns the mean of its target. With the ODE the target has no spread and nothing is lost; with noise in the
# walk the mean lies inside, jump for jump, and the samples shrink. An energy score, for a student that is given noise of
# its own, is least where its law is the target's: the noise costs it nothing.

# %%
STUDENTS = {
    "ODE (DDIM)": FixedPoint(THREE_MODES, make("ddim", schedule, eta=0.0), grid),
    "DDIM, η = 0.2": FixedPoint(THREE_MODES, make("ddim", schedule, eta=0.2), grid),
    "ER-SDE-5": FixedPoint(THREE_MODES, make("er-sde", schedule, phi="5", order=1), grid),
    "ER-SDE-5, energy score": FixedPoint(THREE_MODES, make("er-sde", schedule, phi="5", order=1), grid, THRESHOLDS),
}
SAMPLES = 20_000

print(f"{'Wasserstein-1 (standard deviation)':36}{'1 step':>16}{'2 steps':>16}{'4 steps':>16}")
drawn = {}
for name, student in STUDENTS.items():
    line = f"{name:36}"
    for steps in (1, 2, 4):
        drawn[name, steps] = student.sample(steps, SAMPLES, torch.Generator().manual_seed(steps))
        w1, std = THREE_MODES.wasserstein(drawn[name, steps]), drawn[name, steps].std().item()
        line += f"{w1:8.3f} ({std:.3f})"
    print(line)

# %%
figure, axes = plt.subplots(2, len(STUDENTS), figsize=(13, 5), sharex=True, sharey=True)
data = THREE_MODES.sample(SAMPLES, torch.Generator().manual_seed(0))[:, 0]
bins = torch.linspace(-2.5, 2.5, 101).tolist()
for row, steps in zip(axes, (1, 2), strict=True):
    for axis, name in zip(row, STUDENTS, strict=True):
        axis.hist(data.tolist(), bins, density=True, color="lightgray", label="data")
        axis.hist(drawn[name, steps].tolist(), bins, density=True, histtype="step", label=f"{steps}-step samples")
        axis.set_title(name if steps == 1 else "")
        axis.legend(fontsize=7)
plt.tight_layout()
plt.show()

# %% [markdown]
# ## Seen as a function
#
# f(x, t_max) over the states of pure noise. The ODE's student is the exact quantile map; noise in the walk pulls it towards
# the mean.

# %%
for name, student in list(STUDENTS.items())[:3]:
    plt.plot(student.states[-1], student.values[-1][:, 0], label=name)
exact = THREE_MODES.consistency_function(student.states[-1], *student.levels(len(grid.times) - 1))
plt.plot(student.states[-1], exact, "k:", label="exact, of the ODE")
plt.xlim(-3, 3)
plt.ylim(-2.5, 2.5)
plt.xlabel("x at t = 999")
plt.ylabel("f(x)")
plt.legend()
plt.show()

# %% [markdown]
# ## How much is lost to the noise
#
# The same, over η of DDIM: what a critic has to bring back, or an energy score never loses.

# %%
ETAS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.6)
lossy = [FixedPoint(THREE_MODES, make("ddim", schedule, eta=eta), grid) for eta in ETAS]
for steps in (1, 2, 4):
    drawn = [student.sample(steps, SAMPLES, torch.Generator().manual_seed(steps)) for student in lossy]
    plt.plot(ETAS, [samples.std().item() for samples in drawn], marker="o", label=f"{steps} step{'s'[: steps - 1]}")
plt.axhline(1, color="black", linewidth=0.8)
plt.xlabel("η")
plt.ylabel("standard deviation of samples / of data")
plt.legend()
plt.show()
