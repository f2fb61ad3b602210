"""Teachers: how each family of diffusers pipelines becomes what `scott.diffusion` asks of a model."""

from scott.backbones.base import Backbone, Cond
from scott.backbones.latent import LatentBackbone
from scott.backbones.load import load_backbone

__all__ = ["Backbone", "Cond", "LatentBackbone", "load_backbone"]
