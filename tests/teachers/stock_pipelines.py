"""Stock diffusers pipelines, run as their documentation says, for our samplers to be compared with."""

import torch
from diffusers import DDIMScheduler


def teacher_pipeline(backbone):
    """The teacher's own pipeline, under the ODE solver that scott's teacher sampler is."""
    pipeline = backbone.pipeline
    parts = dict(pipeline.components)
    if "FlowMatch" not in type(pipeline.scheduler).__name__:
        config = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}
        parts["scheduler"] = DDIMScheduler.from_config(pipeline.scheduler.config, **config)
    options = ("requires_safety_checker", "force_zeros_for_empty_prompt")
    return type(pipeline)(**parts, **{name: pipeline.config[name] for name in options if name in pipeline.config})


def draw(pipeline, prompt, steps, scale, seed, **options):
    """The final latent, in the scale the network sees."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompt,
        num_inference_steps=steps,
        guidance_scale=scale,
        # torch's own generator: SD3's pipeline hands no other to its scheduler
        generator=torch.manual_seed(seed),
        output_type="latent",
        **options,
    ).images


def assert_same_latents(ours, stock, tolerance=1e-4):
    """Equal up to `tolerance` of the latent's own spread, which is large where a network is untrained."""
    assert ours.shape == stock.shape
    difference = ((ours - stock).abs().max() / stock.std()).item()
    assert difference <= tolerance, f"off by {difference:.2g} of a spread"
