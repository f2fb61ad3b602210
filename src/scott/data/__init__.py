"""From captioned pictures, wherever they are, to batches of latents and text embeddings."""

from scott.data.batch import Batch, BatchSource
from scott.data.settings import Settings
from scott.data.shard_source import ShardSource

__all__ = ["Batch", "BatchSource", "Settings", "ShardSource"]
