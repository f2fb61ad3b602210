"""From captioned pictures, wherever they are, to batches of latents and text embeddings."""
