"""Every family's tiny pipeline: `FAMILIES[family](folder)` writes it; `TINY` has a smaller one besides."""

from functools import partial

from tests.tiny import flows, stable

FLOWS = {
    "sd35": stable.tiny_sd35,
    "sd35-large": partial(stable.tiny_sd35, dual_attention_layers=()),
    "flux": flows.tiny_flux,
    "chroma": flows.tiny_chroma,
    "flux2-klein": flows.tiny_flux2,
    "qwen-image": flows.tiny_qwen_image,
    "z-image": flows.tiny_z_image,
    "sana": flows.tiny_sana,
}
FAMILIES = FLOWS | {
    "sd1": stable.tiny_sd,
    "sd2": partial(stable.tiny_sd, prediction_type="v_prediction", use_linear_projection=True),
    "sdxl": stable.tiny_sdxl,
    "pixart": stable.tiny_pixart,
    "sd3": stable.tiny_sd3,
}
FEW = {"block_out_channels": (32,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
TINY = FAMILIES | {"few": partial(stable.tiny_sd, **FEW)}
"""With an SD1.5 of a third of the layers, for what takes by their number: dynamo's traces."""
