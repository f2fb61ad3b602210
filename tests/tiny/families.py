"""Every family's tiny pipeline: `FAMILIES[family](folder)` writes it."""

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
