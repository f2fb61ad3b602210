"""From captioned images to batches of latents and text embeddings."""

from scott.data.batch import Batch, BatchSource, CachedSource
from scott.data.prepare import prepare
from scott.data.sources import CaptionedImages, Folder

__all__ = ["Batch", "BatchSource", "CachedSource", "CaptionedImages", "Folder", "prepare"]
