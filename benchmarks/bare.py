"""The same network calls with nothing around them: what a step and a sample would cost if all else were free."""

import torch
from torch import Tensor

from scott.guidance import expand_cond
from scott.teachers import Cond, LatentBackbone

TIME = 500
"""A network costs the same at every time."""


def bare_step(backbone: LatentBackbone, x: Tensor, cond: Cond, uncond: Cond, substeps: int) -> None:
    """The calls of a LoRA step with its critic: `substeps` doubled batches of the teacher, the target, the student
    with its gradient, and the critic on a fake and on a real batch with both gradients."""
    network, adapters = backbone.network, backbone.adapters
    t = torch.full((len(x),), TIME)
    both = {name: torch.cat([leaf, cond[name]]) for name, leaf in expand_cond(uncond, len(x)).items()}
    doubled = torch.cat([x, x]), torch.cat([t, t]), both
    with torch.no_grad():
        for _ in range(substeps):
            backbone.predict(network, *doubled)
        with adapters.use("target"):
            backbone.predict(network, x, t, cond)
    with adapters.use("student"):
        fake = backbone.predict(network, x, t, cond)
    fake_logits, real_logits = (backbone.critic(images, t, cond) for images in (fake, x))
    student, critic = (
        list(parameters.values())
        for parameters in (
            backbone.student_parameters(),
            backbone.adapters.parameters("critic"),
        )
    )
    torch.autograd.grad(fake.mean() + fake_logits.mean(), student, retain_graph=True)
    torch.autograd.grad(fake_logits.mean() + real_logits.mean(), critic)


@torch.no_grad()
def bare_sample(backbone: LatentBackbone, noise: Tensor, cond: Cond, steps: int) -> Tensor:
    """`steps` network calls and a decoding."""
    t = torch.full((len(noise),), TIME)
    x = noise
    for _ in range(steps):
        x = backbone.predict(backbone.network, x, t, cond)
    return backbone.vae.decode(x).sample
