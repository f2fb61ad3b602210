"""What samplers are measured on, of any source of captioned pictures."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from scott.data.loading import Sample, Tally, entries_of, loaded
from scott.data.records import Record, Rejected, Source, chunks, reasons
from scott.data.settings import Settings
from scott.errors import UserError
from scott.evaluation.evaluating import Reference
from scott.evaluation.features import Instruments, features_of
from scott.files import replacing

BATCH = 64
SMALLEST = 10
"""Samples that a row is measured on at least."""
Tick = Callable[[str, int, int], None]
Entries = list[Record | Rejected]


def source_reference(
    source: Source,
    samples: int,
    size: int,
    instruments: Instruments,
    tick: Tick,
    *,
    choose: Callable[[Entries], Entries] | None = None,
    floor: Source | None = None,
    key: Sequence[Any] | None = None,
    least: int = SMALLEST,
    among: int | None = None,
) -> Reference:
    """The first pictures that can be read, of those that `choose` makes of all, or of its first `among`, each with its
    first caption.

    A picture is cropped at its centre to size x size by Lanczos. The floor's pictures are the first of the source
    `floor`, or of this source those that follow, where there are as many. `key`, what the choice depends on, keeps
    features for the next time, where there are all `samples` of them and nothing was skipped on the way.

    Raises:
        UserError: fewer than `least` can be read, or fewer of `floor` than of the source; see `open_source`.
    """
    check_samples(samples)
    file = None
    if key is not None and instruments:
        networks = {name: one.description for name, one in sorted(instruments.items())}
        made_of = [source.kind, source.version, floor and floor.version, samples, size, *key, networks]
        file = cache_folder() / f"{sha256(json.dumps(made_of).encode()).hexdigest()}.safetensors"
        with suppress(OSError, SafetensorError), safe_open(file, "pt") as content:  # not there, or cut: made again
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (no dict)
            return _reference(instruments, size, tensors, **json.loads(content.metadata()["described"]))
    entries: Iterable[Record | Rejected] = entries_of(source)
    with closing(loaded(choose(list(entries)) if choose else entries, Settings(), [(size, size)])) as found:
        first = islice(found, among)
        real, described = _read(first, samples, instruments, lambda done: tick("the real pictures", done, samples))
        count = len(described["prompts"])
        if count < least:
            skips = f" ({reasons(skipped)})" if (skipped := described["skipped"]) else ""
            fewer = "; complete them, or measure on fewer with --samples" if least > SMALLEST else ""
            raise UserError(f"got {count:,} readable pictures with captions{skips}; expected {least:,} or more{fewer}")
        with closing(loaded(entries_of(floor), Settings(), [(size, size)]) if floor else found) as following:
            others, rest = _read(following, count, instruments, lambda done: tick("the floor's pictures", done, count))
        if floor and (read := len(rest["prompts"])) < count:
            raise UserError(f"got {read:,} readable pictures in --floor-data; expected as many as are drawn, {count:,}")
    tensors = {f"real/{name}": value for name, value in real.items()}
    if all(len(features) == count for features in others.values()):
        tensors |= {f"others/{name}": value for name, value in others.items()}
    if file is not None and count == samples and not described["skipped"] and not rest["skipped"]:
        with suppress(OSError, SafetensorError, UserError):  # a place that cannot be written to: no figure needs it
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as partial:
                save_file(tensors, partial, {"described": json.dumps(described)})
    return _reference(instruments, size, tensors, **described)


def _read(
    found: Iterator[Sample | Rejected], count: int, instruments: Instruments, tick: Callable[[int], None]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Features of the next `count` that can be read; their prompts, their names, and what was skipped before them."""
    parts, prompts, names, tally = defaultdict(list), list[str](), list[str](), Tally()
    for chunk in chunks(islice(tally.kept(found, lambda _: None), count), BATCH):
        pixels = torch.stack([sample.pixels for sample in chunk]).float() / 255
        for name, features in features_of(instruments, pixels).items():
            parts[name].append(features)
        prompts += [sample.captions[0] for sample in chunk]
        names += [sample.info["key"] for sample in chunk]
        tick(len(names))
    described = {"prompts": prompts, "names": names, "skipped": tally.skipped}
    return {name: torch.cat(part) for name, part in parts.items()}, described


def _reference(
    instruments: Instruments,
    size: int,
    tensors: dict[str, Tensor],
    prompts: list[str],
    names: list[str],
    skipped: dict[str, int],
) -> Reference:
    real, others = (
        {name.removeprefix(kind): value for name, value in tensors.items() if name.startswith(kind)}
        for kind in ("real/", "others/")
    )
    counts = Counter(skipped)
    return Reference(prompts, instruments, real, others=others, size=size, names=names, skipped=counts)


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "scott" / "references"


def check_samples(samples: int) -> None:
    if samples < SMALLEST:
        raise UserError(f"got {samples} samples; expected {SMALLEST} or more, 1,000 for a figure worth reading")
