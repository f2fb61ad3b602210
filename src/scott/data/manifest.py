"""What a folder of shards says of itself: the settings it is made with, and when it is whole, its manifest."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scott.data.locks import is_passing
from scott.data.records import reasons
from scott.data.shards import write_durably
from scott.errors import UserError, first_line, printable
from scott.files import read_object, sha256_of

MANIFEST, SETTINGS = "manifest.json", "preparation.json"
FORMAT = 1
MAX_REPEATS = 999
_WAY_OUT = "prepare the data again"
"""The way out where its files are not as they were written."""
TOUCHED = "the source's files have other names, sizes or times of change"
_HASHES = ("sha256", "half", "signs")
"""Of a teacher's part, in its fingerprint. Where one of the first two agrees, its weights are the same but rounded."""


@dataclass(frozen=True)
class ShardEntry:
    file: str
    samples: int
    bytes: int
    sha256: str
    buckets: list[list[int]] = field(default_factory=list)
    """Of pictures in several shapes: height, width and number of those that come next in the tar, in latents."""
    repeats: int = 1
    """How often an epoch visits each sample."""


@dataclass(frozen=True)
class Manifest:
    """A finished set of shards.

    tensors: name → shape of one sample's, in fp16; `cond.<name>` without the axis of its captions. Where there are
    buckets, height and width are theirs.
    """

    settings: dict[str, Any]
    """What the shards are a function of; `teacher` holds fingerprints, `licence` what the user said of the data."""
    shards: tuple[ShardEntry, ...]
    tensors: dict[str, list[int]]
    skipped: dict[str, int]
    """Reason → how many records."""

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    def save(self, folder: Path) -> None:
        content = {"format": FORMAT, "samples": self.samples, "bytes": self.bytes} | asdict(self)
        write_durably(folder / MANIFEST, content)

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Raises `UserError` when there is none, it is not readable, or a shard is missing or not as long as it was."""
        file = folder / MANIFEST
        content = read_object(file, _WAY_OUT)
        try:
            if content["format"] != FORMAT:
                raise UserError(f"{file} has format {content['format']!r}, expected {FORMAT}; {_WAY_OUT}")
            entries = tuple(ShardEntry(**entry) for entry in content["shards"])
            manifest = cls(content["settings"], entries, content["tensors"], content["skipped"])
            manifest._check(folder)
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{file} is not as scott writes it ({error!r}); {_WAY_OUT}") from None
        return manifest

    def _check(self, folder: Path) -> None:
        counts = [count for shard in self.shards for count in (shard.samples, shard.bytes, shard.repeats - 1)]
        counts += [side for shape in self.tensors.values() for side in shape] + [self.settings.get("resolution", 1)]
        counts += [count - 1 for shard in self.shards for _, _, count in shard.buckets]
        sound = (
            all(isinstance(value, dict) for value in (self.settings, self.skipped))
            and all(isinstance(shape, list) for shape in self.tensors.values())
            and all(isinstance(count, int) and count >= 0 for count in counts)
            and all(isinstance(shard.sha256, str) and shard.repeats <= MAX_REPEATS for shard in self.shards)
            and all(len(self.tensors[name]) == 3 for name in ("mean", "std"))
            and all(not s.buckets or sum(b[2] for b in s.buckets) == s.samples for s in self.shards)
        )
        if not sound:
            raise TypeError("a type, a shape or a count")
        for shard in self.shards:
            file = folder / Path(shard.file).name
            size = file.stat().st_size if file.is_file() else None
            if size != shard.bytes:
                got = "is missing" if size is None else f"has {size:,} bytes"
                raise UserError(f"{file} {got}, expected {shard.bytes:,} bytes; copy or prepare the data again")
        if self.samples < 1:
            raise UserError(f"{folder} holds no samples; {_WAY_OUT}")


def claim(folder: Path) -> None:
    """Make `folder` a place of shards. Raises `UserError` where it cannot be made or holds something else."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {first_line(error)}; give another --out") from None
    # another process of the same command may be writing its settings just now
    if SETTINGS not in names and not all(map(is_passing, names)):
        raise UserError(f"{folder} is not empty and holds no shards; give a new folder")


def begin(folder: Path, settings: dict[str, Any]) -> None:
    """Record what the shards of a claimed folder are made with.

    Raises:
        UserError: there are shards made with other settings; the difference is named.
    """
    file = folder / SETTINGS
    changes = list(differences(read_object(file, _WAY_OUT), settings)) if file.exists() else [""]
    if changes and file.exists() and any(folder.glob("*.tar")):
        raise UserError(f"{folder} was begun with other settings ({'; '.join(changes)}); give it another --out")
    if changes:
        write_durably(file, settings)


def differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """What settings that shards are made with differ in, each in words."""
    if isinstance(before, dict) and isinstance(now, dict):
        same = any(key in before and before[key] == now.get(key) for key in ("sha256", "half"))
        for key in (key for key in before | now if not (same and key in _HASHES)):
            yield from differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif before != now and name == "source.version":
        yield TOUCHED
    elif before != now and name not in ("source.name", "teacher.name"):  # what they hold counts, wherever it is
        yield f"{name}: {before} → {now}"


def assemble(folder: Path, settings: dict[str, Any], names: list[str]) -> Manifest | None:
    """The manifest of finished shards, written, or None while some are not there.

    Raises:
        UserError: all records were left out; the reasons are counted.
    """
    sides = [side for name in names if (side := _finished(folder, name))]
    if len(sides) < len(names):
        return None
    skipped: Counter[str] = Counter()
    for side in sides:
        skipped.update(side["skipped"])
    entries = tuple(ShardEntry(**side["shard"]) for side in sides)
    shapes: dict[str, list[int]] = next((side["tensors"] for side in sides if side["tensors"]), {})
    manifest = Manifest(settings, entries, shapes, dict(sorted(skipped.items())))
    if not manifest.samples:
        first = next((f"; the first was {printable(e['key'])}" for side in sides for e in side["rejected"]), "")
        for file in (*(folder / f"{name}{end}" for name in names for end in (".tar", ".json")), folder / SETTINGS):
            file.unlink(missing_ok=True)  # so that the same command can be given when the source was mended
        raise UserError(f"kept none of {skipped.total()} records ({reasons(skipped) or 'there was nothing'}){first}")
    manifest.save(folder)
    return manifest


def is_intact(folder: Path, name: str) -> bool:
    """Whether a shard is there as it was written, byte for byte."""
    side = _finished(folder, name)
    return side is not None and sha256_of(folder / f"{name}.tar") == side["shard"].get("sha256")


def _finished(folder: Path, name: str) -> dict[str, Any] | None:
    """What is recorded of a shard, if it is there in its whole length."""
    try:
        side = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        return side if (folder / f"{name}.tar").stat().st_size == side["shard"]["bytes"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
