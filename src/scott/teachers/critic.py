"""The critic: the network's own forward pass, hooks on the layers whose features are read, and a head for each.

    D = w · f + b                       f: what the last layer is fed
    D = w · h + ⟨V c̄, h⟩ + b           h = φ(g + W₃ g),  g = φ(W₁ (f − μ) / s);  f: what a layer inside gives out

The paper's critic (SCott, AAAI 2025) reads the decoder's last features and adapts the decoder alone: until there the
frozen encoder runs as the teacher's does. Table 7 has two other forms: a trained copy of the whole network, and one
that knows neither time nor text. "heads" adapts nothing and reads several depths, each of which has a say of its own,
as in Projected GANs (Sauer et al. 2021); no block behind the last of them runs.

W₁ is 1x1 to 64 channels, W₃ 3x3, φ a LeakyReLU of slope 0.2; μ and s are the data's, by channel, and fixed. ⟨V c̄, h⟩,
of the mean text embedding c̄, is the projection of a text-conditional critic (Miyato & Koyama 2018).
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scott.choices import unknown
from scott.guidance import expand_cond
from scott.teachers.lora import lora_targets

if TYPE_CHECKING:
    from scott.teachers import Cond
    from scott.teachers.network import LatentBackbone

KINDS = ("lora", "full", "unconditional", "heads")
WIDTH = 64


class LastHead(nn.Linear):
    """The head on the last features, (B, C, H, W) → logits (B, 1, H, W)."""

    def forward(self, features: Tensor, cond: "Cond | None" = None) -> Tensor:
        # a copy, of one channel: FSDP2 warns of wrong gradients where a module gives out a view
        return super().forward(features.movedim(1, -1)).movedim(-1, 1).clone()


class Head(nn.Module):
    """The head on a layer inside, (B, C, H, W) and the text → logits (B, 1, H, W)."""

    def __init__(self, channels: int, text: int) -> None:
        super().__init__()
        self.mean, self.std = nn.Buffer(torch.zeros(channels, 1, 1)), nn.Buffer(torch.ones(channels, 1, 1))
        self.inner = nn.Conv2d(channels, WIDTH, 1)
        self.residual = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.logit = nn.Conv2d(WIDTH, 1, 1)
        self.text = nn.Linear(text, WIDTH, bias=False)

    def forward(self, features: Tensor, cond: "Cond") -> Tensor:
        mask = cond.get("mask", cond["text"].new_ones(cond["text"].shape[:2]))
        text = (cond["text"] * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        g = F.leaky_relu(self.inner((features - self.mean) / self.std), 0.2)
        h = F.leaky_relu(g + self.residual(g), 0.2)
        return self.logit(h) + (self.text(text.float())[:, :, None, None] * h).sum(1, keepdim=True)


class Critic(nn.Module):
    """The critic of a backbone, which it gives what it needs under the name "critic".

    That is an adapter of this `rank` ("lora", "unconditional"), a copy ("full"), or the network cut short ("heads").
    Raises `UserError` for an unknown kind, or what `Adapters.add` refuses.
    """

    def __init__(self, backbone: "LatentBackbone", rank: int, kind: str = "lora") -> None:
        super().__init__()
        if kind not in KINDS:
            raise unknown("critic", kind, KINDS)
        self.backbone, self.kind = backbone, kind
        self._no_text: Cond = backbone.unconditional() if kind in ("unconditional", "heads") else {}
        self._features: list[Tensor] | None = None  # what is read, while the critic runs
        # hooks that are there from the start are a part of what torch.compile traces
        self.heads = nn.ModuleList(self._inside() if kind == "heads" else [self._last(rank)]).to(backbone.device)

    def _last(self, rank: int) -> LastHead:
        backbone, last = self.backbone, self.backbone.output_layer
        if self.kind == "full":
            network = backbone.copies["critic"] = backbone.copy_network({})
            network.get_submodule(last).requires_grad_(False)  # behind the features
        else:
            network = backbone.network
            layers = backbone.critic_layers or backbone.student_layers
            targets = lora_targets(network, backbone.decoder_prefixes, layers)
            backbone.adapters.add("critic", targets, rank, float(rank))
        layer: Any = network.get_submodule(last)
        layer.register_forward_pre_hook(self._keep)
        with self._initial_device():
            head = LastHead(layer.in_channels if hasattr(layer, "in_channels") else layer.in_features, 1)
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
        return head

    def _inside(self) -> Iterable[Head]:
        self.backbone.cut["critic"] = self.backbone.cut_network()
        for name, channels in self.backbone.feature_layers.items():
            self.backbone.network.get_submodule(name).register_forward_hook(self._keep)
            with self._initial_device():
                head = Head(channels, self._no_text["text"].shape[-1])
            yield head

    def _initial_device(self) -> torch.device:
        """Within it heads are made: on the CPU, so that they start alike on all devices."""
        return torch.device("meta" if self.backbone.device.type == "meta" else "cpu")

    def forward(self, x0: Tensor, t: Tensor, cond: "Cond") -> Tensor:
        """Logits (B, P) of x0 (B, C, H, W), given times t (B,), at the positions of the finest layer read, in fp32.

        Those of a coarser layer are repeated, so each counts as much as another in a mean over positions.
        """
        if self.kind == "unconditional":
            t = torch.full_like(t, self.backbone.schedule.t_data)
            cond = expand_cond({name: value.to(x0.device) for name, value in self._no_text.items()}, len(x0))
        logits = [head(f, cond) for head, f in zip(self.heads, self.features(x0, t, cond), strict=True)]
        finest = max((level.shape[-2:] for level in logits), key=lambda size: size[0] * size[1])
        return torch.cat([F.interpolate(level, finest).flatten(1) for level in logits], dim=1)

    def features(self, x0: Tensor, t: Tensor, cond: "Cond") -> list[Tensor]:
        """What is read, (B, C, H, W) each in fp32; tokens (B, N, C) lie in rows of the latents' shape."""
        self._features = features = list[Tensor]()
        try:
            self.backbone.output("critic", x0, t, cond)
        finally:
            self._features = None
        read = [self.backbone.image_part(f, x0) for f in features]
        rows = [round((f.shape[1] * x0.shape[-2] / x0.shape[-1]) ** 0.5) for f in read]
        maps = [f if f.ndim == 4 else f.mT.unflatten(2, (n, -1)) for f, n in zip(read, rows, strict=True)]
        return [f.float() for f in maps]

    def _keep(self, layer: nn.Module, given: tuple[Any, ...], output: Any = None) -> None:
        """Of a layer that has run its output, and of one that is about to its input."""
        if self._features is not None:
            features = given[0] if output is None else output
            self._features.append(features[-1] if isinstance(features, tuple) else features)

    @torch.no_grad()
    def standardise(self, batches: Iterable[tuple[Tensor, "Cond"]]) -> None:
        """Take μ and s of all of the data's x0 and their conditions, at the time of clean data."""
        schedule, moments = self.backbone.schedule, list[Tensor]()
        heads: list[Any] = [*self.heads]
        for x0, cond in batches:
            t = torch.full((len(x0),), schedule.t_data, dtype=schedule.time_dtype, device=x0.device)
            # on the CPU: Apple's GPUs have no float64
            flat = [f.transpose(0, 1).flatten(1).cpu().double() for f in self.features(x0, t, cond)]
            new = [torch.stack([torch.ones_like(f).sum(1), f.sum(1), (f * f).sum(1)]) for f in flat]
            moments = [a + b for a, b in zip(moments, new, strict=True)] if moments else new
        for head, (count, total, squares) in zip(heads, moments, strict=True):
            mean = total / count
            head.mean.copy_(mean.view(-1, 1, 1))
            head.std.copy_((squares / count - mean**2).clamp(min=1e-12).sqrt().view(-1, 1, 1))

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters of the adapter or the copy, and the heads', as `heads.<index>.<name>`."""
        own = self.backbone.parameters("critic")
        heads = {f"heads.{name}": parameter for name, parameter in self.heads.named_parameters()}
        return {name: parameter for name, parameter in own.items() if parameter.requires_grad} | heads
