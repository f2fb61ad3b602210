"""Stage 3: the VAE's decoder, trained on alone for sharper edges. The encoder stays, and with it every latent.

    L   = mean |x − D(z)| + ½ mean |∇x − ∇D(z)| + w_p perceptual(D(z), x) + w_a L_adv        z from the frozen encoder
    L_C = E[max(0, 1 − C(x))] + E[max(0, 1 + C(D(z)))],  L_adv = −E[C(D(z))]

C is a small patch critic, which joins after `CRITIC_FROM` steps. z gets noise of up to `NOISE` of its spread, since
what a sampler makes is not quite what the encoder does.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from experiments.embedded_teacher.stage import StageConfig, Tensors, run_stage
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from scott.evaluation import frechet_distance
from scott.evaluation.networks import efficientnet, efficientnet_input, efficientnet_lite0
from scott.mini import scenes
from scott.objective import hinge_discriminator

STAGE = StageConfig(
    steps=30_000,
    batch_size=16,
    learning_rate=1e-3,
    weight_decay=0.0,
    ema_decay=0.999,
    decay="last fifth",
    checkpoint_every=250,
)
PERCEPTUAL, ADVERSARIAL = 0.1, 0.02
CRITIC_FROM = 2000
NOISE = 0.05


class PatchCritic(nn.Sequential):
    """Logits (B, 1, 16, 16), each of a patch of 22 pixels (as in pix2pix, Isola et al. 2017), spectrally normalised."""

    def __init__(self, width: int = 32) -> None:
        layers: list[nn.Module] = []
        for inner, outer in ((3, width), (width, 2 * width)):
            layers += [spectral_norm(nn.Conv2d(inner, outer, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
        layers += [spectral_norm(nn.Conv2d(2 * width, 2 * width, 3, padding=1)), nn.LeakyReLU(0.2)]
        super().__init__(*layers, spectral_norm(nn.Conv2d(2 * width, 1, 3, padding=1)))


class Perceptual(nn.Module):
    """Σ_k mean |φ_k(a) − φ_k(b)| / mean |φ_k(b)| over the stem and the blocks `BLOCKS`, at the pictures' own size."""

    BLOCKS = (0, 2, 4)

    def __init__(self) -> None:
        super().__init__()
        self.network = efficientnet_lite0()

    def features(self, pixels: Tensor) -> Iterator[Tensor]:
        network = self.network
        x = network._swish(network._bn0(network._conv_stem(efficientnet_input(pixels))))
        yield x
        for index, block in enumerate(network._blocks[: self.BLOCKS[-1] + 1]):
            x = block(x)
            if index in self.BLOCKS:
                yield x

    def forward(self, decoded: Tensor, pixels: Tensor) -> Tensor:
        with torch.no_grad():
            real: Sequence[Tensor] = [*self.features(pixels)]
        pairs = zip(self.features(decoded), real, strict=True)
        return torch.stack([F.l1_loss(a, b) / b.abs().mean() for a, b in pairs]).sum()


def gradients(pixels: Tensor) -> Tensor:
    """Magnitude of the pixels' gradient, (B, 3, H − 1, W − 1)."""
    across, down = pixels.diff(dim=-1)[..., :-1, :], pixels.diff(dim=-2)[..., :-1]
    return (across**2 + down**2 + 1e-12).sqrt()


def edge_l1(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([F.l1_loss(a.diff(dim=dim), b.diff(dim=dim)) for dim in (-1, -2)]).sum()


def train(folder: Path, vae: AutoencoderKL, shard: Path, *, seed: int, config: StageConfig) -> None:
    """Train (or resume) the decoder of `vae`, in place."""
    torch.manual_seed(seed)
    vae.requires_grad_(False).eval()
    decoder = nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}).requires_grad_(True)
    critic, perceptual = PatchCritic(), Perceptual().to(config.device)
    vae.to(config.device)
    side = scenes.RESOLUTION // 2 ** (len(vae.config.block_out_channels) - 1)

    def draw(indices: range, generator: torch.Generator) -> Tensors:
        pixels = scenes.pictures([scenes.scene(i, split="train", seed=seed, shard=shard) for i in indices], shard)
        shape = (len(indices), vae.config.latent_channels, side, side)
        posterior = torch.randn(shape, generator=generator)
        scale = NOISE / vae.config.scaling_factor * torch.rand(len(indices), 1, 1, 1, generator=generator)
        added = scale * torch.randn(shape, generator=generator)
        joined = torch.tensor(float(indices.start >= CRITIC_FROM * config.batch_size))
        return {"pixels": pixels, "posterior": posterior, "added": added, "joined": joined}

    def losses(drawn: Tensors) -> Tensors:
        pixels = drawn["pixels"]
        with torch.no_grad():
            encoded = vae.encode(2 * pixels - 1).latent_dist
            latents = encoded.mean + encoded.std * drawn["posterior"] + drawn["added"]
        decoded = vae.decode(latents).sample / 2 + 0.5
        terms = {
            "pixel_l1": F.l1_loss(decoded, pixels),
            "edge_l1": 0.5 * edge_l1(decoded, pixels),
            "perceptual": PERCEPTUAL * perceptual(decoded, pixels),
        }
        logits = critic(torch.cat([pixels, decoded.detach()]))
        terms["critic"] = drawn["joined"] * hinge_discriminator(*logits.chunk(2)).loss
        critic.requires_grad_(False)
        terms["adversarial"] = -ADVERSARIAL * drawn["joined"] * critic(decoded).mean()
        critic.requires_grad_(True)
        return terms

    module = nn.ModuleDict({"decoder": decoder, "critic": critic})
    module.load_state_dict(run_stage("decoder", module, draw, losses, config, folder, seed=seed))
    vae.cpu().requires_grad_(False).eval()


@torch.no_grad()
def measure(vae: AutoencoderKL, shard: Path, *, samples: int = 1024, seed: int = 12) -> dict[str, float]:
    """Reconstructions of held-out pictures beside the pictures.

    l1: mean |x − D(z)|; edges: mean difference of the gradient's magnitude; colour: largest difference of a channel's
    mean; fd: Fréchet distance of EfficientNet-Lite0's features.
    """
    pixels = scenes.pictures(scenes.Scenes(samples, "held-out", seed, shard).scenes(), shard)
    decoded = torch.cat([vae.decode(vae.encode(2 * c - 1).latent_dist.mean).sample for c in pixels.split(64)])
    decoded = (decoded / 2 + 0.5).clamp(0, 1)
    features = efficientnet(None, "cpu")
    return {
        "l1": F.l1_loss(decoded, pixels).item(),
        "edges": F.l1_loss(gradients(decoded), gradients(pixels)).item(),
        "colour": (decoded - pixels).mean((0, 2, 3)).abs().max().item(),
        "fd": float(frechet_distance(features.images(pixels), features.images(decoded))),
    }
