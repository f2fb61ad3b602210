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
# # Inside a training step
#
# The embedded teacher is distilled for some updates, by the loop that `scott distill` has, written out; then one step is
# taken apart: what is noised, where the teacher walks, what the student is told to say, and what the critic thinks of it.
# Everything needed comes with the package; a minute on a laptop's CPU.

# %%
import matplotlib.pyplot as plt
import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from scott.data.batch import Batch
from scott.diffusion import ConsistencyFunction
from scott.mini.embedded import load_teacher
from scott.mini.scenes import Scenes, pictures
from scott.recipes.configs import mini
from scott.rng import generator_for
from scott.training.draws import Draws
from scott.training.step import Distillation

plt.rcParams |= {"figure.dpi": 60, "image.interpolation": "nearest"}
UPDATES = 40
SCENES = 256
BATCH = 8
config = mini(method="paper", critic_rank=16, batch_size=BATCH, max_steps=UPDATES)

# %% [markdown]
# ## One resident network
#
# The teacher is Stable Diffusion in miniature: a VAE, a text encoder and a U-Net of 5 million parameters. The recipe `mini`
# in the paper's form (`--method paper`) trains a full copy as the student (and another is its moving average, the target); the critic is the teacher's own network
# with a LoRA on its decoder and one small head.

# %%
teacher = load_teacher()
torch.manual_seed(0)
teacher.add_student(config.train)
teacher.add_critic(config.critic_rank, config.critic)
for name, parameters in (("student", teacher.student_parameters()), ("critic", teacher.critic_parameters())):
    print(f"{name}: {sum(p.numel() for p in parameters.values()):,} parameters are trained")

# %% [markdown]
# ## Data
#
# Pictures and captions, encoded once: the latents' mean and standard deviation, and the text encoder's states.

# %%
scenes = Scenes(SCENES, "train").scenes()
mean, std = teacher.encode_images(pictures(scenes))
data = Batch(mean, std, teacher.encode_prompts([scene.caption for scene in scenes]))
distillation = Distillation.of(teacher, config)
grid, solver = distillation.grid, distillation.solver
print(f"{grid.substeps} sub-steps of {config.solver} a jump; samples in 4 steps stop at {grid.inference_times(4)}")

# %% [markdown]
# ## The loop
#
# `Distillation.step` adds the gradients of both losses to the parameters, and returns their terms. All that is random in
# a step is in its `Draws`, of a generator that the seed and the number of the step decide: so a run can be resumed, or a
# step taken again.


# %%
def draws_of(step):
    generator = generator_for(config.seed, step)
    rows = torch.randint(SCENES, (BATCH,), generator=generator)
    return data[rows], Draws.make(data[rows].mean.shape, grid, config, generator), rows


student, target = list(teacher.student_parameters().values()), list(teacher.target_parameters().values())
optimizers = [
    torch.optim.AdamW(student, lr=config.learning_rate),
    torch.optim.AdamW(teacher.critic_parameters().values(), lr=config.critic_learning_rate),
]
history = []
for step in range(UPDATES):
    batch, draws, _ = draws_of(step)
    terms = distillation.step(batch, draws)
    history.append({name: float(value) for name, value in terms.items() if value.ndim == 0})
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    get_ema_multi_avg_fn(config.ema_decay)(target, student, None)

figure, axes = plt.subplots(1, 3, figsize=(12, 2.6))
for axis, names in zip(axes, (["consistency"], ["adversarial", "critic"], ["adversarial_ratio"]), strict=True):
    for name in names:
        axis.plot([row[name] for row in history], label=name)
    axis.set_xlabel("update")
    axis.legend()
plt.show()

# %% [markdown]
# ## One step, taken apart
#
# x0 is noised to x_n at t_n. The guided teacher walks from there to x̂_m at t_m, a jump of its stochastic solver, in sub-steps
# of which each keeps a part of the noise and redraws the rest. Student and target are asked at both ends where it all comes from; the loss is the distance of what they say. Decoded, in columns
# from little noise to much:

# %%
batch, draws, rows = draws_of(UPDATES)
order = draws.t_n.argsort()[::2]
batch, draws, rows = batch[order], draws[order], rows[order]
cond = batch.cond | {"guidance": draws.omega}
with torch.no_grad():
    x0 = batch.mean + batch.std * draws.latent
    x_n = teacher.schedule.add_noise(x0, draws.noise, draws.t_n)
    times, guided = grid.substep_times(draws.t_n), teacher.guided_teacher(distillation.uncond, draws.omega)
    walked = {
        f"sub-step {k}" if k < grid.substeps else "walk's end x̂_m": solver.walk(
            guided, x_n, times[: k + 1], batch.cond, noises=draws.walk[:k]
        )
        for k in range(1, grid.substeps + 1)
    }
    x_m = walked["walk's end x̂_m"]
    assert torch.equal(x_m, distillation.walk(batch, draws))
    f_n = ConsistencyFunction(teacher.student, teacher.schedule)(x_n, draws.t_n, cond)
    f_m = ConsistencyFunction(teacher.target, teacher.schedule)(x_m, grid.target(draws.t_n), cond)


def show(named, columns):
    _, axes = plt.subplots(len(named), len(columns), figsize=(2.1 * len(columns), 2.1 * len(named)))
    for row, (name, latents) in zip(axes, named.items(), strict=True):
        for axis, picture in zip(row, teacher.decode(latents), strict=True):
            axis.imshow(picture.permute(1, 2, 0).numpy())
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(name, fontsize=10)
    for axis, title in zip(axes[0], columns, strict=True):
        axis.set_title(title, fontsize=10)
    plt.tight_layout()
    plt.show()


show(
    {"x0": x0, "x_n": x_n} | walked | {"target f⁻(x̂_m)": f_m, "student f(x_n)": f_n},
    [f"t_n {n} → t_m {m}" for n, m in zip(draws.t_n.tolist(), grid.target(draws.t_n).tolist(), strict=True)],
)
for row in rows.tolist():
    print(scenes[row].caption)

# %% [markdown]
# ## How far the walk strays
#
# The walk is stochastic: another draw of its noise ends elsewhere, and the target with it. An L2 loss learns the mean over
# these ends, so what differs between them is lost to the student unless the critic brings it back. Over 8 walks from the
# same x_n, the target's standard deviation, beside how far it is from the student:

# %%
with torch.no_grad():
    ends = []
    for again in range(8):
        walk = [torch.randn(noise.shape, generator=generator_for(1, again, k)) for k, noise in enumerate(draws.walk)]
        other = Draws(**{**vars(draws), "walk": walk})
        end = distillation.walk(batch, other)
        ends.append(ConsistencyFunction(teacher.target, teacher.schedule)(end, grid.target(draws.t_n), cond))
spread = torch.stack(ends).std(0).square().mean((1, 2, 3)).sqrt()
distance = (torch.stack(ends).mean(0) - f_n).square().mean((1, 2, 3)).sqrt()
for t, of_targets, off in zip(draws.t_n.tolist(), spread.tolist(), distance.tolist(), strict=True):
    print(f"t_n {t:4d}: targets differ by {of_targets:.3f}, the student is {off:.3f} from their mean")

# %% [markdown]
# ## What the critic thinks
#
# Its head answers with logits, one a place; above zero (blue) it takes what it sees there for data. Under L_D it is pushed up on
# x0 and down on the student's f(x_n); under L_adv the student climbs.

# %%
with torch.no_grad():
    on_data = teacher.critic(x0, torch.full_like(draws.t_n, teacher.schedule.t_data), cond)
    on_student = teacher.critic(f_n, draws.t_n, cond)
side = x0.shape[-1]
maps = {
    name: logits.unflatten(1, (-1, side, side)).mean(1) for name, logits in (("data", on_data), ("student", on_student))
}
most = max(logits.abs().max().item() for logits in maps.values())

figure, axes = plt.subplots(2, len(order), figsize=(2.4 * len(order), 4))
for row, (name, logits) in zip(axes, maps.items(), strict=True):
    for axis, picture, t in zip(row, logits, draws.t_n.tolist(), strict=True):
        shown = axis.imshow(picture, cmap="RdBu", vmin=-most, vmax=most)
        axis.set_title(f"t_n {t}: {picture.mean():.2f}", fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
    row[0].set_ylabel(name, fontsize=10)
figure.colorbar(shown, ax=axes, label="logit")
plt.show()
