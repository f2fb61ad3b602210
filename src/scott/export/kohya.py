"""U-Net LoRA keys and metadata as sd-scripts writes them, which A1111, ComfyUI, sd-scripts and diffusers read.

    SD1.x, SD2.x   lora_unet_<diffusers' layer>            lora_unet_up_blocks_1_resnets_0_conv1
    SDXL           lora_unet_<layer of the SGM code>       lora_unet_output_blocks_3_0_in_layers_2

Each has `lora_down.weight` (A), `lora_up.weight` (B) and `alpha`. The SGM code numbers layer j of block i of a U-Net
with p layers a block as input_blocks 1 + (p + 1) i + j and output_blocks (p + 1) i + j, resnet 0 and attention 1.
"""

import json
import re

from scott.teachers import LatentBackbone

_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
_RESNET = {"conv1": "in_layers.2", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}


def kohya_key(backbone: LatentBackbone, layer: str) -> str:
    """The key of a layer of the backbone's U-Net, without `lora_down.weight` and the like."""
    if _has_sgm_layout(backbone):
        layer = sgm_layer(layer, backbone.network.config.layers_per_block)
    return f"lora_unet_{layer.replace('.', '_')}"


def sgm_layer(layer: str, per_block: int) -> str:
    """The name in the SGM code of a layer inside the blocks of an SDXL U-Net, named as diffusers does."""
    if middle := _MIDDLE.fullmatch(layer):
        kind, index, rest = middle.groups()
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(index)}.{_RESNET.get(rest, rest)}"
    found = _BLOCK.fullmatch(layer)
    assert found, layer
    side, block, kind, index, rest = found.groups()
    first = (per_block + 1) * int(block)
    if kind == "downsamplers":
        return f"input_blocks.{first + per_block + 1}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{first + per_block}.2.{rest}"
    place = f"input_blocks.{first + int(index) + 1}" if side == "down" else f"output_blocks.{first + int(index)}"
    return f"{place}.{int(kind == 'attentions')}.{_RESNET.get(rest, rest)}"


def _has_sgm_layout(backbone: LatentBackbone) -> bool:
    """Whether the network is laid out as SDXL's: an upsampler comes after attention, which is how readers tell it."""
    if not _is_sdxl(backbone) or not isinstance(backbone.network.config.layers_per_block, int):
        return False
    return all(hasattr(block, "attentions") for block in backbone.network.up_blocks if block.upsamplers)


def kohya_metadata(backbone: LatentBackbone, rank: int, alpha: float, title: str) -> dict[str, str]:
    """By which programs tell what a LoRA is for: `ss_*` of sd-scripts, `modelspec.*` of Stability AI."""
    config, v = backbone.network.config, backbone.prediction == "v_prediction"
    if _is_sdxl(backbone):
        base, architecture = "sdxl_base_v1-0", "stable-diffusion-xl-v1-base"
    elif config.use_linear_projection:  # SD2.x, and no SD1.x, has linear layers before and after its attention
        base, architecture = "sd_v2", f"stable-diffusion-v2-{'768-v' if v else '512'}"
    else:
        base, architecture = "sd_v1", "stable-diffusion-v1"
    return {
        "ss_base_model_version": base,
        "ss_v2": str(base == "sd_v2"),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{alpha:g}",
        "ss_network_args": json.dumps({"conv_dim": rank, "conv_alpha": alpha}),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        "modelspec.resolution": f"{backbone.resolution}x{backbone.resolution}",
        "modelspec.prediction_type": "v" if v else "epsilon",
    }


def _is_sdxl(backbone: LatentBackbone) -> bool:
    return type(backbone.pipeline).__name__ == "StableDiffusionXLPipeline"
