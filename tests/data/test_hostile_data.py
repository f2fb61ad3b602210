"""Whatever a source holds, its records are counted or the command ends with one line, in bounded time and memory."""

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet
from tests.data.making import add, noise, samples, saved, write_tar

from scott.data import loading
from scott.data.loading import Budget, loaded
from scott.data.records import Record, Rejected, Skip
from scott.data.settings import Settings
from scott.data.sources import files, open_source, rows
from scott.data.sources.files import opened, read_picture
from scott.data.sources.tar import grouped
from scott.errors import UserError

PICTURE = saved(noise(0))


def reasons(source):
    return [entry.reason if isinstance(entry, Rejected) else "kept" for entry in samples(source)]


# --- places ------------------------------------------------------------------------------------------------------


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


def test_a_bucket_without_its_package_is_one_line(monkeypatch):
    monkeypatch.setattr(files.fsspec, "open", failing(ImportError("Install s3fs to access S3")))
    with pytest.raises(UserError, match=r"s3://a/b\.png needs a package: Install s3fs"):
        read_picture("s3://a/b.png", None)


def test_a_bucket_without_credentials_is_counted(monkeypatch):
    class NoCredentialsError(Exception):
        """What botocore raises is no OSError."""

    monkeypatch.setattr(files.fsspec, "open", failing(NoCredentialsError("Unable to locate credentials")))
    with pytest.raises(Skip) as skip:
        read_picture("s3://a/b.png", None)
    assert (skip.value.reason, skip.value.detail) == ("unreachable", "s3://a/b.png: Unable to locate credentials")


def test_a_bucket_without_its_package_stops_a_whole_source_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("url,text\ns3://a/b.png,a cat")
    real = files.fsspec.open
    fail = failing(ImportError("Install s3fs to access S3"))
    monkeypatch.setattr(files.fsspec, "open", lambda name, *rest: (fail if "s3" in name else real)(name, *rest))
    with pytest.raises(UserError, match="needs a package"):
        reasons(open_source(str(tmp_path / "a.csv")))


@pytest.mark.parametrize("name", ["a.tar", "a.parquet", "metadata.jsonl"])
def test_a_pipe_named_as_a_file_is_refused_without_waiting(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="it is no regular file"), opened(str(tmp_path / name)):
        pass


@pytest.mark.parametrize(
    "name", ["{", "a{b", "}{", "", "a\0b", "x" * 5000, "[", "{0..}.tar", "::", "s3://", "~nobody/x"]
)
def test_any_name_is_a_source_or_one_line(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError):
        open_source(name)


# --- parquet -----------------------------------------------------------------------------------------------------


def broken_text(texts):
    """A string column that holds any bytes."""
    data = pyarrow.array(texts, pyarrow.binary())
    return pyarrow.StringArray.from_buffers(len(texts), data.buffers()[1], data.buffers()[2], data.buffers()[0])


def write(file, **columns):
    parquet.write_table(pyarrow.table(columns), file)
    return open_source(str(file))


def test_cells_that_cannot_be_decoded_count_where_they_are_used(tmp_path):
    bad, good = broken_text([b"\xff\xfe", b"ok"]), ["a cat", "a dog"]
    source = write(tmp_path / "a.parquet", image=[PICTURE] * 2, caption=good, other=bad)
    (unit,) = source.units(9)
    assert [record.columns for record in unit.records()] == [{"caption": "a cat"}, {"caption": "a dog", "other": "ok"}]
    assert reasons(write(tmp_path / "b.parquet", image=[PICTURE] * 2, caption=bad)) == ["caption-not-utf8", "kept"]
    names = write(tmp_path / "c.parquet", image=bad, caption=good)
    assert (reasons(names), len(names.version)) == (["no-picture", "missing-file"], 64)
    lists = pyarrow.ListArray.from_arrays([0, 1, 2], bad)
    assert reasons(write(tmp_path / "d.parquet", image=[PICTURE] * 2, caption=lists)) == ["caption-not-utf8", "kept"]


def test_columns_of_no_use_are_not_read(tmp_path, monkeypatch):
    read = []
    real = parquet.ParquetFile.iter_batches
    monkeypatch.setattr(
        parquet.ParquetFile, "iter_batches", lambda self, **how: read.append(how["columns"]) or real(self, **how)
    )
    columns = {"image": [PICTURE], "embedding": [[0.5] * 9], "mask": [b"x"], "score": [3], "caption": ["a cat"]}
    assert reasons(write(tmp_path / "a.parquet", **columns)) == ["kept"]
    assert read == [["image", "score", "caption"]]


@pytest.mark.parametrize("chosen", [slice(None), slice(1, None, 2), slice(3, None, 3), slice(None, None, -1)], ids=str)
def test_a_row_group_is_decoded_once(tmp_path, monkeypatch, chosen):
    """Also where other processes take the units between; backwards, which nobody goes, each unit begins anew."""
    table = pyarrow.table({"image": [PICTURE] * 60, "caption": [f"picture {i}" for i in range(60)]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=30)
    decoded = []
    real = parquet.ParquetFile.iter_batches

    def iter_batches(self, **how):
        for batch in real(self, **how):
            decoded.append(len(batch))
            yield batch

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", iter_batches)
    units = open_source(str(tmp_path / "a.parquet")).units(7)[chosen]
    found = [[record.captions for record in unit.records()] for unit in units]
    captions = table.column("caption").to_pylist()
    assert found == [captions[start : start + 7] for start in range(0, 60, 7)][chosen]
    assert (sum(decoded) <= 60) == (chosen.step != -1)


CELL = st.none() | st.binary(max_size=9) | st.text(max_size=9) | st.integers() | st.floats() | st.booleans()
TYPES = [pyarrow.binary(), pyarrow.int64(), pyarrow.float32(), pyarrow.timestamp("ms"), pyarrow.date64(), None]


@given(
    cells=st.lists(st.binary(max_size=9), min_size=1, max_size=4), type=st.sampled_from(TYPES), where=st.integers(0, 2)
)
def test_any_cells_are_kept_or_counted(tmp_path, cells, type, where):
    if type is None:
        column = broken_text(cells)
    elif type == pyarrow.binary():
        column = pyarrow.array(cells, type)
    else:
        integers = [int.from_bytes(cell[:8], signed=True) for cell in cells]
        column = pyarrow.array(integers, pyarrow.int64()).cast(type, safe=False)
    columns = {"image": [PICTURE] * len(cells), "caption": ["a cat"] * len(cells), "other": [1] * len(cells)}
    columns[("image", "caption", "other")[where]] = column
    assert len(reasons(write(tmp_path / "a.parquet", **columns))) == len(cells)


# --- rows of text ------------------------------------------------------------------------------------------------


@given(text=st.text(max_size=200) | st.binary(max_size=200), name=st.sampled_from(["m.csv", "m.tsv", "m.jsonl"]))
def test_any_table_of_text_is_read_or_refused(tmp_path, text, name):
    header = "" if name == "m.jsonl" else "file_name\ttext\n" if name == "m.tsv" else "file_name,text\n"
    content = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    (tmp_path / name).write_bytes(header.encode() + content)
    try:
        source = open_source(str(tmp_path / name))
    except UserError:
        return
    assert "kept" not in reasons(source)


ROW = st.dictionaries(
    st.sampled_from(["file_name", "text", "x"]), st.recursive(CELL, lambda cells: st.lists(cells, max_size=3))
)


@given(rows=st.lists(ROW, max_size=4))
def test_any_rows_of_json_are_kept_or_counted(tmp_path, rows):
    (tmp_path / "a.png").write_bytes(PICTURE)
    good = json.dumps({"file_name": "a.png", "text": "a cat"})
    (tmp_path / "m.jsonl").write_text("\n".join([*(json.dumps(row, default=repr) for row in rows), good]))
    found = reasons(open_source(str(tmp_path / "m.jsonl")))
    assert len(found) == len(rows) + 1
    assert found[-1] == "kept"


def test_a_packed_table_that_would_fill_memory_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(saved(noise(0)))
    row = json.dumps({"file_name": "a.png", "text": "a cat"}).encode() + b"\n"
    table = tmp_path / "metadata.jsonl.gz"
    monkeypatch.setattr(rows, "UNPACKED_LEAST", 1 << 16)
    table.write_bytes(gzip.compress(row + b" " * (1 << 15)))
    (unit,) = open_source(str(tmp_path)).units(8)
    assert [type(record) for record in unit.entries()] == [Record]
    with monkeypatch.context() as patch:
        patch.setattr(rows, "UNPACKED", 1 << 60)
        open_source(str(tmp_path))
    table.write_bytes(gzip.compress(row + b" " * (1 << 20)))
    with pytest.raises(UserError, match=r"metadata.jsonl.gz cannot be read \(it unpacks to more than"):
        open_source(str(tmp_path))


# --- tars --------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE])
@pytest.mark.parametrize("name", ["b.png", "b.npy", "b.txt"])
def test_a_member_of_a_terabyte_ends_the_tar(tmp_path, kind, name):
    whole = write_tar(tmp_path / "a.tar", 2).read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    header = tarfile.TarInfo(name)
    header.size, header.type = 1 << 40, kind
    (tmp_path / "a.tar").write_bytes(whole[:end] + header.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    found = reasons(open_source(str(tmp_path / "a.tar")))
    assert found[0] == "kept"
    assert found[-1] == "corrupt-tar"


# --- memory ------------------------------------------------------------------------------------------------------


def test_a_budget_is_never_exceeded_and_is_given_back():
    budget, held, most = Budget(10), 0, 0
    guard = threading.Lock()

    def work(count):
        nonlocal held, most
        for _ in range(50):
            with budget.hold(count):
                with guard:
                    held += count
                    most = max(most, held)
                with guard:
                    held -= count

    threads = [threading.Thread(target=work, args=(count,)) for count in (1, 3, 4, 7, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most <= 10
    with pytest.raises(Skip, match="beyond-decode-memory"), budget.hold(11):
        pass
    with budget.hold(10):
        pass


def test_what_is_made_larger_counts():
    """Of 16 MiB, a picture of 4 x 4 pixels made 1,024 x 1,024 takes 9, and not many wait to be taken."""
    begun, picture = [], saved(Image.new("RGB", (4, 4)))

    def read(index):
        begun.append(index)
        return picture

    records = [Record(str(i), lambda i=i: read(i), "a cat", held=0) for i in range(40)]
    found = loaded(records, Settings(decode_memory=16), [(1024, 1024)])
    assert next(found).pixels.shape == (3, 1024, 1024)
    assert len(begun) <= 2
    assert len([*found]) == 39
    (reason,) = {entry.reason for entry in loaded(records[:2], Settings(decode_memory=8), [(1024, 1024)])}
    assert reason == "beyond-decode-memory"


def test_pictures_are_decoded_as_the_budget_allows(monkeypatch):
    """Of 4 million bytes, at 12 a pixel, one picture of 500 x 500 has room, and one of 600 x 600 never."""
    monkeypatch.setattr(loading, "THREADS", 8)
    at_once, most, guard = 0, 0, threading.Lock()
    real = loading.cropped

    def cropped(*picture):
        nonlocal at_once, most
        with guard:
            at_once += 1
            most = max(most, at_once)
        try:
            return real(*picture)
        finally:
            with guard:
                at_once -= 1

    monkeypatch.setattr(loading, "cropped", cropped)
    small, large = (saved(Image.new("RGBA", (side, side))) for side in (500, 600))
    records = [Record(str(i), lambda i=i: large if i == 9 else small, "a cat", held=0) for i in range(20)]
    found = list(loaded(records, Settings(decode_memory=4), [(8, 8)]))
    assert most == 1
    assert [entry.reason for entry in found if isinstance(entry, Rejected)] == ["beyond-decode-memory"]


def test_what_is_read_ahead_is_bounded():
    read = []

    def records():
        for i in range(100):
            read.append(i)
            yield Record(str(i), lambda: PICTURE, "a cat", held=1 << 18)

    found = loaded(records(), Settings(decode_memory=4), [(8, 8)])
    next(found)
    assert len(read) <= 6, "a quarter of 4 MiB, and the next"
    found.close()


MEASURE = """
import io, os, resource, sys
from PIL import Image
from scott.data.loading import DECODED_BYTES, loaded
from scott.data.pictures import cropped, decode
from scott.data.records import Record
from scott.data.settings import Settings

def picture(kind, mode, side=2000):
    image, file, exif = Image.linear_gradient("L").resize((side, side)), io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    image = image.convert(mode) if mode == "I;16" else image.convert("RGB").convert(mode)
    image.save(file, kind, exif=exif, **({"transparency": 0} if mode == "P" else {}))
    return file.getvalue()

def many(data):
    records = [Record(str(i), lambda: data, "a cat") for i in range(5)]
    assert len(list(loaded(records, Settings(decode_memory=128), [(64, 64)]))) == 5

cropped(Image.new("RGB", (512, 512)), [(512, 512)])
for argument in sys.argv[1:]:
    what, kind, mode = argument.split("-")
    if not os.fork():
        data = picture(kind, mode)
        before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
        open("/proc/self/clear_refs", "w").write("5")
        many(data) if what == "many" else cropped(decode(data), [(512, 512)])
        peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) << 10
        print(argument, peak - before - len(data), 2000**2 * DECODED_BYTES.get(kind, 12), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""
PICTURES = ["PNG-RGBA", "PNG-P", "PNG-LA", "PNG-I;16", "JPEG-CMYK", "WEBP-RGBA", "TIFF-RGBA", "AVIF-RGBA"]


@pytest.fixture(scope="module")
def measured():
    """Name of a picture → bytes that were held at the peak of decoding it, and those that are reckoned for it; and for
    "many-PNG-RGBA", five at once."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("needs Linux to say what was held")
    command = [sys.executable, "-c", MEASURE, *(f"one-{name}" for name in PICTURES), "many-PNG-RGBA"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return {name: (int(held), int(reckoned)) for name, held, reckoned in map(str.split, lines)}


@pytest.mark.parametrize("picture", PICTURES)
def test_decoding_holds_no_more_than_is_reckoned(measured, picture):
    held, reckoned = measured[f"one-{picture}"]
    assert 0 < held <= reckoned


def test_many_large_pictures_hold_no_more_than_the_budget(measured):
    held, one = measured["many-PNG-RGBA"]
    assert one < 128 << 20
    assert held < 128 << 20


def test_captions_may_be_any_bytes(tmp_path):
    (tmp_path / "a.png").write_bytes(PICTURE)
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    assert reasons(open_source(str(tmp_path))) == ["caption-not-utf8"]


FOLDERS = st.sampled_from(["", "x/", "train/", "test/", "x/val/", "10_cat/", ".hidden/"])
NAMES = st.sampled_from(["a", "b.c", "metadata", "00000", "00002", "captions_x", "train-0", "a\\b", "ü"])
ENDINGS = [
    ".png",
    ".PNG",
    ".jfif",
    "",
    ".txt",
    ".caption",
    ".json",
    ".jsonl",
    ".csv",
    ".tar",
    ".parquet",
    ".heic",
    ".zip",
]
CONTENTS = st.sampled_from(
    [b"", b"{}", b"[1]", b"a cat", b"file_name,text\na.png,a cat\n", b"\xff\xfe", PICTURE, PICTURE[:90]]
)
FILES = st.dictionaries(
    st.tuples(FOLDERS, NAMES, st.sampled_from(ENDINGS)).map("".join), CONTENTS, min_size=1, max_size=8
)


@given(files=FILES)
def test_any_folder_is_read_or_refused_and_of_pictures_every_one_is_counted(files):
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            file = Path(folder, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        try:
            source = open_source(folder)
            seen = [entry for unit in source.units(2) for entry in (*unit.left_out, *unit.records())]
            assert all(isinstance(entry, Record | Rejected) for entry in seen)
            assert len(reasons(source)) == len(seen)
        except UserError:
            return
        pictures = [name for name in files if name.endswith((".png", ".PNG", ".jfif", ".heic")) and name[0] != "."]
        if source.kind == "folder":
            keys = [entry.key for entry in seen]
            assert len(keys) == len(set(keys))
            assert set(pictures) <= set(keys)


MEMBERS = st.lists(
    st.tuples(st.sampled_from(["a", "b", "a.1", "a.2", "x/a"]), st.sampled_from(ENDINGS[:8])), max_size=9
)


@given(members=MEMBERS)
def test_of_any_tar_every_member_is_in_one_record(members):
    """Whatever the order and however often a name comes: none is lost, none is in two records."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for stem, ending in members:
            add(archive, stem + ending, PICTURE if ending in ("", ".png", ".PNG", ".jfif") else b"{}")
    entries = list(grouped(io.BytesIO(file.getvalue()), "x.tar"))
    parts = [(entry[0], entry[1]) if isinstance(entry, tuple) else (entry.key, [""]) for entry in entries]
    found = [key + suffix for key, suffixes in parts for suffix in suffixes]
    assert sorted(found) == sorted((stem + ending.lower()) for stem, ending in members)
