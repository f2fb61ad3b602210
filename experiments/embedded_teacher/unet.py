"""Stage 4: the U-Net, on all styles, from the weights it has.

ε-prediction on Stable Diffusion's schedule, as before: L = mean (ε − ε_θ(α x0 + σ ε, t, c))², t uniform, the caption
dropped in a tenth of the samples. Latents and token states are computed once, by the frozen encoder and text tower.
"""

import json
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from experiments.embedded_teacher.stage import Draw, Losses, StageConfig, Tensors, ahead, run_stage
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from scott.diffusion import DiscreteSchedule
from scott.errors import UserError
from scott.files import replacing, sha256_of
from scott.mini import scenes
from scott.teachers import LatentBackbone
from scott.teachers.fingerprint import fingerprints

CAPTION_DROPOUT = 0.1
SCENES = 65_536
STAGE = StageConfig(
    steps=40_000,
    batch_size=64,
    learning_rate=5e-4,
    warmup=500,
    ema_decay=0.9995,
    decay="last fifth",
    checkpoint_every=500,
)


class _Scenes(Dataset[tuple[Tensor, list[str]]]):
    """Pictures and captions of 64 scenes at a time."""

    def __init__(self, seed: int, shard: Path) -> None:
        self.seed, self.shard = seed, shard

    def __getitem__(self, chunk: int) -> tuple[Tensor, list[str]]:
        rows = range(64 * chunk, 64 * chunk + 64)
        drawn = [scenes.scene(row, split="train", seed=self.seed, shard=self.shard) for row in rows]
        return scenes.pictures(drawn, self.shard), [this.caption for this in drawn]


def cached(
    file: Path, teacher: LatentBackbone, shard: Path, *, seed: int, count: int, config: StageConfig
) -> dict[str, Tensor]:
    """Latents' `mean` and `std` (N, C, H, W) and token states `text` (N, L, D) of scenes, in fp16; kept in `file`.

    Raises `UserError` where that has them of other encoders or scenes.
    """
    made_of = {"encoders": fingerprints(teacher), "shard": sha256_of(shard), "seed": seed, "count": count}
    if not file.is_file():
        parts: dict[str, list[Tensor]] = {"mean": [], "std": [], "text": []}
        for pixels, captions in ahead(_Scenes(seed, shard), range(-(-count // 64)), config):
            mean, std = teacher.encode_images(pixels)
            text = teacher.encode_prompts(captions)["text"]
            for name, value in (("mean", mean), ("std", std), ("text", text)):
                parts[name].append(value.half().cpu().contiguous())
        file.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: torch.cat(values)[:count].contiguous() for name, values in parts.items()}
        with replacing(file) as partial:
            save_file(tensors, partial, {"made_of": json.dumps(made_of)})
    with safe_open(file, "pt") as there:
        if (there.metadata() or {}).get("made_of") != json.dumps(made_of):
            raise UserError(f"{file} was made of other encoders or scenes; delete it, or choose another folder")
    return load_file(file)


def train(
    folder: Path, teacher: LatentBackbone, shard: Path, *, seed: int, config: StageConfig
) -> UNet2DConditionModel:
    """Train (or resume) the network of `teacher`, in place; it ends as its weights' average, in eval mode."""
    teacher.to(config.device)
    data = dict[str, Tensor]()
    if not config.as_is:  # by encoders that may be half trained
        data = cached(folder / "data.safetensors", teacher, shard, seed=seed, count=SCENES, config=config)
    empty = teacher.encode_prompts([""])["text"].cpu()
    unet = teacher.network.requires_grad_(True).train()
    draw, losses = denoising(unet, data, empty)
    unet.load_state_dict(run_stage("unet", unet, draw, losses, config, folder, seed=seed))
    teacher.to("cpu")
    return unet.requires_grad_(False).eval()


def denoising(unet: nn.Module, data: Tensors, empty: Tensor) -> tuple[Draw, Losses]:
    """The stage's ε-prediction on the scenes that `cached` gives; `empty` are the empty caption's token states."""
    schedule = DiscreteSchedule.stable_diffusion()

    def draw(indices: range, generator: torch.Generator) -> Tensors:
        batch = len(indices)
        rows = torch.randint(len(data["mean"]), (batch,), generator=generator)
        mean, std, text = (data[name][rows].float() for name in ("mean", "std", "text"))
        x0 = mean + std * torch.randn(mean.shape, generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        t = torch.randint(1000, (batch,), generator=generator)
        dropped = torch.rand(batch, generator=generator) < CAPTION_DROPOUT
        text = torch.where(dropped[:, None, None], empty, text)
        return {"x_t": schedule.add_noise(x0, noise, t).float(), "t": t, "text": text, "noise": noise}

    def losses(drawn: Tensors) -> Tensors:
        return {"epsilon_mse": F.mse_loss(unet(drawn["x_t"], drawn["t"], drawn["text"]).sample, drawn["noise"])}

    return draw, losses
