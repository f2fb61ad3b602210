"""Pictures drawn a batch at a time from fixed seeds, and kept as PNGs that say how they were made."""

import base64
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from scott.errors import UserError
from scott.evaluation.features import check_images
from scott.evaluation.grids import to_pil
from scott.files import replacing, write_atomically
from scott.progress import LINE_SECONDS, warn

Generate = Callable[[Sequence[str], int], Tensor]
"""(B prompts, seed) → images (B, 3, H, W) in [0, 1]; the same prompts and seed give the same images."""

Progress = Callable[[int, int], None]
"""Called after each batch with (images done, images in all)."""

SECONDS, CALLS = "seconds", "calls"
"""What a picture cost, kept beside how it was made."""
STEPS, GUIDANCE, BATCH_SEED, BATCH_LENGTH = "steps", "guidance", "batch seed", "batch length"
"""Of how it was made."""
CAPTIONS = "metadata.jsonl"
POLL_SECONDS = 0.5


class Sampler(Protocol):
    """`Generate`, and what an image costs."""

    def __call__(self, prompts: Sequence[str], seed: int) -> Tensor: ...

    @property
    def steps(self) -> int: ...

    @property
    def network_calls(self) -> int: ...

    @property
    def guidance(self) -> float | None: ...


def png(picture: Image.Image, made: Mapping[str, object]) -> bytes:
    """A PNG that says in its metadata how it was made."""
    metadata, content = PngInfo(), io.BytesIO()
    metadata.add_text("parameters", json.dumps(made, ensure_ascii=False))
    picture.save(content, "PNG", pnginfo=metadata)
    return content.getvalue()


def data_url(content: bytes, kind: str = "image/png") -> str:
    """A file within a page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def save_picture(picture: Image.Image, file: Path, made: Mapping[str, object]) -> None:
    """Write the PNG of `png`."""
    with replacing(file) as partial:
        partial.write_bytes(png(picture, made))


def how_made(file: Path | BinaryIO) -> Any:
    """How a PNG of `save_picture` was made; None of any other file."""
    try:
        with Image.open(file, formats=["PNG"]) as picture:
            return json.loads(picture.info["parameters"])
    except (OSError, KeyError, ValueError, RecursionError, Image.DecompressionBombError):
        return None


def is_whole(file: Path) -> bool:
    """Whether there is a picture, to its end: not one that was cut off as it was written."""
    try:
        with Image.open(file) as picture:
            picture.verify()
    except (OSError, SyntaxError):
        return False
    return True


def kept(files: Sequence[Path], made: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all are there, whole, and of a batch as long, on which its noise depends. Raises `UserError` for one that
    was made otherwise."""
    there = True
    for file, wanted in zip(files, made, strict=True):
        if not is_whole(file):
            there = False
            continue
        found = how_made(file)
        unread = dict.fromkeys((SECONDS, CALLS, BATCH_LENGTH))
        if not isinstance(found, dict) or {**found, **unread} != {**wanted, **unread}:
            raise UserError(f"{file} was made otherwise; choose another folder for the pictures, nothing was changed")
        there &= found.get(BATCH_LENGTH) == wanted[BATCH_LENGTH]
    return there


def write_captions(folder: Path, prompts: Sequence[str]) -> None:
    """`CAPTIONS` beside kept pictures, so that the folder is a source of captioned pictures."""
    rows = [{"file_name": f"{index:05d}.png", "text": prompt} for index, prompt in enumerate(prompts)]
    write_atomically(folder / CAPTIONS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def batch_seed(seed: int, batch: int) -> int:
    """Seed of the `batch`-th batch, in [0, 2³²): those of any two batches or runs differ, but for one chance in 2³².

    The first word of `numpy.random.SeedSequence([seed, batch])`, whose output numpy keeps stable between versions.
    Torch reads the same 32 bits of `rng.generator_for(seed, batch)`: where a training has the same seed, its step n
    draws from the stream of batch n, and most values of one's noise stand in the other's, at another place. The
    defaults, 1 here and 0 there, share none. Published figures hang on these seeds.
    """
    return int(np.random.SeedSequence([seed, batch]).generate_state(1)[0])


def timed(generate: Generate, prompts: Sequence[str], seed: int) -> tuple[Tensor, float]:
    """`generate(prompts, seed)` and the seconds it took, its device's queue emptied."""
    begin = time.perf_counter()
    images = generate(prompts, seed)
    if images.device.type in ("cuda", "mps"):
        torch.accelerator.synchronize(images.device)
    return images, time.perf_counter() - begin


@dataclass
class Batches:
    """The pictures of a sampler, a batch at a time, drawn or kept.

    Batch i is `generate(prompts[i·size : (i+1)·size], batch_seed(seed, i))`, so samplers compared at one seed and one
    size start from the same noise. Pictures have 8 bits, in files or not. With a folder they are kept there; those that
    are there, made alike, are not drawn again. Of several processes, each draws every `count`-th batch and the first
    waits for the others'. The first batch that a process draws warms up: its seconds are not known, unless there is no
    other.
    """

    generate: Sampler
    prompts: Sequence[str]
    seed: int
    size: int
    folder: Path | None = None
    made: Mapping[str, Any] = field(default_factory=dict)
    """What else is kept beside a picture; one that was made otherwise is refused."""
    process: tuple[int, int] = (0, 1)
    """(rank, count)."""
    warm: bool = False
    """Whether this process has drawn before."""

    def __len__(self) -> int:
        return -(-len(self.prompts) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, float | None]]:
        """What `read` gives of each."""
        return map(self.read, range(len(self)))

    def draw_own(self, progress: Progress | None) -> None:
        """Draw this process's share of what is not in the folder yet, once no picture of any process's is refused."""
        rank, count = self.process
        missing = {index for index in range(len(self)) if not kept(*self._files(index))}
        for index in range(rank, len(self), count):
            if index in missing:
                files, made = self._files(index)
                images, seconds = self._drawn(index)
                cost = {SECONDS: seconds and seconds / len(images), CALLS: self.generate.network_calls}
                files[0].parent.mkdir(parents=True, exist_ok=True)
                for image, file, how in zip(images, files, made, strict=True):
                    save_picture(to_pil(image), file, how | cost)
            if progress is not None:
                progress(min((index + 1) * self.size, len(self.prompts)), len(self.prompts))

    def read(self, index: int) -> tuple[Tensor, float | None]:
        """Pictures (B, 3, H, W) in [0, 1] of a batch, and the seconds they took, where they are known."""
        if self.folder is None:
            return self._drawn(index)
        files, made = self._files(index)
        if self.process[1] > 1:
            self._wait_for(files, made, index % self.process[1])
        arrays, seconds = [], []
        for file in files:
            with Image.open(file) as picture:
                seconds.append(json.loads(picture.info["parameters"])[SECONDS])
                arrays.append(np.array(picture.convert("RGB")))
        images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous().float() / 255
        return images, None if None in seconds else sum(seconds)

    def _wait_for(self, files: Sequence[Path], made: Sequence[Mapping[str, Any]], rank: int) -> None:
        """Until the process that draws these has written them; each minute, say so."""
        begin = time.monotonic()
        while not kept(files, made):
            time.sleep(POLL_SECONDS)
            if time.monotonic() - begin >= LINE_SECONDS:
                begin = time.monotonic()
                way_out = "if it is gone, stop this, and the same command goes on, with as many processes or fewer"
                warn(f"waiting for {files[-1]}, which process {rank} draws; {way_out}")

    def calls(self) -> int:
        """Network calls a picture: kept with it, since some samplers count them while they draw."""
        if self.folder is None:
            return self.generate.network_calls
        return how_made(self._files(0)[0][0]).get(CALLS, self.generate.network_calls)

    def _prompts(self, index: int) -> Sequence[str]:
        return self.prompts[index * self.size : (index + 1) * self.size]

    def _drawn(self, index: int) -> tuple[Tensor, float | None]:
        prompts, known = self._prompts(index), self.warm or len(self) == 1
        images, seconds = timed(self.generate, prompts, batch_seed(self.seed, index))
        self.warm = True
        if len(check_images(images)) != len(prompts):
            raise ValueError(f"got {len(images)} images for {len(prompts)} prompts")
        return images.float().mul(255).round() / 255, seconds if known else None

    def _files(self, index: int) -> tuple[list[Path], list[dict[str, Any]]]:
        assert self.folder is not None
        prompts, seed = self._prompts(index), batch_seed(self.seed, index)
        files = [self.folder / f"{index * self.size + i:05d}.png" for i in range(len(prompts))]
        made = {BATCH_SEED: seed, BATCH_LENGTH: len(prompts), **self.made}
        return files, [{"prompt": prompt} | made for prompt in prompts]
