"""One shard: an uncompressed WebDataset tar of encoded samples, written whole or not at all, read by offset.

A sample is two members: `<key>.safetensors` holds mean and std (C, H, W) and each `cond.<name>` (K, ...) of its K
captions, in fp16; `<key>.json` holds the captions, the picture's size and what the source knew of it. The same samples
give the same bytes. Beside `<name>.tar` stands `<name>.json`, written last: a tar without it is not finished.
"""

import errno
import hashlib
import io
import json
import mmap
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from scott.errors import OPEN_MORE, UserError
from scott.files import replacing, write_atomically

_BLOCK = 512


class ShardWriter:
    """Appends samples to a tar that is not yet in its place."""

    def __init__(self, file: io.BufferedWriter) -> None:
        self._file, self._digest, self.bytes = file, hashlib.sha256(), 0

    def add(self, key: str, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        self._member(f"{key}.safetensors", save(tensors))
        self._member(f"{key}.json", json.dumps(info, sort_keys=True).encode())

    def _member(self, name: str, content: bytes) -> None:
        header = tarfile.TarInfo(name)  # no time, no owner: bytes depend on the content alone
        header.size = len(content)
        self._write(header.tobuf(tarfile.USTAR_FORMAT) + content + b"\0" * (-len(content) % _BLOCK))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.bytes += len(data)

    def finish(self) -> str:
        """End the tar: its SHA-256."""
        self._write(b"\0" * (2 * _BLOCK))
        return self._digest.hexdigest()


@contextmanager
def shard_writer(file: Path) -> Iterator[ShardWriter]:
    """A writer whose tar appears as `file` when the block ends, and leaves nothing when it fails.

    Raises:
        UserError: the disk is full.
    """
    with replacing(file, file.with_suffix(".partial"), durable=True) as partial, partial.open("wb") as opened:
        yield ShardWriter(opened)


def write_durably(path: Path, content: dict[str, Any]) -> None:
    """Write JSON that is whole or absent even if the machine stops."""
    write_atomically(path, json.dumps(content, indent=2, sort_keys=True) + "\n", durable=True)


class Shard:
    """A finished tar, mapped into memory; sample i is the i-th `.safetensors` in it.

    Raises:
        UserError: it cannot be opened, has another SHA-256 than is said, or is no tar as `ShardWriter` writes it.
    """

    def __init__(self, file: Path, sha256: str | None = None) -> None:
        self.file = file
        try:
            with file.open("rb") as opened:
                self._map = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            many = isinstance(error, OSError) and error.errno == errno.EMFILE
            mend = OPEN_MORE if many else "prepare the data again"
            raise UserError(f"{file} cannot be read ({error}); {mend}") from None
        if sha256 is not None and (got := hashlib.sha256(self._map).hexdigest()) != sha256:
            raise self.corrupt(f"its SHA-256 is {got[:12]}… and was {sha256[:12]}… when it was written")
        members = list(self._members())
        self.keys = [name.removesuffix(".safetensors") for name, _ in members if name.endswith(".safetensors")]
        self._tensors = [place for name, place in members if name.endswith(".safetensors")]
        self._info = {name.removesuffix(".json"): place for name, place in members if name.endswith(".json")}

    def _members(self) -> Iterator[tuple[str, slice]]:
        start = 0
        while (header := self._map[start : start + _BLOCK]).strip(b"\0"):
            try:
                member = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
            except (tarfile.HeaderError, ValueError) as error:
                raise self.corrupt(f"at byte {start}: {error}") from None
            begin = start + _BLOCK
            if member.type != tarfile.REGTYPE or not 0 <= member.size <= len(self._map) - begin:
                raise self.corrupt(f"at byte {start}: no file of {member.size} bytes")
            yield member.name, slice(begin, begin + member.size)
            start = begin + -(-member.size // _BLOCK) * _BLOCK

    def __len__(self) -> int:
        return len(self.keys)

    def tensors(self, index: int) -> dict[str, Tensor]:
        """mean, std and `cond.<name>` of a sample. Raises `UserError` naming it when they cannot be read."""
        try:
            return load(self._map[self._tensors[index]])
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise self.corrupt(f"sample {self.keys[index]}: {error}") from None

    def info(self, index: int) -> dict[str, Any]:
        """Captions, size and columns of a sample."""
        try:
            return json.loads(self._map[self._info[self.keys[index]]])
        except (KeyError, ValueError, RecursionError) as error:
            raise self.corrupt(f"sample {self.keys[index]}: {error}") from None

    def corrupt(self, where: str) -> UserError:
        mend = f"let the same `scott prepare` mend it, or delete {self.file.parent} if a run prepared it for itself"
        return UserError(f"{self.file} is corrupt, {where}; copy it again, {mend}")

    def sample(self, index: int, shapes: dict[str, list[int]]) -> dict[str, Tensor]:
        """`tensors`, checked: those of `shapes` in fp16, conditioning with one axis more, of the captions."""
        tensors = self.tensors(index)
        got = {name: (value.dtype, list(value.shape)) for name, value in tensors.items()}
        conds = [value for name, value in tensors.items() if name.startswith("cond.")]
        captions = [len(conds[0])] if conds and conds[0].dim() else [0]
        expected = {
            name: (torch.float16, captions + shape if name.startswith("cond.") else shape)
            for name, shape in shapes.items()
        }
        if got != expected or captions == [0]:
            raise self.corrupt(f"sample {self.keys[index]}: it holds {got}, expected {expected}")
        return tensors
