"""A critic that is heads on the frozen encoder: no adapter, and nothing of the network behind the last layer read.

    f = (features of a layer − μ) / s        μ, s: by channel, of the data, and fixed
    h = φ(g + W₃ g),  g = φ(W₁ f)            φ: LeakyReLU of slope 0.2;  W₁: 1x1 to 64 channels;  W₃: 3x3
    D = w · h + ⟨V c̄, h⟩ + b                 at every position;  c̄: the mean text embedding

⟨V c̄, h⟩ is the projection of a text-conditional critic (Miyato & Koyama 2018). As in Projected GANs (Sauer et al. 2021)
the features are those of a network that is not trained, at several depths, and each depth has a say of its own.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from scott.teachers import Cond
    from scott.teachers.network import LatentBackbone

WIDTH = 64


class Head(nn.Module):
    """One layer's head: features (B, C, H, W) and the mean text embedding (B, D) → logits (B, 1, H, W), in fp32."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, text: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))
        self.inner = nn.Conv2d(channels, WIDTH, 1)
        self.residual = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.logit = nn.Conv2d(WIDTH, 1, 1)
        self.text = nn.Linear(text, WIDTH, bias=False)

    def forward(self, features: Tensor, text: Tensor) -> Tensor:
        g = F.leaky_relu(self.inner((features - self.mean) / self.std), 0.2)
        h = F.leaky_relu(g + self.residual(g), 0.2)
        return self.logit(h) + (self.text(text)[:, :, None, None] * h).sum(1, keepdim=True)


class EncoderCritic(nn.Module):
    """Heads on the outputs of a backbone's `feature_layers`."""

    kind = "heads"

    def __init__(self, backbone: "LatentBackbone") -> None:
        super().__init__()
        self.backbone = backbone
        self._features: list[Tensor] | None = None  # what is read, while the critic runs
        text = backbone.unconditional()["text"].shape[-1]
        with torch.device(backbone.device):
            self.heads = nn.ModuleList(Head(channels, text) for channels in backbone.feature_layers.values())
        for name in backbone.feature_layers:
            backbone.network.get_submodule(name).register_forward_hook(self._keep)

    def forward(self, x0: Tensor, t: Tensor, cond: "Cond") -> Tensor:
        """Logits (B, P) of x0 (B, C, H, W) at the positions of the finest layer, those of a coarser one repeated.

        So each layer counts as much as another in a mean over positions.

        Args:
            t: (B,), the time that the critic is given.
            cond: the conditioning that it is given.
        """
        features, mask = self.features(x0, t, cond), cond.get("mask", cond["text"].new_ones(cond["text"].shape[:2]))
        text = (cond["text"] * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        logits = [head(f, text.float()) for head, f in zip(self.heads, features, strict=True)]
        finest = max((level.shape[-2:] for level in logits), key=lambda size: size[0] * size[1])
        return torch.cat([F.interpolate(level, finest).flatten(1) for level in logits], dim=1)

    def features(self, x0: Tensor, t: Tensor, cond: "Cond") -> list[Tensor]:
        """What the layers give out, (B, C, H, W) each in fp32; tokens (B, N, C) lie in rows of the latents' shape."""
        self._features = features = list[Tensor]()
        try:
            self.backbone.encode(x0, t, cond)
        finally:
            self._features = None
        read = (self.backbone.image_part(f, x0) for f in features)
        return [_as_map(f, x0.shape[-2] / x0.shape[-1]).float() for f in read]

    @torch.no_grad()
    def standardise(self, batches: Iterable[tuple[Tensor, "Cond"]]) -> None:
        """Take μ and s of all of the data's x0 and their conditions, at the time of clean data."""
        moments, schedule = list[Tensor](), self.backbone.schedule
        heads: list[Any] = [*self.heads]
        for x0, cond in batches:
            t = torch.full((len(x0),), schedule.t_data, dtype=schedule.time_dtype, device=x0.device)
            read = self.features(x0, t, cond)
            flat = [f.transpose(0, 1).flatten(1).double() for f in read]
            new = [torch.stack([torch.ones_like(f).sum(1), f.sum(1), (f * f).sum(1)]) for f in flat]
            moments = [a + b for a, b in zip(moments, new, strict=True)] if moments else new
        for head, (count, total, squares) in zip(heads, moments, strict=True):
            mean = total / count
            head.mean.copy_(mean.view(-1, 1, 1))
            head.std.copy_((squares / count - mean**2).clamp(min=1e-12).sqrt().view(-1, 1, 1))

    def trained(self) -> dict[str, nn.Parameter]:
        """The heads' parameters, as `heads.<index>.<layer>.<weight or bias>`."""
        return {f"heads.{name}": parameter for name, parameter in self.heads.named_parameters()}

    def _keep(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if self._features is not None:
            self._features.append(output[-1] if isinstance(output, tuple) else output)


def _as_map(features: Tensor, aspect: float) -> Tensor:
    """(B, C, H, W), H / W = aspect, of tokens (B, N, C) that go row by row; maps as they are."""
    if features.ndim == 4:
        return features
    height = round((features.shape[1] * aspect) ** 0.5)
    return features.transpose(1, 2).unflatten(2, (height, -1))
