"""SCott: Stochastic Consistency Distillation of text-to-image diffusion models (AAAI 2025, arXiv 2403.01505).

One way through: a teacher and captioned images go in, `scott.training` distils a student, `scott.sampling` draws
with it in 1 to 8 steps, `scott.evaluation` measures it and `scott.export` writes it as a stock diffusers pipeline.
The rooms and which may see which are described in `docs/architecture.md`.
"""

__version__ = "0.1.0"
