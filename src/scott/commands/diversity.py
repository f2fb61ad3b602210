"""`scott evaluate --diversity`: how much the pictures of one caption differ, a sampler's beside the data's."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from torch import Tensor

from scott.evaluation import Features, Figure, Generate
from scott.evaluation.evaluating import spread
from scott.mini import reading
from scott.mini.scenes import Scene, pictures, variant


@dataclass
class Diversity:
    """The spread of `count` pictures of each caption, from the noise of `seed`."""

    prompts: Sequence[str]
    instrument: Features
    count: int
    seed: int
    replicates: int
    scenes: Sequence[Scene] = ()
    """Of the embedded data, what the captions ask for: then the data's own spread is known, and the styles are read."""

    def of(self, generate: Generate) -> dict[str, Figure]:
        """A sampler's, with the data's as the floor."""
        floors = self._data
        found = self._spread(generate, self.replicates)
        return {name: replace(figure, floor=floors[name].value if floors else None) for name, figure in found.items()}

    @cached_property
    def _data(self) -> dict[str, Figure]:
        """Of real pictures: scenes of the same captions, drawn again."""
        asked = dict(zip(self.prompts, self.scenes, strict=False))

        def real(prompts: Sequence[str], seed: int) -> Tensor:
            rng = np.random.default_rng(seed)
            return pictures([variant(asked[prompt], rng) for prompt in prompts])

        return self._spread(real) if self.scenes else {}

    def _spread(self, generate: Generate, replicates: int = 0) -> dict[str, Figure]:
        def read(images: Tensor, caption: int) -> dict[str, Tensor]:
            return reading.styles(images, self.scenes[caption])

        return spread(
            generate,
            self.prompts,
            self.instrument,
            self.count,
            self.seed,
            replicates,
            read if self.scenes else None,
        )
