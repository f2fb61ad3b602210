"""U-Net LoRA keys and metadata as sd-scripts writes them, which A1111, ComfyUI, sd-scripts and diffusers read.

    SD1.x, SD2.x   lora_unet_<diffusers' layer>            lora_unet_up_blocks_1_resnets_0_conv1
    SDXL           lora_unet_<layer of the SGM code>       lora_unet_output_blocks_3_0_in_layers_2

Each has `lora_down.weight` (A), `lora_up.weight` (B) and `alpha`.
"""

import json
from collections.abc import Sequence

from scott.export.ldm import unet_names
from scott.teachers import LatentBackbone
from scott.teachers.sdxl import SDXLBackbone


def kohya_keys(backbone: LatentBackbone, layers: Sequence[str]) -> dict[str, str]:
    """Layer of the backbone's U-Net → its key, without `lora_down.weight` and the like."""
    names = dict(zip(layers, layers, strict=True))
    if _has_sgm_layout(backbone):
        original = unet_names(backbone.network, [f"{layer}.weight" for layer in layers])
        names = {layer: original[f"{layer}.weight"].removesuffix(".weight") for layer in layers}
    return {layer: f"lora_unet_{name.replace('.', '_')}" for layer, name in names.items()}


def _has_sgm_layout(backbone: LatentBackbone) -> bool:
    """Whether the network is laid out as SDXL's: an upsampler comes after attention, which is how readers tell it."""
    if not isinstance(backbone, SDXLBackbone) or not isinstance(backbone.network.config.layers_per_block, int):
        return False
    return all(hasattr(block, "attentions") for block in backbone.network.up_blocks if block.upsamplers)


def base_model(backbone: LatentBackbone) -> str:
    """Which of sd-scripts' base models a U-Net is of: sd_v1, sd_v2 or sdxl_base_v1-0."""
    if isinstance(backbone, SDXLBackbone):
        return "sdxl_base_v1-0"
    # SD2.x, and no SD1.x, has linear layers before and after its attention
    return "sd_v2" if backbone.network.config.use_linear_projection else "sd_v1"


def kohya_metadata(backbone: LatentBackbone, rank: int, alpha: float, title: str) -> dict[str, str]:
    """By which programs tell what a LoRA is for: `ss_*` of sd-scripts and `modelspec.*`."""
    base = base_model(backbone)
    return {
        "ss_base_model_version": base,
        "ss_v2": str(base == "sd_v2"),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{alpha:g}",
        "ss_network_args": json.dumps({"conv_dim": rank, "conv_alpha": alpha}),
        **modelspec(backbone, title, "/lora"),
    }


def modelspec(backbone: LatentBackbone, title: str, kind: str = "") -> dict[str, str]:
    """What a file is, in Stability AI's `modelspec.*`."""
    v = backbone.prediction == "v_prediction"
    architectures = {
        "sdxl_base_v1-0": "stable-diffusion-xl-v1-base",
        "sd_v2": f"stable-diffusion-v2-{'768-v' if v else '512'}",
        "sd_v1": "stable-diffusion-v1",
    }
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architectures[base_model(backbone)] + kind,
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        "modelspec.resolution": f"{backbone.resolution}x{backbone.resolution}",
        "modelspec.prediction_type": "v" if v else "epsilon",
    }
