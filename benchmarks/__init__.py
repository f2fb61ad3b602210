"""How fast a training step and a sample are, as ratios to the least that could do the work (see README.md)."""
