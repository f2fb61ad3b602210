"""From captioned images to batches of latents and text embeddings."""

from scott.data.batch import Batch, BatchSource, CachedSource
from scott.data.images import CaptionedImages, Folder
from scott.data.prepare import prepare

__all__ = ["Batch", "BatchSource", "CachedSource", "CaptionedImages", "Folder", "prepare"]
