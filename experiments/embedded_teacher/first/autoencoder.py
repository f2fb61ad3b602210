"""The VAE of the embedded teacher: `AutoencoderKL`, factor 8, 8 latent channels, trained for clean edges."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from experiments.embedded_teacher.first.clip import SHARD
from experiments.embedded_teacher.stage import StageConfig, Tensors, run_stage
from torch import Tensor, nn
from torch.nn import functional as F

from scott.mini import scenes

KL_WEIGHT = 1e-6
STAGE = StageConfig(steps=3000, batch_size=16, learning_rate=2e-3, weight_decay=0.0, ema_decay=0.998)


def build_model() -> AutoencoderKL:
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=8,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=8,
        sample_size=scenes.RESOLUTION,
    )
    _initialise(vae)
    return vae


def _initialise(vae: AutoencoderKL) -> None:
    """Orthogonal convolutions and silent residual branches: the untrained network is a linear autoencoder.

    With the library's initialisation the colours alone take 500 steps to find; with this one, 30. The posterior starts
    narrow, or its noise drowns the untrained mean and the decoder learns to ignore the latents.
    """
    for name, module in vae.named_modules():
        if name.endswith((".conv2", ".to_out.0")):
            for parameter in module.parameters():
                nn.init.zeros_(parameter)
        elif isinstance(module, nn.Conv2d):
            nn.init.orthogonal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    with torch.no_grad():
        vae.quant_conv.weight[8:] *= 0.1
        vae.quant_conv.bias[8:] = -6.0


def reconstruction_terms(decoded: Tensor, pixels: Tensor) -> dict[str, Tensor]:
    """L2 finds the colours (L1 alone stays on a plateau of median grey), L1 and the edges' L1 make them crisp."""
    edges = sum(F.l1_loss(decoded.diff(dim=dim), pixels.diff(dim=dim)) for dim in (-1, -2))
    return {
        "pixel_l2": F.mse_loss(decoded, pixels),
        "pixel_l1": 0.5 * F.l1_loss(decoded, pixels),
        "edge_l1": 0.5 * torch.as_tensor(edges),
    }


def train(folder: Path, *, seed: int, config: StageConfig) -> AutoencoderKL:
    """Train (or resume) in `folder`; returns the averaged model with its `scaling_factor` measured, in eval mode."""
    torch.manual_seed(seed)
    vae = build_model().train()

    side = scenes.RESOLUTION // 2 ** (len(vae.config.block_out_channels) - 1)

    def draw(indices: range, generator: torch.Generator) -> Tensors:
        drawn = [scenes.scene(i, split="train", seed=seed, shard=SHARD) for i in indices]
        pixels = scenes.pictures(drawn, SHARD) * 2 - 1
        noise = torch.randn(len(pixels), vae.config.latent_channels, side, side, generator=generator)
        return {"pixels": pixels, "noise": noise}

    def losses(drawn: Tensors) -> Tensors:
        posterior = vae.encode(drawn["pixels"]).latent_dist
        decoded = vae.decode(posterior.mean + posterior.std * drawn["noise"]).sample
        return reconstruction_terms(decoded, drawn["pixels"]) | {"kl": KL_WEIGHT * posterior.kl().mean()}

    vae.load_state_dict(run_stage("autoencoder", vae, draw, losses, config, folder, seed=seed))
    vae.eval()
    with torch.no_grad():  # unit variance of the scaled latents, as in Stable Diffusion
        drawn = scenes.Scenes(1024, "train", seed, SHARD).scenes()
        latents = vae.encode(scenes.pictures(drawn, SHARD) * 2 - 1).latent_dist.mean
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    return vae
