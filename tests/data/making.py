"""Pictures, files of them, and what reads them back."""

import io
import json
import struct
import tarfile
import zlib

import numpy as np
from PIL import Image

from scott.data.loading import loaded
from scott.data.records import Record, Rejected, Unit, slices
from scott.data.settings import Settings


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


def png(bits, kind, rows, transparent):
    """A PNG of rows of bytes, of a colour type (0 grey, 2 RGB), with a transparent colour (tRNS)."""
    per_pixel = bits * (1 if kind == 0 else 3)
    header = struct.pack(">IIBBBBB", len(rows[0]) * 8 // per_pixel, len(rows), bits, kind, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [(b"IHDR", header), (b"tRNS", transparent), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def tiff_of_12_bits(values):
    """A grey TIFF of one row of an even number of values below 4096."""
    pairs = zip(values[::2], values[1::2], strict=True)
    return tiff(len(values), 12, b"".join((first << 12 | second).to_bytes(3) for first, second in pairs))


def tiff(width, bits, strip, photometric=1):
    """A grey TIFF of one row, whose white is 0 (photometric 0) or whose black is (1)."""
    entries = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 1, 279: len(strip)}
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    start = 8 + len(strip)
    return b"II*\0" + struct.pack("<I", start) + strip + struct.pack("<H", len(entries)) + fields + bytes(4)


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


def samples(source, size=8):
    """Those of a source, its pictures cropped to size x size, and what is left out of it."""
    return loaded((entry for unit in source.units(256) for entry in unit.entries()), Settings(), [(size, size)])


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
