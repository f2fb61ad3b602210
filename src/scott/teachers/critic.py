"""The critic: the network's own forward pass under the adapter "critic", what its last layer is fed, and a head.

    logits = w · f + b at every position of f, what the last layer is fed

The paper's critic (SCott, AAAI 2025) reads the decoder's last features, which is what the network's last layer is fed,
and adapts the decoder alone: until there the frozen encoder runs as the teacher's does. Table 7 has two other forms: a
trained copy of the whole network, and one that knows neither time nor text.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from scott.choices import unknown
from scott.guidance import expand_cond
from scott.teachers.lora import lora_targets

if TYPE_CHECKING:
    from scott.teachers import Cond
    from scott.teachers.network import LatentBackbone

KINDS = ("lora", "full", "unconditional")


class Critic(nn.Module):
    """One critic of a backbone. Its own parameters are the head's, which start at zero.

    Args:
        backbone: gets the adapter "critic" ("lora", "unconditional"), or the copy of that name ("full").
        rank: of the adapter.
        kind: one of `KINDS`.

    Raises:
        UserError: an unknown kind, or what `Adapters.add` refuses.
    """

    def __init__(self, backbone: "LatentBackbone", rank: int, kind: str = "lora") -> None:
        super().__init__()
        if kind not in KINDS:
            raise unknown("critic", kind, KINDS)
        self.backbone, self.kind = backbone, kind
        self._no_text: Cond = backbone.unconditional() if kind == "unconditional" else {}
        self._features: list[Tensor] | None = None  # what is read, while the critic runs
        if kind == "full":
            backbone.copies["critic"] = backbone.copy_network({})
            backbone.copies["critic"].get_submodule(backbone.output_layer).requires_grad_(False)  # behind the features
        else:
            targets = lora_targets(backbone.network, backbone.decoder_prefixes, backbone.critic_layers)
            backbone.adapters.add("critic", targets, rank, float(rank))
        network = backbone.copies.get("critic", backbone.network)
        layer: Any = network.get_submodule(backbone.output_layer)
        # a hook that is there from the start is a part of what torch.compile traces
        layer.register_forward_pre_hook(self._keep)
        channels = layer.in_channels if hasattr(layer, "in_channels") else layer.in_features
        self.heads = nn.ModuleList([nn.Linear(channels, 1, device=backbone.device)])
        for parameter in self.heads.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x0: Tensor, t: Tensor, cond: "Cond") -> Tensor:
        """Logits (B, P) of x0 (B, C, H, W) for the P positions of the features, in fp32.

        Args:
            t: (B,), the time that the critic is given.
            cond: the conditioning that it is given.
        """
        if self.kind == "unconditional":
            t = torch.full_like(t, self.backbone.schedule.t_data)
            cond = expand_cond({name: value.to(x0.device) for name, value in self._no_text.items()}, len(x0))
        self._features = features = list[Tensor]()
        try:
            self.backbone.output("critic", x0, t, cond)
        finally:
            self._features = None
        f = self.backbone.image_part(features[0], x0)
        f = f.permute(0, 2, 3, 1) if f.ndim == 4 else f  # channels last
        return self.heads[0](f.float()).flatten(1)

    def _keep(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self._features is not None:
            self._features.append(inputs[0])

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters of the adapter or the copy, and `heads.<index>.weight` and `.bias`."""
        own = self.backbone.parameters("critic")
        heads = {f"heads.{name}": parameter for name, parameter in self.heads.named_parameters()}
        return {name: parameter for name, parameter in own.items() if parameter.requires_grad} | heads
