"""Stage 1: the text tower learns to keep size, place, background and style in its token states.

A contrastive loss against an image tower that pools lets the place go: what no picture's embedding tells apart, no
caption's has to. So the tower is trained on by classification of everything a caption says, read by linear heads off
the token states the U-Net attends to (their mean, maximum and minimum over tokens), and off the projected embedding
that the CLIP score compares. The heads are thrown away. The states are held near those they were, so that what the
U-Net has learnt of them stays true.

    L = Σ_a CE(W_a pool(states)) + Σ_a CE(V_a embedding) + w mean (states − earlier states)²      over attributes a
"""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from experiments.embedded_teacher.first.clip import tokenize
from experiments.embedded_teacher.stage import StageConfig, Tensors, run_stage
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from scott.mini import glyphs, scenes
from scott.mini.scenes import Scene

STAGE = StageConfig(steps=1200, batch_size=128, learning_rate=5e-4, ema_decay=0.99)
ANCHOR = 1.0
"""w, the weight of staying near the earlier states, whose variance is 1 (a layer norm ends the tower)."""


def attributes(shard: Path) -> dict[str, list[str]]:
    """What a caption says → its values; a caption that leaves the style open has the style "any"."""
    return {
        "subject": list(glyphs.load(shard)),
        "size": list(scenes.SIZES),
        "place": list(scenes.PLACES),
        "background": list(scenes.BACKGROUNDS),
        "style": [*glyphs.styles(shard), "any"],
    }


def labels(drawn: Sequence[Scene], values: dict[str, list[str]]) -> dict[str, Tensor]:
    """Attribute → index of each scene's value, (B,)."""
    said = {name: [getattr(this, name) for this in drawn] for name in values}
    said["style"] = [this.style if this.named else "any" for this in drawn]
    return {name: torch.tensor([values[name].index(value) for value in said[name]]) for name in values}


def pooled(states: Tensor) -> Tensor:
    """Mean, maximum and minimum over tokens: (B, L, D) → (B, 3 D)."""
    return torch.cat([states.mean(1), states.amax(1), states.amin(1)], dim=1)


class Heads(nn.ModuleDict):
    """A linear classifier an attribute; the loss is the sum of their cross entropies."""

    def __init__(self, width: int, values: dict[str, list[str]]) -> None:
        super().__init__({name: nn.Linear(width, len(options)) for name, options in values.items()})

    def loss(self, features: Tensor, said: dict[str, Tensor]) -> Tensor:
        return torch.stack([F.cross_entropy(head(features), said[name]) for name, head in self.items()]).sum()


def train(
    folder: Path, clip: CLIPModel, tokenizer: CLIPTokenizer, shard: Path, *, seed: int, config: StageConfig
) -> None:
    """Train (or resume) the text tower and the text projection of `clip`, in place."""
    torch.manual_seed(seed)
    values = attributes(shard)
    width = clip.config.text_config.hidden_size
    tower = nn.ModuleDict({"model": clip.text_model, "projection": clip.text_projection}).train()
    of_states, of_embedding = Heads(3 * width, values), Heads(clip.config.projection_dim, values)
    heads = nn.ModuleDict({"states": of_states, "embedding": of_embedding})
    earlier = copy.deepcopy(clip.text_model).to(config.device).eval().requires_grad_(False)

    def draw(indices: range, generator: torch.Generator) -> Tensors:
        drawn = [scenes.scene(index, split="train", seed=seed, shard=shard) for index in indices]
        return labels(drawn, values) | {"ids": tokenize(tokenizer, [this.caption for this in drawn])}

    def losses(drawn: Tensors) -> Tensors:
        out = clip.text_model(drawn["ids"])
        states = out.last_hidden_state
        with torch.no_grad():
            before = earlier(drawn["ids"]).last_hidden_state
        return {
            "states": of_states.loss(pooled(states), drawn),
            "embedding": of_embedding.loss(clip.text_projection(out.pooler_output), drawn),
            "moved": ANCHOR * F.mse_loss(states, before),
        }

    module = nn.ModuleDict({"tower": tower, "heads": heads})
    module.load_state_dict(run_stage("text", module, draw, losses, config, folder, seed=seed))
    tower.eval()


@torch.no_grad()
def probe(
    encoder: nn.Module,
    tokenizer: CLIPTokenizer,
    shard: Path,
    *,
    fitted_on: int = 8192,
    measured_on: int = 4096,
    seed: int = 11,
    ridge: float = 1e-3,
) -> dict[str, float]:
    """How well a linear probe tells each attribute from the tower's pooled token states: share right, held-out
    captions.

    Ridge regression onto one-hot values, fitted on captions of the training split. `place` is also told of small
    subjects alone (`small_place`), which have nine; the style of a caption that names none is "any".
    """
    values = attributes(shard)

    def states(split: scenes.Split, count: int) -> tuple[Tensor, list[Scene]]:
        drawn = scenes.Scenes(count, split, seed, shard).scenes()
        chunks = [[this.caption for this in drawn[start : start + 256]] for start in range(0, count, 256)]
        return torch.cat([pooled(encoder(tokenize(tokenizer, c)).last_hidden_state) for c in chunks]).double(), drawn

    (x, known), (asked, drawn) = states("train", fitted_on), states("held-out", measured_on)
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, asked = (F.pad((features - mean) / std, (0, 1), value=1.0) for features in (x, asked))
    gram = x.T @ x + ridge * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    found, truth = labels(known, values), labels(drawn, values)
    right = {}
    for name, index in found.items():
        weights = torch.linalg.solve(gram, x.T @ F.one_hot(index, len(values[name])).double())
        right[name] = ((asked @ weights).argmax(1) == truth[name]).double()
    small = torch.tensor([this.size == "small" for this in drawn])
    shares = {name: hits.mean().item() for name, hits in right.items()}
    return shares | {"small_place": right["place"][small].mean().item()}
