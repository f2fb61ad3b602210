"""Teachers: how each family of diffusers pipelines becomes what `scott.diffusion` asks of a model."""

from scott.teachers.base import Backbone, Cond
from scott.teachers.latent import LatentBackbone
from scott.teachers.load import load_backbone

__all__ = ["Backbone", "Cond", "LatentBackbone", "load_backbone"]
