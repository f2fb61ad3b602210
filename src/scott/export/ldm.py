"""The names that the original code (LDM, for SDXL SGM) has for a pipeline's weights, which checkpoints have.

diffusers has readers of these names and no writer. What a reader does is found out by having it read: it converts all
names that the original code can have, each with its place in their list for a value, and what it makes of them, turned
round, says the original name of each weight. A weight whose name is not found so would be lost, and is an error.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from types import SimpleNamespace

import torch
from diffusers import ModelMixin
from diffusers.loaders.single_file_utils import (
    DIFFUSERS_TO_LDM_MAPPING,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import Tensor
from transformers import PreTrainedModel

from scott.errors import UserError

Reader = Callable[[dict[str, Tensor]], Mapping[str, Tensor | None]]
UNET, VAE = "model.diffusion_model.", "first_stage_model."
_RESNET = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection", "op")
_VAE_RESNET = ("norm1", "conv1", "norm2", "conv2", "nin_shortcut")
_VAE_ATTENTION = ("norm", "q", "k", "v", "proj_out")
_CLIP_BLOCK = ("attn.out_proj", "ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj")
_ENDS = ("weight", "bias")


def unet_names(unet: ModelMixin, names: Sequence[str]) -> dict[str, str]:
    """Name of a U-Net's weight → its name in the original code, without `UNET`. Raises `UserError` without one."""
    per_block = unet.config.layers_per_block
    if not isinstance(per_block, int):  # which diffusers' reader takes for granted
        raise UserError(f"the original code has no names for {list(per_block)} layers a block; use --to diffusers")
    attention = {m[1] for name in names if (m := re.search(r"\.attentions\.\d+\.(.+)", name))}
    tables = DIFFUSERS_TO_LDM_MAPPING["unet"]
    candidates = {name for table in tables.values() for name in table.values()}
    places = [f"input_blocks.{i}" for i in range(1, 1 + len(unet.down_blocks) * (per_block + 1))]
    for i, block in enumerate(unet.up_blocks):
        entries = [f"output_blocks.{i * (per_block + 1) + j}" for j in range(per_block + 1)]
        places += entries
        # an upsampler comes behind the resnet and, where there is one, the attention
        candidates |= {f"{entries[-1]}.{1 + hasattr(block, 'attentions')}.conv.{end}" for end in _ENDS}
    resnets = [f"{place}.0" for place in places] + ["middle_block.0", "middle_block.2"]
    candidates |= {".".join(parts) for parts in product(resnets, _RESNET, _ENDS)}
    candidates |= {f"{place}.1.{leaf}" for place, leaf in product([*places, "middle_block"], attention)}

    def read(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return convert_ldm_unet_checkpoint({f"{UNET}{key}": value for key, value in tensors.items()}, unet.config)

    return inverse(read, names, candidates)


def vae_names(vae: ModelMixin) -> dict[str, str]:
    """Name of a VAE's weight → its name in the original code, without `VAE`. Raises `UserError` where it has none."""
    levels, layers = range(len(vae.config.block_out_channels)), range(vae.config.layers_per_block + 1)
    sides = [(f"{side}.{way}", f"{way}sample") for side, way in (("encoder", "down"), ("decoder", "up"))]
    resnets = [f"{side}.{level}.block.{layer}" for (side, _), level, layer in product(sides, levels, layers)]
    resnets += [f"{side}.mid.block_{index}" for side, index in product(("encoder", "decoder"), (1, 2))]
    modules = [f"{resnet}.{leaf}" for resnet, leaf in product(resnets, _VAE_RESNET)]
    modules += [f"{side}.{level}.{sampler}.conv" for (side, sampler), level in product(sides, levels)]
    modules += [f"{side}.mid.attn_1.{leaf}" for side, leaf in product(("encoder", "decoder"), _VAE_ATTENTION)]
    candidates = {*DIFFUSERS_TO_LDM_MAPPING["vae"].values(), *(".".join(pair) for pair in product(modules, _ENDS))}
    return inverse(lambda tensors: convert_ldm_vae_checkpoint(tensors, vae.config), list(vae.state_dict()), candidates)


def open_clip_names(encoder: PreTrainedModel, names: Iterable[str]) -> dict[str, str]:
    """Name of a text encoder's weight → its name in OpenCLIP, where q, k and v of a layer are one tensor."""
    blocks = [f"transformer.resblocks.{index}" for index in range(encoder.config.num_hidden_layers)]
    candidates = {*DIFFUSERS_TO_LDM_MAPPING["openclip"]["layers"].values()}
    candidates |= {f"{block}.{leaf}.{end}" for block, leaf, end in product(blocks, _CLIP_BLOCK, _ENDS)}
    candidates |= {f"{block}.attn.in_proj_{end}" for block, end in product(blocks, _ENDS)}
    like = SimpleNamespace(config=SimpleNamespace(hidden_size=1))
    return inverse(lambda tensors: convert_open_clip_checkpoint(like, tensors, prefix=""), names, candidates)


def inverse(read: Reader, names: Iterable[str], candidates: Iterable[str]) -> dict[str, str]:
    """Of each of diffusers' `names`, which of the original ones its reader makes it of."""
    listed = sorted(candidates)
    # in_proj is split into three
    found = read({name: torch.full((3 if "in_proj" in name else 1, 1), i) for i, name in enumerate(listed)})
    original = {name: listed[int(value.flatten()[0])] for name, value in found.items() if value is not None}
    if lacking := [name for name in names if name not in original]:
        raise UserError(
            f"the original code has no name for {len(lacking)} weights, such as {lacking[0]}; use --to diffusers"
        )
    return {name: original[name] for name in names}
