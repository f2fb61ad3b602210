"""Stage 2: the image tower learns all styles, and to keep the place.

Contrastive against the text tower of stage 1, which stays as it is (as in LiT, Zhai et al. 2022): the pictures of a
batch are eight each of sixteen subjects, so that most of what has to be told apart is size, place, background and
style. Linear heads on the embedding, thrown away at the end, say what the picture shows.

    L = ½ [CE(s E_I E_Tᵀ) + CE(s E_T E_Iᵀ)] + Σ_a CE(W_a embedding)        E unit vectors, s = e^logit_scale
"""

from pathlib import Path

import torch
from experiments.embedded_teacher.first.clip import MEAN, STD, tokenize
from experiments.embedded_teacher.stage import StageConfig, Tensors, run_stage
from experiments.embedded_teacher.text import Heads, attributes, labels
from torch import nn
from transformers import CLIPModel, CLIPTokenizer

from scott.mini import scenes

SUBJECTS, PICTURES = 16, 8
"""Subjects of a batch, and pictures of each."""
POOL = 32_768
"""Scenes that batches are drawn from."""
STAGE = StageConfig(
    steps=1500, batch_size=SUBJECTS * PICTURES, learning_rate=5e-4, weight_decay=0.05, ema_decay=0.995, warmup=50
)


def train(
    folder: Path, clip: CLIPModel, tokenizer: CLIPTokenizer, shard: Path, *, seed: int, config: StageConfig
) -> None:
    """Train (or resume) the image tower, its projection and the scale of `clip`, in place."""
    torch.manual_seed(seed)
    values = attributes(shard)
    pool = scenes.Scenes(POOL, "train", seed, shard).scenes()
    of_subject = [[i for i, this in enumerate(pool) if this.subject == name] for name in values["subject"]]
    trained = nn.ModuleDict({"model": clip.vision_model, "projection": clip.visual_projection}).train()
    heads = Heads(clip.config.projection_dim, values | {"style": values["style"][:-1]})
    scale = nn.Module()
    scale.log = clip.logit_scale
    clip.text_model.eval().requires_grad_(False)
    clip.to(config.device)

    def draw(indices: range, generator: torch.Generator) -> Tensors:
        subjects = torch.randperm(len(of_subject), generator=generator)[:SUBJECTS].tolist()
        rows = [own[i] for s in subjects for own in (of_subject[s],) for i in _draw(len(own), generator)]
        drawn = [pool[row] for row in rows]
        shown = labels(drawn, values) | {"style": torch.tensor([values["style"].index(d.style) for d in drawn])}
        pixels = (scenes.pictures(drawn, shard) - MEAN) / STD
        return shown | {"pixels": pixels, "ids": tokenize(tokenizer, [this.caption for this in drawn])}

    def losses(drawn: Tensors) -> Tensors:
        with torch.no_grad():
            text = clip.text_projection(clip.text_model(drawn["ids"]).pooler_output)
        image = clip.visual_projection(clip.vision_model(pixel_values=drawn["pixels"]).pooler_output)
        unit_text, unit_image = (nn.functional.normalize(e, dim=1) for e in (text, image))
        logits = clip.logit_scale.clamp(max=4.6052).exp() * unit_image @ unit_text.T
        own = torch.arange(len(image), device=image.device)
        both = [nn.functional.cross_entropy(found, own) for found in (logits, logits.T)]
        return {"contrastive": torch.stack(both).mean(), "heads": heads.loss(image, drawn)}

    module = nn.ModuleDict({"tower": trained, "heads": heads, "scale": scale})
    module.load_state_dict(run_stage("image", module, draw, losses, config, folder, seed=seed))
    clip.cpu().eval()


def _draw(count: int, generator: torch.Generator) -> list[int]:
    return torch.randperm(count, generator=generator)[:PICTURES].tolist()
