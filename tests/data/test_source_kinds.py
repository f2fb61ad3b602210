"""Every kind of source gives the same pictures and captions, is recognised by its name, and survives what it holds."""

import base64
import functools
import gzip
import http.server
import io
import json
import os
import sys
import tarfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
from contextlib import suppress

import datasets
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from tests.data.making import add, noise, samples, saved, write_tar

from scott.data.captions import read_captions
from scott.data.filters import Where
from scott.data.records import Columns, Record, Rejected, Skip
from scott.data.sources import files, open_source
from scott.data.sources.files import opened, read_picture, unsafe
from scott.data.sources.webdataset import grouped
from scott.errors import UserError

COUNT = 5
PICTURES = [saved(noise(i)) for i in range(COUNT)]
CAPTIONS = [f"picture {i}" for i in range(COUNT)]


def read(source, size=2):
    """(picture or the reason it is left out, captions, columns) of every record, unit by unit."""
    found = []
    for unit in source.units(size):
        records = list(unit.records())
        assert unit.count in (None, len(records))
        for record in records:
            try:
                found.append(
                    (record.reason, [], {})
                    if isinstance(record, Rejected)
                    else (record.image(), read_captions(record.captions), record.columns)
                )
            except Skip as skip:
                found.append((skip.reason, [], {}))
    return found


def reasons(source):
    return [picture for picture, _, _ in read(source) if isinstance(picture, str)]


def fill(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(PICTURES):
        (folder / f"{i}.png").write_bytes(picture)
    return folder


def write_folder(folder):
    for i in range(COUNT):
        (fill(folder) / f"{i}.txt").write_text(CAPTIONS[i])
    return folder


def write_jsonl(folder):
    rows = [{"file_name": f"{i}.png", "text": CAPTIONS[i], "score": i} for i in range(COUNT)]
    (fill(folder) / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def write_csv(folder):
    rows = [f'{i}.png,"{CAPTIONS[i]}",{i}' for i in range(COUNT)]
    (fill(folder) / "metadata.csv").write_text("\n".join(["file_name,caption,score", *rows]))
    return folder


def table(pictures):
    return pyarrow.table({"image": pictures, "caption": CAPTIONS, "score": list(range(COUNT))})


def write_bytes_table(folder):
    folder.mkdir()
    parquet.write_table(table(PICTURES), folder / "a.parquet", row_group_size=3)
    return folder / "a.parquet"


def write_path_table(folder):
    parquet.write_table(table([f"{i}.png" for i in range(COUNT)]), fill(folder) / "a.parquet", row_group_size=2)
    return folder / "a.parquet"


def write_dataset(folder):
    features = datasets.Features(
        {"image": datasets.Image(), "caption": datasets.Value("string"), "score": datasets.Value("int64")}
    )
    rows = {"image": [{"bytes": p, "path": None} for p in PICTURES], "caption": CAPTIONS, "score": list(range(COUNT))}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder)
    return folder


def write_path_dataset(folder):
    paths = [str(fill(folder.with_name("pictures")) / f"{i}.png") for i in range(COUNT)]
    datasets.Dataset.from_dict({"image": paths, "caption": CAPTIONS}).save_to_disk(folder)
    return folder


def write_tars(folder):
    folder.mkdir()
    write_tar(folder / "00.tar", 3)
    write_tar(folder / "01.tar", 2, start=3)
    return folder


def write_pattern(folder):
    return f"{write_tars(folder)}/{{00..01}}.tar"


def write_coco(folder):
    (folder / "annotations").mkdir(parents=True)
    fill(folder / "train2017")
    content = {
        "images": [{"id": 10 + i, "file_name": f"{i}.png", "score": i} for i in range(COUNT)],
        "annotations": [{"id": i, "image_id": 10 + i, "caption": CAPTIONS[i]} for i in range(COUNT)],
    }
    (folder / "annotations" / "captions_train2017.json").write_text(json.dumps(content))
    return folder


KINDS = {
    "folder": write_folder,
    "imagefolder": write_jsonl,
    "imagefolder csv": write_csv,
    "parquet": write_bytes_table,
    "parquet of paths": write_path_table,
    "dataset": write_dataset,
    "webdataset": write_tars,
    "webdataset pattern": write_pattern,
    "coco": write_coco,
}


@pytest.mark.parametrize(("kind", "write"), KINDS.items())
def test_every_kind_gives_the_same(tmp_path, kind, write):
    name = str(write(tmp_path / "data"))
    source = open_source(name)
    assert source.kind == kind.split()[0]
    found = read(source)
    assert [picture for picture, _, _ in found] == PICTURES
    assert [captions for _, captions, _ in found] == [[caption] for caption in CAPTIONS]
    if "score" in source.columns:
        assert [columns["score"] for _, _, columns in found] == list(range(COUNT))
    again = open_source(name)
    assert again.version == source.version
    assert read(again, 3) == found


@pytest.mark.parametrize("write", [write_folder, write_jsonl, write_bytes_table, write_tars, write_coco])
def test_a_change_is_another_version(tmp_path, write):
    name = write(tmp_path / "data")
    before = open_source(str(name)).version
    changed = next(path for ending in ("json", "tar", "parquet", "png") for path in tmp_path.rglob(f"*.{ending}"))
    os.utime(changed, ns=(1, 1))
    assert open_source(str(name)).version != before


@pytest.mark.parametrize("write", [write_folder, write_jsonl, write_coco, write_path_table, write_path_dataset])
def test_other_pictures_of_the_same_names_are_another_version(tmp_path, write):
    name = write(tmp_path / "data")
    picture = min(tmp_path.rglob("*.png"))
    versions = [open_source(str(name)).version]
    os.utime(picture, ns=(1, 1))
    versions.append(open_source(str(name)).version)
    picture.unlink()
    versions.append(open_source(str(name)).version)
    assert len({*versions}) == 3


def test_pictures_in_a_table_of_texts_are_its_own(tmp_path):
    """In base64, or by URL: they are looked for nowhere, and the table's version is that of its file."""
    texts = [base64.b64encode(PICTURES[0]).decode(), "http://127.0.0.1:9/a.png", None]
    parquet.write_table(pyarrow.table({"image": texts, "caption": CAPTIONS[:3]}), tmp_path / "a.parquet")
    assert open_source(str(tmp_path / "a.parquet")).version == files.digest_of([str(tmp_path / "a.parquet")])


# --- columns -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "write", [write_jsonl, write_csv, write_bytes_table, write_path_table, write_dataset, write_path_dataset]
)
def test_conditions_are_on_captions_too(tmp_path, write):
    """And on the name of the picture, where a table has it."""
    source = open_source(str(write(tmp_path / "data")))
    (caption,) = {"caption", "text"} & {*source.columns}
    image = next(iter({"image", "file_name"} & {*source.columns}))
    named = write not in (write_bytes_table, write_dataset)
    for expression, kept in {
        f"{caption} != 'picture 1'": [0, 2, 3, 4],
        f"'3' in {caption} or {caption} == 'picture 4'": [3, 4],
        f"'2.png' in {image}": [2] if named else [],
    }.items():
        where = Where(expression, source.columns)
        assert [CAPTIONS.index(texts[0]) for _, texts, columns in read(source) if where(columns)] == kept, expression


@pytest.mark.parametrize("write", [write_jsonl, write_csv, write_bytes_table, write_path_table, write_dataset])
def test_captions_and_keys_are_kept_once(tmp_path, write):
    """A path that is no key is a column."""
    named = [{"image": f"{i}.png"} if write is write_path_table else {} for i in range(COUNT)]
    kept = [sample.info["columns"] for sample in samples(open_source(str(write(tmp_path / "data"))))]
    assert kept == [{"score": i} | named[i] for i in range(COUNT)]


def test_a_condition_on_captions_in_bytes(tmp_path):
    rows = {"image": PICTURES, "caption": [caption.encode() for caption in CAPTIONS]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"))
    where = Where("caption == 'picture 1'", source.columns)
    assert [texts for _, texts, columns in read(source) if where(columns)] == [[CAPTIONS[1]]]


def test_columns_can_be_named_and_captions_be_several(tmp_path):
    rows = {"picture": PICTURES, "a": CAPTIONS, "b": [["x", "y"]] * COUNT, "c": [""] * COUNT}
    parquet.write_table(pyarrow.table(rows), tmp_path / "t.parquet")
    found = read(open_source(str(tmp_path / "t.parquet"), Columns("picture", ("a", "b", "c"))))
    assert [captions for _, captions, _ in found] == [[caption, "x", "y"] for caption in CAPTIONS]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (Columns(), "has the columns pix, words, and not one of image, .*; name one with --image-column"),
        (Columns("pix"), "not one of caption, .*; name one with --caption-column"),
        (Columns("pics"), "has the columns pix, words, and not 'pics'"),
    ],
)
def test_columns_that_are_not_there_are_listed(tmp_path, columns, said):
    parquet.write_table(pyarrow.table({"pix": PICTURES, "words": CAPTIONS}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=said):
        open_source(str(tmp_path / "t.parquet"), columns)


@pytest.mark.parametrize("place", ["", "annotations/captions_train2017.json"])
@pytest.mark.parametrize(("columns", "named"), [(Columns("pix"), "pix"), (Columns("pix", ("long",)), "pix, long")])
def test_columns_of_coco_are_refused(tmp_path, place, columns, named):
    said = f"holds pictures and captions as COCO has them, and no columns; got {named}; leave out --image-column"
    with pytest.raises(UserError, match=said):
        open_source(str(write_coco(tmp_path / "data") / place), columns)


def test_a_split_of_one_file_of_coco_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"2017\.json is read whole, whatever its split; got test; leave out --split"):
        open_source(f"{write_coco(tmp_path / 'data')}/annotations/captions_train2017.json", split="test")


def test_a_split_that_is_not_there(tmp_path):
    data = datasets.Dataset.from_dict({"image": PICTURES, "caption": CAPTIONS})
    datasets.DatasetDict(first=data, second=data).save_to_disk(tmp_path / "d")
    with pytest.raises(UserError, match="has the splits first, second, and not 'train'"):
        open_source(str(tmp_path / "d"))
    assert len(read(open_source(str(tmp_path / "d"), split="second"))) == COUNT
    datasets.Dataset.from_dict({"image": PICTURES, "caption": CAPTIONS}, split="test").save_to_disk(tmp_path / "one")
    for split in ("train", "test"):  # the first is what is meant where none is named
        assert len(read(open_source(str(tmp_path / "one"), split=split))) == COUNT
    with pytest.raises(UserError, match="has the splits test, and not 'validation'"):
        open_source(str(tmp_path / "one"), split="validation")


def test_an_arrow_file_that_datasets_cached(tmp_path):
    file = next(write_dataset(tmp_path / "d").glob("*.arrow"))
    assert [picture for picture, _, _ in read(open_source(str(file)))] == PICTURES


# --- what is not a source ----------------------------------------------------------------------------------------

NOTHING = {
    "nowhere": ("/nowhere/data", "no data at /nowhere/data; expected `mini`, a folder"),
    "no file of a pattern": ("/nowhere/*.tar", "no data at /nowhere"),
    "an unknown dataset": ("nobody/nothing", r"the dataset nobody/nothing \(train\) cannot be had"),
    "a folder mistyped": ("./pcitures", r"no data at \./pcitures; expected"),
    "a folder beside mistyped": ("../pcitures", r"no data at \.\./pcitures; expected"),
    "an unknown protocol": ("abc://x.tar", "Protocol not known|cannot be read"),
}


@pytest.mark.parametrize(("name", "said"), NOTHING.values(), ids=NOTHING.keys())
def test_nothing_there_is_said(name, said):
    with pytest.raises(UserError, match=said):
        list(open_source(name).units(2)[0].records())


def test_without_datasets_a_name_that_is_not_here_is_said_to_be_none(monkeypatch):
    """Who mistyped a folder installs nothing for it."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="there is no pcitures here, and pcitures, a Hugging Face dataset, needs"):
        open_source("pcitures")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.parquet", b"PAR1 no", "is no parquet file"),
        ("captions_a.json", b"{}", "is no COCO caption file"),
        ("captions_a.json", b"[]", "has no rows"),
        ("captions_a.json", b'{"images": [{"id": []}], "annotations": []}', "is no COCO caption file"),
        ("notes.txt", b"text", "is a file of a kind that is not read"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        open_source(str(tmp_path / name))


def test_a_folder_without_pictures_says_what_it_holds(tmp_path):
    (tmp_path / "a.parq").write_bytes(b"")
    (tmp_path / "none").mkdir()
    way_out = r"expected pictures with captions, a table or tars \(docs/data\.md\)"
    with pytest.raises(UserError, match=rf"holds no pictures, but \.parq 1; {way_out}"):
        open_source(str(tmp_path))
    with pytest.raises(UserError, match=rf"none holds no files that are read; {way_out}"):
        open_source(str(tmp_path / "none"))


def write_annotations(file, pictures, captions):
    content = {
        "images": [{"id": number, "file_name": name} for number, name in pictures.items()],
        "annotations": [{"image_id": number, "caption": caption} for number, caption in captions],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def test_of_several_caption_files_those_of_the_split_are_read(tmp_path):
    for part in ("train2014", "train2017", "val2017"):
        fill(tmp_path / part)
        write_annotations(tmp_path / "annotations" / f"captions_{part}.json", {1: "0.png"}, [(1, part)])
    found = {split: open_source(str(tmp_path), split=split) for split in ("train", "validation")}
    captions = {split: [texts[0] for _, texts, _ in read(source)] for split, source in found.items()}
    assert captions == {"train": ["train2014", "train2017"], "validation": ["val2017"]}
    (unit,) = found["validation"].units(9)
    assert [entry.reason for entry in unit.left_out] == ["other-split"] * 2 + ["not-in-metadata"] * (COUNT - 1)


def test_what_annotations_and_pictures_lack_is_counted(tmp_path):
    """Identifiers as text or numbers; captions of no picture, a picture of no caption, and one that is not named."""
    fill(tmp_path / "train2017")
    captions = [("1", "a cat"), (7, "nothing")]
    write_annotations(tmp_path / "captions_train2017.json", {1: "0.png", 2: "1.png", 3: None}, captions)
    source = open_source(str(tmp_path))
    (unit,) = source.units(9)
    assert [entry.reason for entry in unit.left_out] == ["no-picture"] + ["not-in-metadata"] * (COUNT - 2)
    assert reasons(source) == ["no-caption", "no-caption"]


@pytest.mark.parametrize("folder", ["images", "images/x", "."])
def test_pictures_near_annotations_of_any_name(tmp_path, folder):
    fill(tmp_path / "data" / folder)
    write_annotations(tmp_path / "data" / "captions_x.json", {1: "0.png"}, [(1, "a cat")])
    assert [picture for picture, _, _ in read(open_source(str(tmp_path / "data")))] == PICTURES[:1]


# --- hostile and broken content ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../a.png", "a/../../b.png", "/etc/a.png", "C:\\a.png", "..\\a.png", "", "a\0.png"])
def test_names_that_lead_out_of_their_folder(name):
    assert unsafe(name)


def test_pictures_are_read_from_their_folder_alone(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out.png").write_bytes(PICTURES[0])
    rows = [{"file_name": name, "text": "a"} for name in ("../out.png", str(tmp_path / "out.png"), "none.png", 7)]
    lines = [*map(json.dumps, rows), "{", '{"file_name": "a.png", "text": {}}']
    (tmp_path / "in" / "metadata.jsonl").write_text("\n".join(lines))
    assert reasons(open_source(str(tmp_path / "in"))) == [
        "unsafe-name",
        "unsafe-name",
        "missing-file",
        "no-picture",
        "metadata-not-json",
        "missing-file",
    ]
    for name in ("file:///etc/hostname", "simplecache::http://x/y.png", "ftp://x/y.png", "s3://a::file://b"):
        with pytest.raises(Skip, match="unsafe-name"):
            read_picture(name, tmp_path)


def test_a_picture_without_a_text_is_left_out(tmp_path):
    folder = write_folder(tmp_path / "data")
    (folder / "1.txt").unlink()
    (folder / "2.txt").write_bytes(b"\xff\xff")
    assert reasons(open_source(str(folder))) == ["no-caption", "caption-not-utf8"]


def test_hostile_members_of_a_tar_are_left_out_and_nothing_is_unpacked(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("../evil.png", "/evil.png", "a/../../evil.png"):
            add(archive, name, PICTURES[0])
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
        add(archive, "good.png", PICTURES[0])
        add(archive, "good.TXT", b"a cat")
        add(archive, "good.md", b"ignored")
        add(archive, "lonely.txt", b"no picture")
        add(archive, "mute.png", PICTURES[0])
        add(archive, "odd.png", PICTURES[0])
        add(archive, "odd.json", b"[]")
        add(archive, "long.png", PICTURES[0])
        add(archive, "long.txt", bytes(1 << 21))
    monkeypatch.chdir(tmp_path)
    found = read(open_source("a.tar"))
    assert [entry[0] for entry in found] == [
        *["unsafe-name"] * 3,
        "not-a-file",
        PICTURES[0],
        "metadata-not-json",
        "no-picture",
        "no-caption",
        "too-large",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


@pytest.mark.parametrize("kept", [0, 100, 512, 515])
def test_a_tar_that_breaks_off_gives_what_came_before(tmp_path, kept):
    whole = write_tar(tmp_path / "a.tar", 3).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: whole.index(b"1.txt") + kept])
    assert [entry[0] for entry in read(open_source(str(tmp_path / "a.tar")))] == [PICTURES[0], "corrupt-tar"]


def test_garbage_in_the_middle_of_a_tar_ends_it(tmp_path):
    content = bytearray(write_tar(tmp_path / "a.tar", 3).read_bytes())
    start = content.index(b"1.txt")
    content[start : start + 512] = b"\xff" * 512
    (tmp_path / "a.tar").write_bytes(content)
    assert [entry[0] for entry in read(open_source(str(tmp_path / "a.tar")))] == [PICTURES[0], "corrupt-tar"]


def test_a_compressed_tar(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(write_tar(tmp_path / "b", 2).read_bytes()))
    assert [picture for picture, _, _ in read(open_source(str(tmp_path / "a.tar.gz")))] == PICTURES[:2]


@given(
    changes=st.lists(st.tuples(st.integers(0, 10**5), st.binary(min_size=1, max_size=20)), max_size=5), data=st.data()
)
def test_any_tar_is_read_or_left_out(tmp_path, changes, data):
    whole = tmp_path / "whole.tar"
    content = bytearray((whole if whole.exists() else write_tar(whole, 2)).read_bytes())
    for position, change in changes:
        start = position % len(content)
        content[start : start + len(change)] = change
    cut = data.draw(st.integers(0, len(content)))
    for entry in grouped(io.BytesIO(content[: cut or None]), "x.tar"):
        assert isinstance(entry, (tuple, Rejected))


@given(st.binary(max_size=3000))
def test_any_bytes_are_no_tar(data):
    assert all(isinstance(entry, (tuple, Rejected)) for entry in grouped(io.BytesIO(data), "x.tar"))


# --- servers -----------------------------------------------------------------------------------------------------


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """URL of `tmp_path`."""
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


def test_tars_and_tables_of_a_server(tmp_path, server):
    write_tars(tmp_path / "tars")
    write_bytes_table(tmp_path / "table")
    tars, table = f"{server}/tars/{{00..01}}.tar", f"{server}/table/a.parquet"
    for name in (tars, table, f"{tars}?download=true", f"{table}?sig=a/b.c", f"simplecache::{table}"):
        assert [picture for picture, _, _ in read(open_source(name))] == PICTURES


def test_a_server_that_breaks_off_stops_the_unit(tmp_path, server, monkeypatch):
    whole = write_tar(tmp_path / "a.tar", 3).read_bytes()

    def half(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(whole)))
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(whole[: len(whole) // 2])

    monkeypatch.setattr(Quiet, "do_GET", half)
    monkeypatch.setattr(Quiet, "do_HEAD", half)
    with pytest.raises(UserError, match=r"a\.tar cannot be read: .*the same command goes on later"):
        read(open_source(f"{server}/a.tar"))


def test_a_file_the_server_does_not_have_stops_with_its_name(server):
    with pytest.raises(
        UserError, match=r"none\.tar cannot be read: 404, message='File not found'.*the same command goes on later"
    ):
        read(open_source(f"{server}/none.tar"))


@pytest.mark.parametrize("name", ["http://127.0.0.1:9/a.tar", "http://127.0.0.1:9/a.parquet"])
def test_a_server_that_is_not_there_is_called_that(name):
    with pytest.raises(UserError, match=r"cannot be read: .*(Connect call failed|Connection refused)"):
        read(open_source(name))


def test_pictures_by_url(tmp_path, server):
    fill(tmp_path)
    urls = [f"{server}/0.png", f"{server}/none.png", "http://127.0.0.1:9/a.png", "not a url", None]
    rows = {"URL": urls, "TEXT": CAPTIONS, "AESTHETIC_SCORE": [7.0] * COUNT}
    parquet.write_table(pyarrow.table(rows), tmp_path / "m.parquet")
    found = read(open_source(str(tmp_path / "m.parquet")))
    assert [picture for picture, _, _ in found] == [
        PICTURES[0],
        "http-404",
        "unreachable",
        "missing-file",
        "no-picture",
    ]
    assert found[0][2] == {"URL": urls[0], "TEXT": CAPTIONS[0], "AESTHETIC_SCORE": 7.0}


def test_a_slow_server_is_given_up(monkeypatch):
    def slow(*_, **__):
        raise urllib.error.URLError(TimeoutError("timed out"))

    monkeypatch.setattr(urllib.request, "urlopen", slow)
    with pytest.raises(Skip, match="timeout"):
        read_picture("http://x/a.png", None)


def test_a_picture_that_trickles_in_is_given_up(monkeypatch):
    """A byte at a time, each well within what a byte may take: the server has sent a few when its time is over."""
    sent = []

    class Trickling(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            with suppress(OSError):  # nobody listens any more
                for _ in range(1000):
                    self.wfile.write(b"x")
                    sent.append(1)
                    time.sleep(0.05)

        def log_message(self, *_):
            pass

    monkeypatch.setattr(files, "TIMEOUT", 0.5)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Trickling) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(Skip, match="timeout"):
            read_picture(f"http://127.0.0.1:{server.server_port}/a.png", None)
        assert 0 < len(sent) < 500
        server.shutdown()


def test_coco_pictures_are_fetched_where_there_is_no_folder(tmp_path, server):
    fill(tmp_path)
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "coco_url": f"{server}/{i}.png"} for i in range(COUNT)],
        "annotations": [{"image_id": i, "caption": caption} for i in range(COUNT) for caption in (CAPTIONS[i], "also")],
    }
    (tmp_path / "captions_x.json").write_text(json.dumps(content))
    found = read(open_source(f"{server}/captions_x.json"))
    assert [picture for picture, _, _ in found] == PICTURES
    assert found[0][1] == [CAPTIONS[0], "also"]


def test_annotations_in_a_published_archive(tmp_path, server):
    content = {"images": [{"id": 1, "coco_url": f"{server}/0.png"}], "annotations": [{"image_id": 1, "caption": "a"}]}
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("annotations/captions_x.json", json.dumps(content))
    fill(tmp_path)
    name = f"zip://annotations/captions_x.json::simplecache::{server}/all.zip"
    assert [picture for picture, _, _ in read(open_source(name))] == PICTURES[:1]


@pytest.mark.parametrize(("package", "write"), [("pyarrow", write_bytes_table), ("datasets", write_dataset)])
def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch, package, write):
    name = write(tmp_path / "data")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs {package} \(.*\); pip install {package}$"):
        open_source(str(name))


def test_a_name_on_the_hub(monkeypatch):
    asked = []
    data = datasets.Dataset.from_dict({"URL": ["none.png"], "TEXT": ["a"]})
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: asked.append((name, split)) or data)
    assert read(open_source("owner/some.name", split="test"))[0][0] == "missing-file"
    assert asked == [("owner/some.name", "test")]


def test_a_protocol_without_its_package_says_how_to_get_it(monkeypatch):
    def lacking(*_):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(files.fsspec, "open", lacking)
    with (
        pytest.raises(UserError, match=r"Install s3fs .*pip install 'fsspec\[http\]'"),
        opened("s3://a/b.tar"),
    ):
        pass


def test_records_have_keys_that_say_where_they_are(tmp_path):
    source = open_source(str(write_tars(tmp_path / "data")))
    keys = [record.key for unit in source.units(2) for record in unit.records() if isinstance(record, Record)]
    assert keys == ["0", "1", "2", "3", "4"]
