"""Each metric of `scott evaluate` beside the same figure made by hand: `python -m benchmarks.metrics --help`.

Ours are of the command, on two folders of pictures. By hand they are of the networks and the preprocessing that the
publications' own packages have (torch-fidelity, open_clip, transformers, torchvision, Pillow), with the formulas
written out. Weights are random, in the published files' format; widths, sizes and patches are the published networks'.
"""

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor

try:
    from torchvision import transforms
except RuntimeError:  # PyPI's is built for CUDA's torch; beside a CPU's it lacks two operators that nothing here calls
    for operator in ("nms(Tensor dets, Tensor scores, float iou_threshold)", "qnms(Tensor a, Tensor b, float c)"):
        torch.library.define(f"torchvision::{operator.partition('(')[0]}", f"({operator.partition('(')[2]} -> Tensor")
    from torchvision import transforms

import open_clip
import torch_fidelity.feature_extractor_inceptionv3 as fidelity
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from transformers import CLIPModel, CLIPTokenizer, Dinov2Model
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from benchmarks import weights
from benchmarks.weights import CLIPS
from scott.cli import main as command_line
from scott.evaluation.measures import FEATURES, figures
from scott.evaluation.networks import efficientnet_lite0
from scott.evaluation.tables import markdown
from scott.mini.scenes import Scenes

COUNT, SIDE = 10, 256
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
METRICS = ["fid", "fid-clean", "kid", "precision", "recall", "density", "coverage"]
METRICS += ["clip-fid", "cmmd", "fd-dinov2", "fd-efficientnet", "clip-score", "preference"]


@dataclass(frozen=True)
class Options:
    layers: int = 2
    """Of each transformer."""
    small: bool = False
    """Towers of width 64 with an MLP of 128 and 2 heads instead."""


def main(options: Options, folder: Path) -> dict[str, tuple[str, float, float]]:
    """Metric → what its network is, our figure, and the one by hand."""
    torch.manual_seed(0)
    (real, _), (fake, captions) = write_pictures(folder / "real", 0), write_pictures(folder / "fake", 1)
    kind = (options.layers, options.small)
    files = {name: weights.write_clip(folder / name, *CLIPS[name][1:], *kind) for name in CLIPS}
    files["dinov2"] = weights.write_dinov2(folder / "dinov2", *kind)
    files["inception"] = weights.write_inception(folder / "inception.pth")
    open_clip_name = weights.write_open_clip(folder, *kind)

    ours = evaluated(folder, METRICS, files)
    other = evaluated(folder, ["clip-score"], {"inception": files["inception"], "clip": open_clip_name})
    by_hand = {
        **of_inception(real, fake, files["inception"]),
        **of_clips(real, fake, captions, files),
        "fd-dinov2": frechet(*(dinov2(pictures, files["dinov2"]) for pictures in (real, fake))),
        "fd-efficientnet": frechet(*(efficientnet(pictures) for pictures in (real, fake))),
    }
    networks = {"clip-fid": "clip-b", "cmmd": "clip-l", "clip-score": "clip", "preference": "pickscore"}
    kinds = {name: CLIPS[one][0] for name, one in networks.items()}
    kinds |= {"fd-dinov2": "ViT-L/14", "fd-efficientnet": "EfficientNet-Lite0, ImageNet"}
    found = {name: (kinds.get(name, "Inception-v3"), ours[name], by_hand[name]) for name in METRICS}
    unrounded = (found["fid-clean"][0], ours["fid-clean"], by_hand["fid-clean, not rounded"])
    scored = ("ViT-g-14", other["clip-score"], open_clip_score(fake, captions, folder))
    return (
        of_normals()
        | found
        | {"fid-clean, as clean-fid leaves it unrounded": unrounded, "clip-score, open_clip": scored}
    )


def write_pictures(folder: Path, seed: int) -> tuple[list[Image.Image], list[str]]:
    """Held-out scenes with captions, enlarged so that their edges are hard."""
    folder.mkdir()
    pictures, captions = [], []
    for index in range(COUNT):
        picture, caption = Scenes(COUNT, "held-out", seed)[index]
        pictures.append(picture.resize((SIDE, SIDE), Image.Resampling.NEAREST))
        pictures[-1].save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(caption)
        captions.append(caption)
    return pictures, captions


def scott(*words: object) -> None:
    sys.argv = ["scott", *map(str, words)]
    command_line()


def evaluated(folder: Path, metrics: Any, models: dict[str, Any]) -> dict[str, float]:
    """What the command finds of the pictures."""
    words = ["evaluate", folder / "fake", "--data", folder / "real", "--samples", COUNT, "--size", SIDE]
    words += ["--features", "inception", "--bootstrap", 0, "--metrics", *metrics, "--out", folder / "results.json"]
    scott(*words, "--models", *(part for item in models.items() for part in item))
    (row,) = json.loads((folder / "results.json").read_text())["rows"]
    return {name: figure["value"] for name, figure in row["metrics"].items()}


def stacked(pictures: list[Image.Image]) -> Tensor:
    """Bytes (B, 3, H, W)."""
    return torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures])


def frechet(real: Tensor, fake: Tensor) -> float:
    """Of few samples: with centred rows X and Y, C_1 C_2 has the nonzero eigenvalues of X Yᵀ Y Xᵀ / (n − 1)²."""
    a, b = real.double().numpy(), fake.double().numpy()
    x, y = (rows - rows.mean(axis=0) for rows in (a, b))
    n = len(x) - 1
    roots = np.sqrt(np.linalg.eigvals(x @ y.T @ y @ x.T).clip(0).real) / n
    return float(((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum() + ((x**2).sum() + (y**2).sum()) / n - 2 * roots.sum())


def floats(pictures: list[Image.Image], side: int) -> Tensor:
    """(B, 3, side, side) in [0, 255]: Pillow's antialiased bicubic, a channel at a time and not rounded."""
    size, kind = (side, side), Image.Resampling.BICUBIC
    channels = [[one.convert("F").resize(size, kind) for one in picture.split()] for picture in pictures]
    return torch.from_numpy(np.stack([[np.array(one) for one in each] for each in channels])).clamp(0, 255)


@contextmanager
def any_dtype() -> Iterator[None]:
    """torch-fidelity's Inception takes bytes alone; clean-fid hands it what the resize left."""
    keep, fidelity.vassert = fidelity.vassert, lambda *_: None
    yield
    fidelity.vassert = keep


@torch.no_grad()
def of_inception(real: list[Image.Image], fake: list[Image.Image], file: Path) -> dict[str, float]:
    network = weights.inception(file)
    x, y = (network(stacked(pictures))[0] for pictures in (real, fake))

    rounded = [network(floats(pictures, 299).round().byte())[0] for pictures in (real, fake)]
    with any_dtype():
        left = [network(floats(pictures, 299))[0] for pictures in (real, fake)]
    subsets = {"kid_subsets": 1, "kid_subset_size": COUNT, "verbose": False}
    balls = torch.cdist(x.double(), x.double()).sort().values[:, 5]  # the first is the point itself
    across = torch.cdist(x.double(), y.double())
    return {
        "fid": frechet(x, y),
        "fid-clean": frechet(*rounded),
        "fid-clean, not rounded": frechet(*left),
        "kid": kid_features_to_metric(x.double(), y.double(), **subsets)["kernel_inception_distance_mean"],
        **{name: value for name, value in prc_features_to_metric(y, x, verbose=False).items() if name != "f_score"},
        "density": (across < balls[:, None]).sum().item() / (5 * COUNT),
        "coverage": (across.min(dim=1).values < balls).double().mean().item(),
    }


@torch.no_grad()
def of_clips(
    real: list[Image.Image], fake: list[Image.Image], captions: list[str], files: dict[str, Any]
) -> dict[str, float]:
    def load(name: str) -> tuple[CLIPModel, CLIPImageProcessorPil]:
        model = CLIPModel.from_pretrained(files[name], dtype=torch.float32)
        return model, CLIPImageProcessorPil.from_pretrained(files[name])

    def embedded(name: str) -> list[Tensor]:
        model, processor = load(name)
        pixels = [processor(pictures, return_tensors="pt") for pictures in (real, fake)]
        return [model.get_image_features(**one).pooler_output for one in pixels]

    def cosine(name: str) -> float:
        model, processor = load(name)
        limits = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        tokens = CLIPTokenizer.from_pretrained(files[name])(captions, **limits)
        out = model(**tokens, **processor(fake, return_tensors="pt"))
        return (out.image_embeds * out.text_embeds).sum(dim=1).mean().item()

    x, y = (torch.nn.functional.normalize(rows).double() for rows in embedded("clip-l"))

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(a, b).square() / (2 * 10**2)).mean()

    return {
        "clip-fid": frechet(*embedded("clip-b")),
        "cmmd": 1000 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)).item(),
        "clip-score": cosine("clip"),
        "preference": 100 * cosine("pickscore"),
    }


@torch.no_grad()
def open_clip_score(pictures: list[Image.Image], captions: list[str], folder: Path) -> float:
    model, _, preprocess = open_clip.create_model_and_transforms("ViT-g-14", pretrained=str(folder / "g.pth"))
    images = model.eval().encode_image(torch.stack([preprocess(picture) for picture in pictures]), normalize=True)
    texts = model.encode_text(open_clip.get_tokenizer("ViT-g-14")(captions), normalize=True)
    return (images * texts).sum(dim=1).mean().item()


@torch.no_grad()
def dinov2(pictures: list[Image.Image], folder: Path) -> Tensor:
    """dgm-eval's transforms; the class token after the last norm."""
    resize = transforms.Resize((224, 224), transforms.InterpolationMode.BICUBIC)
    prepared = transforms.Compose([resize, transforms.ToTensor(), transforms.Normalize(*IMAGENET)])
    model = Dinov2Model.from_pretrained(folder)
    return model(torch.stack([prepared(picture) for picture in pictures])).last_hidden_state[:, 0]


@torch.no_grad()
def efficientnet(pictures: list[Image.Image]) -> Tensor:
    return efficientnet_lite0().extract_features((floats(pictures, 128) - 127) / 128).mean(dim=(2, 3))


def of_normals() -> dict[str, tuple[str, float, float]]:
    """torch-fidelity's own, of more samples than features, where its eigenvalues of C_1 C_2 are quick."""
    generator = torch.Generator().manual_seed(2)
    real, fake = (torch.randn(60, 12, dtype=torch.float64, generator=generator) for _ in range(2))
    fake = 1.4 * fake + 0.3
    statistics = map(fid_features_to_statistics, (real, fake))
    subsets = {"kid_subsets": 1, "kid_subset_size": 60, "verbose": False}
    theirs = fid_statistics_to_metric(*statistics, verbose=False) | kid_features_to_metric(real, fake, **subsets)
    theirs |= prc_features_to_metric(fake, real, verbose=False)
    keys = {"fid": "frechet_inception_distance", "kid": "kernel_inception_distance_mean"}
    names = ("fid", "kid", "precision", "recall")
    ours = figures(names, {FEATURES: real}, {}, {FEATURES: fake})
    return {
        f"{name}, of normals": ("60 x 12 normals", ours[name].value, theirs[keys.get(name, name)]) for name in names
    }


def relative(ours: float, theirs: float) -> float:
    return abs(ours - theirs) / abs(theirs) if theirs else math.copysign(0 if ours == 0 else math.inf, 1)


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    with TemporaryDirectory() as folder:
        found = main(options, Path(folder))
    rows = [[name, kind, f"{a:.6g}", f"{b:.6g}", f"{relative(a, b):.0e}"] for name, (kind, a, b) in found.items()]
    header = ["metric", "network", "scott", "by hand", "relative difference"]
    sys.stdout.write(markdown(header, rows))
