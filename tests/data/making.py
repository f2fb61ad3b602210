"""Pictures, files of them, and what reads them back."""

import io
import json
import struct
import tarfile
import zlib

import numpy as np
from PIL import Image

from scott.data.records import Record, Rejected, Unit, slices


def noise(seed, width=40, height=30):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def saved(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bomb(side):
    """A PNG of a few bytes whose header promises side² pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(bytes(1000)))


def _chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def add(archive, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def write_tar(file, count, start=0):
    with tarfile.open(file, "w") as archive:
        for i in range(start, start + count):
            add(archive, f"{i}.png", saved(noise(i)))
            add(archive, f"{i}.txt", f"picture {i}".encode())
            add(archive, f"{i}.json", json.dumps({"score": i}).encode())
    return file


class Pictures:
    """`count` pictures of noise with captions; `spoiled` replaces some, and `stop` fails when one is read."""

    kind, columns = "noise", ("score",)

    def __init__(self, count, spoiled=None, stop=None):
        self.count, self.spoiled, self.stop = count, spoiled or {}, stop
        self.version = str(count)

    def units(self, size):
        return [Unit(str(rows), len(rows), lambda rows=rows: self._records(rows)) for rows in slices(self.count, size)]

    def _records(self, rows):
        for i in rows:
            if i == self.stop:
                raise KeyboardInterrupt
            captions = [f"picture {chr(97 + i % 26)}", "noise", "dots"][: 1 + i % 3]
            image = self.spoiled.get(i, saved(noise(i)))
            yield (
                Rejected(str(i), image)
                if isinstance(image, str)
                else Record(str(i), lambda image=image: image, captions, {"score": i})
            )


def contents(folder):
    """name → bytes of every file."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
