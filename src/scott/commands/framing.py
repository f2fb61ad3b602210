"""The sampler of a picture that `scott sample` is asked for: of what size, from what, and away from what."""

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from scott.commands.drawn import Drawn
from scott.data.pictures import FORMATS, cropped, decode, quietly
from scott.data.records import Skip
from scott.diffusion import Denoiser
from scott.errors import UserError, first_line
from scott.guidance import GuidedDenoiser
from scott.samplers import StudentSampler
from scott.students import Student
from scott.teachers import LatentBackbone


def drawing(student: Student, asked: Drawn) -> StudentSampler:
    """The sampler of what is asked for. Raises `UserError` for what the student cannot draw."""
    network, away = student.network, asked.negative_prompt
    size = picture_size(student.backbone, asked)
    if away is not None:
        network = _away_from(student, away, asked.guidance, size)
    omega = student.guidance(asked.guidance) if away is None else 1.0
    sampler = student.sampler(asked.steps, omega, asked.timesteps, asked.gamma)
    if asked.image is None:
        return replace(sampler, network=network, size=size)
    if hasattr(student.backbone.network, "session"):
        raise UserError("got --image with --engine onnx, which draws from noise alone; leave one out")
    start = fitted(asked.image, size or (student.backbone.resolution,) * 2)
    sampler = replace(sampler, network=network, size=size, image=start, strength=asked.fraction)
    if not sampler.times:
        raise UserError(
            f"got --strength {asked.fraction} of {asked.steps} steps, which leaves none; "
            f"expected {math.ceil(1000 / asked.steps) / 1000:g} (one) to 1"
        )
    return sampler


def _away_from(student: Student, prompt: str, omega: float | None, size: tuple[int, int] | None) -> Denoiser:
    """A student that was trained without guidance, under its teacher's classifier-free guidance."""
    if student.info is None or student.info.guidance_max > 1:
        raise UserError(
            f"got --negative-prompt; the guidance of {student.name} is built into its network, which sees the prompt "
            "alone; leave it out"
        )
    if omega is None or omega <= 1:
        raise UserError("got --negative-prompt without --guidance above 1, by which it would count; give one")
    backbone = student.backbone
    uncond = backbone.unconditional(prompt) | {"guidance": torch.ones(1, device=backbone.device)}
    uncond |= backbone.size_cond(*size) if size else {}
    return GuidedDenoiser(student.network, uncond, omega, rescale=backbone.rescale_guided)


def picture_size(backbone: LatentBackbone, asked: Drawn) -> tuple[int, int] | None:
    """Height and width in pixels that are asked for, if any are. Raises `UserError` for what a network cannot draw."""
    if asked.height is None and asked.width is None:
        return None
    size = (asked.height or backbone.resolution, asked.width or backbone.resolution)
    network = backbone.network
    is_onnx = hasattr(network, "session")
    if backbone.fixed_size or (is_onnx and backbone.part != "unet"):
        name = type(backbone.pipeline).__name__
        raise UserError(f"got --height or --width, and this {name} draws {backbone.resolution} pixels a side alone")
    least = backbone.least_side
    if is_onnx:
        least *= 2 ** (len(network.config.block_out_channels) - 1)
    if any(side < least or side % least for side in size):
        raise UserError(f"got height {size[0]} and width {size[1]}; expected multiples of {least}")
    places = getattr(network.config, "pos_embed_max_size", None)
    if places and max(size) > places * least:
        raise UserError(f"got height {size[0]} and width {size[1]}; the network has positions for {places * least}")
    return size


def fitted(file: Path, size: tuple[int, int]) -> Tensor:
    """A picture (1, 3, H, W) in [0, 1], resized and cropped to a height and width."""
    try:
        with quietly():
            image = decode(file.read_bytes())
    except (OSError, ValueError, Skip) as error:
        why = error.reason if isinstance(error, Skip) else first_line(error)
        expected = f"expected a picture as --image, one of {', '.join(FORMATS)}"
        raise UserError(f"{file} cannot be read ({why}); {expected}") from None
    return cropped(image, [size])[None].float() / 255
