"""Which metrics there are, which network each reads, and what comes with a figure: interval, floor, seeds."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from scott.errors import UserError
from scott.evaluation import neighbours
from scott.evaluation.distances import cmmd, frechet_distances, kid, spread
from scott.evaluation.matrices import Matrix, feature_pair, resamples

FEATURES = "features"
"""The instrument of the metrics that take any network's features: `--features`."""
ENOUGH = 1000
"""Samples of a figure worth reading."""
SPREAD_CAPTIONS = 50
"""Captions of which several pictures each are drawn for the diversity."""
FeatureSets = Mapping[str, Tensor]
"""Instrument → its features (N, D) of the same N pictures or captions."""


@dataclass(frozen=True)
class Metric:
    instrument: str
    values: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    """(real, fake, weights (R, M)) → (R,); None of a metric of nearest neighbours, which are computed together."""
    captions: bool = False
    """Compares each picture with its caption, not with real pictures."""
    higher_is_better: bool = False
    bounds: tuple[float, float] = (-math.inf, math.inf)
    """What it can be at least and at most, which bounds its intervals."""


def clip_score(image_features: Matrix, text_features: Matrix) -> float:
    """Mean cosine of image and caption features, each (N, D), in [−1, 1] (CLIPScore: Hessel et al. 2021).

    The plain cosine, as in the paper's tables (0.318 for SD1.5): CLIPScore's max(·, 0) and its factor are
    left out. Raises `ValueError` on different shapes or non-finite features.
    """
    return cosines(image_features, text_features).mean().item()


def cosines(image_features: Matrix, text_features: Matrix) -> Tensor:
    """Of each image and its own caption, (N,)."""
    images, texts = feature_pair(("image", image_features), ("text", text_features))
    if len(images) != len(texts):
        raise ValueError(f"got {len(images)} image features and {len(texts)} text features, expected pairs")
    return F.cosine_similarity(images, texts, dim=1)


def _mean_cosine(texts: Tensor, fake: Tensor, weights: Tensor) -> Tensor:
    return weights @ cosines(fake, texts) / len(fake)


def _mean_preference(texts: Tensor, fake: Tensor, weights: Tensor) -> Tensor:
    return 100 * _mean_cosine(texts, fake, weights)  # PickScore's exp(logit_scale) is at CLIP's bound, 100


_positive = (0.0, math.inf)
_distance: dict[str, Any] = {"values": frechet_distances, "bounds": _positive}
_share: dict[str, Any] = {"higher_is_better": True, "bounds": (0.0, 1.0)}
METRICS = {
    "fid": Metric(FEATURES, **_distance),
    "fid-clean": Metric("inception-clean", **_distance),
    "kid": Metric(FEATURES, kid),
    "precision": Metric(FEATURES, **_share),
    "recall": Metric(FEATURES, **_share),
    "density": Metric(FEATURES, higher_is_better=True, bounds=_positive),
    "coverage": Metric(FEATURES, **_share),
    "spread": Metric(FEATURES, spread, bounds=_positive),
    "fd-dinov2": Metric("dinov2", **_distance),
    "fd-efficientnet": Metric("efficientnet", **_distance),
    "clip-fid": Metric("clip-b", **_distance),
    "cmmd": Metric("clip-l", cmmd, bounds=_positive),
    "clip-score": Metric("clip", _mean_cosine, captions=True, higher_is_better=True, bounds=(-1.0, 1.0)),
    "preference": Metric("pickscore", _mean_preference, captions=True, higher_is_better=True, bounds=(-100.0, 100.0)),
}
SHOWN = ("place", "size", "background")
"""What is read off a picture itself, where the data allow it (`references.Reference.reading`)."""
USUAL = ("fid", "clip-score", "coverage")


@dataclass(frozen=True)
class Figure:
    """A metric of one sampler."""

    value: float
    """Mean over seeds."""
    interval: tuple[float, float] | None = None
    """95 % over the sampler's samples: value ± 1.96 standard deviations of the bootstrap, which draws the same captions
    again for every seed; of distances to first order, and of recall over halves of the samples. About the value, since
    a resample, which repeats samples, is biased as a smaller sample is; and by the deviation, which as few resamples
    tell better than quantiles of 2.5 %. Real pictures and their balls are kept as they are."""
    floor: float | None = None
    """The metric of as many real pictures as the sampler drew."""
    seeds: tuple[float, ...] = ()
    """The value of each seed, where there are several."""

    @property
    def excess(self) -> float | None:
        """Over the floor: what is left of a distance when the bias of a finite sample is taken off."""
        return None if self.floor is None else self.value - self.floor


@dataclass(frozen=True)
class Resampled:
    """A metric of one set of samples."""

    values: Tensor
    """(1 + R,): of the set as it is, then of its resamples, which are alike for all sets of as many."""
    bounds: tuple[float, float]


def check_metrics(names: Collection[str]) -> None:
    known = (*METRICS, *SHOWN)
    if unknown := [name for name in names or [""] if name not in known]:
        raise UserError(f"got the metric {unknown[0] or 'of no name'}; expected some of {', '.join(known)}")


def instruments_of(metrics: Collection[str]) -> set[str]:
    return {METRICS[name].instrument for name in metrics if name in METRICS}


def figures(
    metrics: Collection[str], real: FeatureSets, texts: FeatureSets, fake: FeatureSets, replicates: int = 0
) -> dict[str, Figure]:
    """The figures of one set of fakes, with intervals where there are `replicates`; see `resampled`."""
    return over_seeds([resampled(metrics, real, texts, fake, replicates)])


def resampled(
    metrics: Collection[str], real: FeatureSets, texts: FeatureSets, fake: FeatureSets, replicates: int
) -> dict[str, Resampled]:
    """Each metric of one set of fakes, left out where it has nothing to compare with: real features, or captions'."""
    if not metrics:
        return {}
    (count,) = {len(features) for features in fake.values()}
    weights = resamples(count, replicates)
    found: dict[str, Tensor] = {}
    for name in metrics:
        metric = METRICS[name]
        against = (texts if metric.captions else real).get(metric.instrument)
        if against is not None and metric.values is not None:
            found[name] = metric.values(against, fake[metric.instrument], weights)
    near = [name for name in neighbours.NAMES if name in metrics]
    if near and FEATURES in real:
        found |= neighbours.neighbours(real[FEATURES], fake[FEATURES], weights, only=near)
    return {name: Resampled(values, METRICS[name].bounds) for name, values in found.items()}


def over_seeds(each: Sequence[Mapping[str, Resampled]], floor: Mapping[str, Figure] | None = None) -> dict[str, Figure]:
    """One figure a metric of several seeds, of as many samples each, beside the floor's."""
    found = {}
    for name in each[0]:
        several = [one[name] for one in each]
        values = torch.stack([one.values for one in several])
        by_seed, drawn_again = tuple(values[:, 0].tolist()), values[:, 1:].mean(dim=0)
        drawn_again = drawn_again[drawn_again.isfinite()]
        value, interval = fmean(by_seed), None
        if len(drawn_again) > 1:
            half = 1.96 * drawn_again.std().item()
            least, most = min(one.bounds[0] for one in several), max(one.bounds[1] for one in several)
            interval = max(least, value - half), min(most, value + half)
        real = floor[name].value if floor and name in floor else None
        found[name] = Figure(value, interval, real, by_seed if len(by_seed) > 1 else ())
    return found


def means(shown: Mapping[str, Sequence[Tensor]], replicates: int) -> dict[str, Resampled]:
    """Name → mean of its values, in parts, over those that are not NaN; left out where all are."""
    found = {}
    for name, parts in shown.items():
        values = torch.cat([part.reshape(-1) for part in parts]).double()
        if (known := values.isfinite()).any():
            weights = resamples(len(values), replicates)
            some, mean = values[known], weights @ values.where(known, 0) / (weights @ known.double())
            found[name] = Resampled(mean, (some.min().item(), some.max().item()))
    return found


def few(samples: int) -> str | None:
    """That a sample is small for any metric; None where it is not."""
    return f"{samples:,} samples are few for any figure; draw {ENOUGH:,} or more." if samples < ENOUGH else None


def too_small(name: str, figure: Figure, samples: int, width: int) -> str | None:
    """Why a sample is too small for a metric of features (N, `width`); None where it is not."""
    if name in METRICS and METRICS[name].values is frechet_distances and samples <= width:
        way_out = "draw more" if figure.floor is None else "read its excess"
        return f"{name}: {samples:,} samples do not fill the covariance of {width:,} features; {way_out}."
    if name == "kid" and figure.interval is not None and figure.interval[0] <= 0:
        return f"kid: {samples:,} samples do not tell it from 0, which it estimates without bias."
    if name == "coverage" and figure.floor is not None:
        deviation = math.sqrt(2 * figure.floor * (1 - figure.floor) / samples)  # of a difference of shares
        if figure.value >= figure.floor - 2 * deviation:
            return f"coverage: at its ceiling, real pictures' {figure.floor:.3f} at {samples:,} samples, within chance."
    return None
