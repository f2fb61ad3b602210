"""Our figures beside torch-fidelity's and open_clip's own, as JSON: run by test_reference_packages.py.

A process of its own, since both packages import torchvision. Its wheel on PyPI is built for CUDA's torch; beside a
CPU's, two operators that nothing here calls have to be declared before it imports.
"""
# ruff: noqa: E402, I001

import json
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)
for operator in ("nms(Tensor dets, Tensor scores, float iou_threshold)", "qnms(Tensor a, Tensor b, float c)"):
    torch.library.define(f"torchvision::{operator.partition('(')[0]}", f"({operator.partition('(')[2]} -> Tensor")

import open_clip
import torchvision.transforms.functional as transforms
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from scott.cli import main
from scott.evaluation import frechet_distance
from scott.evaluation.distances import CMMD_SCALE, cmmd, kid
from scott.evaluation.networks import load
from scott.evaluation.neighbours import neighbours

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def random_inception(file: Path) -> None:
    """Weights as torch-fidelity's file has them, by name, shape and dtype, drawn at random."""
    torch.save({}, file)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        keep = FeatureExtractorInceptionV3.load_state_dict
        FeatureExtractorInceptionV3.load_state_dict = lambda self, state: None
        network = extractor(file)
        FeatureExtractorInceptionV3.load_state_dict = keep
    torch.save(network.state_dict(), file)


def extractor(file: Path) -> FeatureExtractorInceptionV3:
    return FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(file))


def largest(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@torch.no_grad()
def features(folder: Path) -> dict[str, float]:
    """Largest difference of features to the package's own, over the largest feature."""
    pixels = torch.randint(256, (2, 3, 40, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    file = folder / "inception.pth"
    theirs, images = extractor(file), pixels.float() / 255
    found = {"inception": largest(load("inception", str(file), "cpu").images(images), theirs(pixels)[0])}
    clean = transforms.resize(images, [299, 299], transforms.InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    clean = clean.mul(255).round().byte()
    found["inception-clean"] = largest(load("inception-clean", str(file), "cpu").images(images), theirs(clean)[0])

    (folder / "tiny.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder / "tiny.json")
    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms("tiny")
    torch.save(model.state_dict(), folder / "tiny.pth")
    ours = load("clip", f"open_clip:tiny@{folder / 'tiny.pth'}", "cpu")
    texts, square = ["a cat", "two dogs"], pixels[..., :32, :32]
    theirs = torch.stack([preprocess(transforms.to_pil_image(image)) for image in square])
    found["open_clip images"] = largest(ours.images(square.float() / 255), model.eval().encode_image(theirs))
    found["open_clip texts"] = largest(ours.texts(texts), model.encode_text(open_clip.get_tokenizer("tiny")(texts)))
    return found


def metrics() -> dict[str, tuple[float, float]]:
    """(ours, the package's) on random features."""
    generator = torch.Generator().manual_seed(2)
    real, fake = (torch.randn(60, 12, dtype=torch.float64, generator=generator) for _ in range(2))
    fake = 0.8 * fake + 0.3
    options = {"kid_subsets": 1, "kid_subset_size": 60, "verbose": False}
    near, theirs = neighbours(real, fake), prc_features_to_metric(fake, real, verbose=False)
    found = {name: (near[name].item(), theirs[name]) for name in ("precision", "recall")}
    distance = fid_statistics_to_metric(*map(fid_features_to_statistics, (real, fake)), verbose=False)
    found["fid"] = (frechet_distance(real, fake), distance["frechet_inception_distance"])
    found["kid"] = (
        kid(real, fake).item(),
        kid_features_to_metric(real, fake, **options)["kernel_inception_distance_mean"],
    )
    # CMMD's kernel, on unit vectors and without the diagonal: the biased estimate adds what the diagonal holds
    x, y = (torch.nn.functional.normalize(points, dim=1) for points in (real, fake))
    unbiased = kid_features_to_metric(x, y, kid_kernel="rbf", kid_kernel_rbf_sigma=10.0, **options)
    within = [torch.exp((points @ points.T - 1) / 100) for points in (x, y)]
    diagonal = sum(1 / 60 + kernel.sum() / 60**2 - (kernel.sum() - 60) / (60 * 59) - 1 / 60 for kernel in within)
    found["cmmd"] = (
        cmmd(real, fake).item(),
        CMMD_SCALE * (unbiased["kernel_inception_distance_mean"] + diagonal.item()),
    )
    return found


if __name__ == "__main__":
    folder, arguments = Path(sys.argv[1]), sys.argv[2:]
    random_inception(folder / "inception.pth")
    print(json.dumps({"features": features(folder), "metrics": metrics()}))  # noqa: T201
    sys.argv = ["scott", "evaluate", *arguments, "--models", "inception", str(folder / "inception.pth")]
    main()
