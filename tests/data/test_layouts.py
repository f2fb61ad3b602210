"""The layouts that people have their captioned pictures in: what is read of each, and what is counted or refused."""

import base64
import bz2
import gzip
import json
import lzma
import os
import tarfile
from collections import Counter
from contextlib import nullcontext

import pyarrow
import pytest
from pyarrow import parquet
from tests.data.making import add, noise, samples, saved, write_tar

from scott.data import sources
from scott.data.captions import read_captions
from scott.data.filters import Where
from scott.data.records import Columns, Record, Rejected, Skip
from scott.data.sources import open_source
from scott.data.sources.patterns import braces
from scott.errors import UserError

PICTURE = saved(noise(0))


def tree(folder, files):
    """Write name → bytes, text or rows of JSON."""
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "\n".join(map(json.dumps, content))
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def read(source):
    """(captions of what is kept by key, reasons of what is not with their number)."""
    kept, reasons = {}, Counter()
    for unit in source.units(3):
        for record in (*unit.left_out, *unit.records()):
            try:
                if isinstance(record, Rejected):
                    raise Skip(record.reason)
                assert record.image() == PICTURE
                kept[record.key] = read_captions(record.captions)[0]
            except Skip as skip:
                reasons[skip.reason] += 1
    return kept, dict(reasons)


CAPTIONED = {"a.png": PICTURE, "a.txt": "a cat"}
ROW = {"file_name": "a.png", "text": "a cat"}
LAYOUTS = {
    "metadata one folder down": {"train/a.png": PICTURE, "train/metadata.jsonl": [ROW]},
    "metadata of each folder": {
        "x/a.png": PICTURE,
        "x/metadata.jsonl": [ROW],
        "y/b.png": PICTURE,
        "y/metadata.csv": "file_name,caption\nb.png,a cat",
    },
    "the folder's name in front": {
        "train/a.png": PICTURE,
        "train/metadata.jsonl": [ROW | {"file_name": "train/a.png"}],
    },
    "two folders' names in front": {
        "train/a.png": PICTURE,
        "train/metadata.jsonl": [ROW | {"file_name": "data/train/a.png"}],
    },
    "backslashes": {"train/a.png": PICTURE, "metadata.jsonl": [ROW | {"file_name": "train\\a.png"}]},
    "columns image and prompt": {"a.png": PICTURE, "metadata.jsonl": [{"image": "a.png", "prompt": "a cat"}]},
    "a table of another name": {"a.png": PICTURE, "captions.csv": "path,caption\na.png,a cat"},
    "tabs": {"a.png": PICTURE, "list.tsv": "filename\tdescription\na.png\ta cat"},
    ".caption": {"a.png": PICTURE, "a.caption": "a cat"},
    ".TXT": {"a.png": PICTURE, "a.TXT": "a cat"},
    ".json beside": {"a.png": PICTURE, "a.json": [{"caption": "a cat", "score": 3}]},
    "the picture's whole name": {"a.png": PICTURE, "a.png.txt": "a cat"},
    "dots inside names": {"a.v1.0.png": PICTURE, "a.v1.0.txt": "a cat"},
    ".jfif": {"a.jfif": PICTURE, "a.txt": "a cat"},
    ".JPE": {"a.JPE": PICTURE, "a.txt": "a cat"},
    "no ending": {"a": PICTURE, "a.txt": "a cat"},
    "img2dataset's files": {
        "00000/000000000.jpg": PICTURE,
        "00000/000000000.txt": "a cat",
        "00000/000000000.json": "{}",
        "00000.parquet": b"its own",
        "00000_stats.json": "{}",
    },
    "a text in another composition": {"e\u0301.png": PICTURE, "\u00e9.txt": "a cat"},
    "a text in other case": {"IMG_1.PNG": PICTURE, "img_1.txt": "a cat"},
    "a row in another composition": {"e\u0301.png": PICTURE, "metadata.jsonl": [ROW | {"file_name": "\u00e9.png"}]},
    "a row in other case": {"A.PNG": PICTURE, "metadata.jsonl": [ROW]},
    "a row without the ending": {"a.png": PICTURE, "metadata.jsonl": [ROW | {"file_name": "a"}]},
    "a row that names the file alone": {"Images/a.png": PICTURE, "captions.csv": "image,caption\na.png,a cat"},
    "./ and //": {
        "a.png": PICTURE,
        "x/b.png": PICTURE,
        "metadata.jsonl": [ROW | {"file_name": "./a.png"}, ROW | {"file_name": "x//b.png"}],
    },
    "gzip": {"a.png": PICTURE, "metadata.jsonl.gz": gzip.compress(json.dumps(ROW).encode())},
    "a byte order mark": {"a.png": PICTURE, "metadata.csv": "\ufefffile_name,text\r\na.png,a cat\r\n"},
    "semicolons": {"a.png": PICTURE, "metadata.csv": "file_name;text\na.png;a cat\n"},
    "spaces behind commas": {"a.png": PICTURE, "metadata.csv": 'file_name, text\na.png, "a cat"\n'},
    "a list in JSON": {"a.png": PICTURE, "data.json": json.dumps([ROW])},
    "a folder named as a picture": {"a.png/b.png": PICTURE, "a.png/b.txt": "a cat"},
    "colons": {"C:a.png": PICTURE, "C:a.txt": "a cat"},
    "kohya's folders, deeper": {"img/10_a cat/a.png": PICTURE, "img/5_a cat/b.png": PICTURE},
    "texts in a tree of their own": {"images/x/a.png": PICTURE, "captions/x/a.txt": "a cat"},
    "texts in a tree of each split": {"train/img/a.png": PICTURE, "train/labels/a.txt": "a cat"},
    "texts in a folder below": {"a.png": PICTURE, "texts/a.txt": "a cat"},
    "Flickr8k": {"Images/a.jpg": PICTURE, "captions.txt": "image,caption\na.jpg,a cat\n"},
    "Flickr8k's first edition": {"Images/a.jpg": PICTURE, "Flickr8k.token.txt": "a.jpg#0\ta cat\n"},
    "Flickr30k": {
        "flickr30k/img/a.jpg": PICTURE,
        "flickr30k/results.csv": "image_name| comment_number| comment\na.jpg| 0| a cat\n",
    },
    "kohya's meta_cap.json": {"a.png": PICTURE, "meta_cap.json": json.dumps({"a.png": {"caption": "a cat"}})},
    "kohya's meta_lat.json": {
        "x/a.png": PICTURE,
        "meta_lat.json": json.dumps({"x/a": {"caption": "a cat", "tags": "cat", "train_resolution": [512, 512]}}),
    },
    "MJHQ-30K": {
        "mjhq30k_imgs/people/a1.jpg": PICTURE,
        "meta_data.json": json.dumps({"a1": {"category": "people", "prompt": "a cat"}}),
    },
    "captions of names in JSON": {"a.png": PICTURE, "captions.json": json.dumps({"a.png": "a cat"})},
    "lines of JSON in a .json": {
        "a.png": PICTURE,
        "b.png": PICTURE,
        "captions.json": [ROW, ROW | {"file_name": "b.png"}],
    },
    "COCO's form under another name": {
        "a.png": PICTURE,
        "annotations.json": json.dumps(
            {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": "a cat"}]}
        ),
    },
    "COCO's picture twice": {
        "a.png": PICTURE,
        "captions_train.json": json.dumps(
            {"images": [{"id": 1, "file_name": "a.png"}] * 2, "annotations": [{"image_id": 1, "caption": "a cat"}]}
        ),
    },
    "pictures as lists": {"a.png": PICTURE, "metadata.jsonl": [{"images": ["a.png"], "text": "a cat"}]},
    "no header": {"a.png": PICTURE, "captions.csv": "a.png,a cat\n"},
    "no header, captions first": {"a.png": PICTURE, "list.tsv": "a cat\ta.png\n"},
    "columns in other spellings": {"a.png": PICTURE, "metadata.csv": "Image Name,Caption\na.png,a cat\n"},
    "rows of several columns": {
        "a.png": PICTURE,
        "b.png": PICTURE,
        "metadata.jsonl": [ROW, {"file_name": "b.png", "caption": "a cat"}],
    },
    "lines that end with commas": {"a.png": PICTURE, "metadata.jsonl": json.dumps(ROW) + ",\n"},
    "a text in UTF-16": {"a.png": PICTURE, "a.txt": "a cat\r\n".encode("utf-16")},
    "a text in UTF-32": {"a.png": PICTURE, "a.txt": "a cat\n".encode("utf-32")},
    "a table whose first line names the separator": {
        "a.png": PICTURE,
        "metadata.csv": "sep=;\r\nfile_name;text\r\na.png;a cat\r\n",
    },
    "lists in a csv, as JSON": {"a.png": PICTURE, "x.csv": 'text,file_name\n"[""a cat"", ""it""]",a.png\n'},
    "lists in a csv, as pandas writes them": {"a.png": PICTURE, "x.csv": "text,file_name\n\"['a cat', 'it']\",a.png\n"},
    "a table in UTF-16": {"a.png": PICTURE, "metadata.csv": "file_name,text\r\na.png,a cat".encode("utf-16")},
    "rows that end at carriage returns": {"a.png": PICTURE, "metadata.csv": "file_name,text\ra.png,a cat\r"},
    "a row with a URL's escapes": {"a b.png": PICTURE, "metadata.jsonl": [ROW | {"file_name": "a%20b.png"}]},
    "a row with spaces around": {"a.png": PICTURE, "metadata.csv": "file_name,text\na.png ,a cat"},
    "an absolute path from elsewhere": {
        "x/a.png": PICTURE,
        "metadata.jsonl": [ROW | {"file_name": "/home/me/data/x/a.png"}],
    },
    "an absolute path of Windows": {"a.png": PICTURE, "metadata.jsonl": [ROW | {"file_name": "C:\\me\\data\\a.png"}]},
    "file://": {"a.png": PICTURE, "metadata.jsonl": [ROW | {"file_name": "file:///home/me/data/a.png"}]},
    "what systems leave behind": CAPTIONED | dict.fromkeys(["._a.png", "thumbs.db", "Icon\r", "__MACOSX/a.png"], ""),
    "kohya's folders": {"10_a cat/a.png": PICTURE, "2_dogs/b.png": PICTURE, "2_dogs/b.txt": "a cat"},
}


@pytest.mark.parametrize("files", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_usual_layouts_are_read_whole(tmp_path, files):
    kept, reasons = read(open_source(str(tree(tmp_path / "data", files))))
    pictures = sum(content is PICTURE for content in files.values())
    assert [*kept.values()] == ["a cat"] * len(kept)
    assert (len(kept), reasons) == (pictures, {})


REFUSED = {
    "a header and nothing else": (
        {"metadata.csv": "file_name,text\n"},
        r"has no rows below its header \(file_name, text",
    ),
    "an empty table": ({"metadata.jsonl": ""}, "has no rows"),
    "two tables of the same pictures": (
        {"metadata.jsonl": [ROW], "metadata.csv": "file_name,text\na.png,a cat"},
        r"several tables of the same pictures \(metadata\.csv, metadata\.jsonl\); name one",
    ),
    "two columns of a name": ({"metadata.csv": "file_name,text,text\na.png,x,y"}, "several columns 'text'"),
    "what save_to_disk did not write": ({"x.arrow": "", "README.md": ""}, r"no pictures, but \.md 1, \.arrow 1"),
    "shards": ({"preparation.json": "{}"}, "holds what `scott prepare` made; give it to `scott distill`"),
    "a pointer of Git LFS": ({"a.parquet": "version https://git-lfs.github.com/spec/v1\n"}, "run git lfs pull"),
    "a table that is a pointer of Git LFS": (
        {"metadata.csv": "version https://git-lfs.github.com/spec/v1\n"},
        "git lfs pull",
    ),
    "a table that is a workbook of Excel": ({"metadata.csv": b"PK\3\4\x14\0"}, "a table of Excel; unpack it first"),
    "a table that is a web page": ({"metadata.csv": "<!DOCTYPE html>\n<p>404"}, "web-page.*download it again"),
    "a web page for a table": ({"a.parquet": "<html>"}, r"is no parquet file \(web-page\)"),
    "a table in UTF-16 without its mark": ({"metadata.csv": "file_name,text".encode("utf-16-le")}, "without the mark"),
    "a table that breaks off": ({"metadata.jsonl": '{"file_name": "a.png",\n'}, "no row that is a JSON object"),
    "a list that breaks off": ({"metadata.json": '[{"file_name": "a.png", "text": "a'}, "no row that is a JSON object"),
    "a row of three columns for a header": ({"list.csv": "1,a.png,a cat\n"}, "begins with a row, not with the names"),
    "COCO's boxes": (
        {"x.json": json.dumps({"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1}]})},
        r"x\.json is no COCO caption file \(KeyError\('caption'\)\)",
    ),
    "tags alone": ({"meta_cap.json": '{"a.png": {"tags": "cat"}}'}, "name one with --caption-column"),
    "an empty parquet file": ({"a.parquet": ""}, "is no parquet file"),
}


@pytest.mark.parametrize(("files", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_other_layouts_are_refused_with_the_reason(tmp_path, files, said):
    tree(tmp_path, files if "README.md" in files or "a.parquet" in files else {"a.png": PICTURE} | files)
    with pytest.raises(UserError, match=said):
        open_source(str(tmp_path)).units(9)


LEFT_OUT = {
    "a link in a circle": ({}, "missing-file"),
    "a pointer of Git LFS": (
        {"b.png": b"version https://git-lfs.github.com/spec/v1\n", "b.txt": "b"},
        "git-lfs-pointer",
    ),
    "a caption that is a pointer of Git LFS": (
        {"b.png": PICTURE, "b.txt": "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"},
        "git-lfs-pointer",
    ),
    "a second text of a picture": ({"a.caption": "another"}, "other-file"),
    "a table beside texts": ({"list.csv": "path,caption\na.png,b"}, "other-file"),
    "kohya's pictures of the class": ({"reg/1_cat/b.png": PICTURE, "reg/1_cat/b.txt": "cat"}, "regularisation"),
    "DreamBooth's pictures of the class": ({"class_images/b.png": PICTURE}, "regularisation"),
    "a caption in UTF-16 without its mark": (
        {"b.png": PICTURE, "b.txt": "a dog".encode("utf-16-le")},
        "caption-not-utf8",
    ),
    "a .json of no picture": ({"b.json": "{}"}, "other-file"),
    "labels of YOLO": ({"images/b.png": PICTURE, "labels/b.txt": "0 0.5 0.5 0.25 0.25\n"}, "caption-not-text"),
    "the pictures of a test split": ({"test_images/b.png": PICTURE, "test_images/b.txt": "b"}, "other-split"),
}


@pytest.mark.parametrize(("files", "reason"), LEFT_OUT.values(), ids=LEFT_OUT.keys())
def test_what_is_left_out_has_its_reason(tmp_path, files, reason):
    tree(tmp_path, CAPTIONED | files)
    if not files:
        (tmp_path / "b.png").symlink_to("b.png")
    found = [entry.reason if isinstance(entry, Rejected) else "kept" for entry in samples(open_source(str(tmp_path)))]
    assert sorted(found) == sorted(["kept", reason])


def test_of_an_absolute_path_the_folders_own_name_counts(tmp_path):
    """Another folder's pictures may have the same names."""
    tree(tmp_path / "b", {"a.png": PICTURE, "metadata.jsonl": [ROW | {"file_name": "/home/me/other/a.png"}]})
    assert read(open_source(str(tmp_path / "b"))) == ({}, {"not-in-metadata": 1, "unsafe-name": 1})


PICTURE_64 = base64.b64encode(PICTURE).decode()
CELLS = {
    "base64": ("image", PICTURE_64, "kept"),
    "base64 as a data: URL": ("image", f"data:image/png;base64,{PICTURE_64}", "kept"),
    "a list of one": ("images", [PICTURE], "kept"),
    "a list of one {bytes, path}": ("images", [{"bytes": PICTURE, "path": None}], "kept"),
    "a list of several": ("images", [PICTURE, PICTURE], "several-pictures"),
    "an empty list": ("images", [], "no-picture"),
    "numbers": ("image", [137, 80], "no-picture"),
    "base64 that breaks off": ("image", PICTURE_64[:-3], "unreadable-file"),
}


@pytest.mark.parametrize(("column", "cell", "reason"), CELLS.values(), ids=CELLS.keys())
def test_cells_of_pictures(tmp_path, column, cell, reason):
    parquet.write_table(pyarrow.table({column: [cell], "caption": ["a cat"]}), tmp_path / "a.parquet")
    kept, reasons = read(open_source(str(tmp_path)))
    assert ([*kept.values()], reasons) == ((["a cat"], {}) if reason == "kept" else ([], {reason: 1}))
    if isinstance(cell, str):
        tree(tmp_path, {"a.jsonl": [{column: cell, "caption": "a cat"}]})
        assert list(read(open_source(str(tmp_path / "a.jsonl")))[0].values()) == [*kept.values()]


def test_bytes_that_are_no_utf8_count_in_their_row(tmp_path):
    tree(
        tmp_path, {"a.png": PICTURE, "b.png": PICTURE, "metadata.csv": b"file_name,text\na.png,a cat\nb.png,caf\xe9\n"}
    )
    assert read(open_source(str(tmp_path))) == ({"a.png": "a cat"}, {"caption-not-utf8": 1})


def test_a_name_alone_is_no_picture_of_another_tables_folder(tmp_path):
    """Nor one that several have, nor one of another folder than the row says: captions would go to other pictures."""
    tree(tmp_path, {"x/a.png": PICTURE, "x/metadata.jsonl": [ROW], "y/metadata.jsonl": [ROW]})
    assert read(open_source(str(tmp_path)))[1] == {"missing-file": 1}
    tree(tmp_path / "two", {"x/a.png": PICTURE, "y/a.png": PICTURE, "z/b.png": PICTURE})
    tree(tmp_path / "two", {"list.csv": "path,caption\na.png,one\ny/b.png,two"})
    assert read(open_source(str(tmp_path / "two"))) == ({}, {"missing-file": 2, "not-in-metadata": 3})


def test_a_date_is_no_number_of_visits(tmp_path):
    source = open_source(str(tree(tmp_path, {"20240131_cat/a.png": PICTURE, "20240131_cat/a.txt": "a cat"})))
    assert [unit.repeats for unit in source.units(9)] == [1]


def test_a_clone_of_several_configurations_is_refused(tmp_path):
    """Each of them may hold the same pictures."""
    for name in ("en", "de"):
        write_table(tmp_path / name / "train-00000-of-00001.parquet")
    for names, said in ((("en",), None), (("en", "de"), "holds the configurations en, de; name the files of one")):
        configs = "".join(f"- config_name: {name}\n  data_files: {name}/*\n" for name in names)
        (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
        with pytest.raises(UserError, match=said) if said else nullcontext():
            open_source(str(tmp_path))


def test_files_of_several_schemas_are_refused(tmp_path):
    write_table(tmp_path / "a.parquet")
    parquet.write_table(pyarrow.table({"image": [PICTURE], "text": ["a cat"]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"b\.parquet has the columns image, text, and not 'caption' as .*a\.parquet"):
        open_source(str(tmp_path)).units(9)
    table = pyarrow.Table.from_arrays([TABLE["image"], TABLE["caption"], TABLE["caption"]], ["image", *["caption"] * 2])
    parquet.write_table(table, tmp_path / "c.parquet")
    with pytest.raises(UserError, match="several columns 'caption'"):
        open_source(str(tmp_path / "c.parquet"))


def test_the_columns_of_a_json_beside_are_known(tmp_path):
    source = open_source(str(tree(tmp_path, LAYOUTS[".json beside"])))
    assert list(source.columns) == ["caption", "score"]
    (record,) = source.units(1)[0].records()
    assert record.columns == {"caption": "a cat", "score": 3}


def test_a_named_column_is_that_of_the_json_beside(tmp_path):
    tree(tmp_path, {"a.png": PICTURE, "a.txt": "a text", "a.json": [{"short": "a cat", "caption": "long"}]})
    assert read(open_source(str(tmp_path)))[0] == {"a.png": "a text"}
    assert read(open_source(str(tmp_path), Columns(None, ("short",))))[0] == {"a.png": "a cat"}


@pytest.mark.parametrize("columns", [Columns(None, ("short",)), Columns("image")])
def test_columns_of_texts_are_refused(tmp_path, columns):
    with pytest.raises(UserError, match=r"and no columns; got (short|image)"):
        open_source(str(tree(tmp_path, CAPTIONED)), columns)


@pytest.mark.parametrize("packed", [False, True])
def test_a_column_that_the_first_record_lacks_is_there(tmp_path, packed):
    """A score is written where it is known."""
    files = {"a.json": json.dumps({"caption": "a cat"}), "b.json": json.dumps({"caption": "a dog", "score": 7})}
    files |= {"a.png": PICTURE, "b.png": PICTURE}
    if packed:
        with tarfile.open(tmp_path / "data.tar", "w") as archive:
            for name, content in sorted(files.items()):
                add(archive, name, content if isinstance(content, bytes) else content.encode())
    else:
        tree(tmp_path / "data.tar", files)
    source = open_source(str(tmp_path / "data.tar"))
    assert list(source.columns) == ["caption", "score"]
    records = [record for unit in source.units(3) for record in unit.records()]
    wanted = Where("score > 5", source.columns)
    assert [wanted(record.columns) for record in records] == [False, True]


def test_a_table_behind_a_url_is_refused_with_the_reason():
    with pytest.raises(UserError, match="is a table of text behind a URL, which is not read; download it"):
        open_source("https://example.org/a.csv")


def test_repeats_are_those_of_the_folders_names(tmp_path):
    units = open_source(str(tree(tmp_path, LAYOUTS["kohya's folders"]))).units(10)
    assert [(unit.repeats, unit.count) for unit in units] == [(10, 1), (2, 1)]
    (tmp_path / "c.png").write_bytes(PICTURE)
    assert {unit.repeats for unit in open_source(str(tmp_path)).units(10)} == {1}, "one picture lies elsewhere"


def test_a_table_may_be_named_and_its_paths_be_absolute(tmp_path):
    tree(tmp_path, {"a.png": PICTURE, "b/list.csv": f"path,caption\n../a.png,x\n{tmp_path}/a.png,a cat"})
    kept, reasons = read(open_source(str(tmp_path / "b" / "list.csv")))
    assert (list(kept.values()), reasons) == (["a cat"], {"unsafe-name": 1})


# --- rows --------------------------------------------------------------------------------------------------------


def test_rows_end_at_newlines_alone(tmp_path):
    captions = ["one\u2028two", "x\u0085y", "n\x0bm", "o\x1ck", "é", "zwj 👨‍👩‍👧"]
    rows = [json.dumps({"file_name": "a.png", "text": text}, ensure_ascii=False) for text in captions]
    tree(tmp_path, {"a.png": PICTURE, "metadata.jsonl": "\r\n".join(rows)})
    (unit,) = open_source(str(tmp_path)).units(10)
    assert [record.captions for record in unit.records()] == captions
    cells = ["file_name,text", *(f"a.png,{text}" for text in (*captions, "a\rb"))]
    tree(tmp_path / "csv", {"a.png": PICTURE, "metadata.csv": "\n".join(cells)})
    (unit,) = open_source(str(tmp_path / "csv")).units(10)
    assert [record.captions for record in unit.records()] == [*captions, "a b"]


def test_captions_in_a_csv_are_text_and_other_cells_may_be_numbers(tmp_path):
    captions = ["1984", "007", "1e5", "NaN", "null", "true", "Infinity", "[1]"]
    cells = ["file_name,text,score", *(f"a.png,{text},{i}" for i, text in enumerate(captions))]
    tree(tmp_path, {"a.png": PICTURE, "metadata.csv": "\n".join(cells)})
    (unit,) = open_source(str(tmp_path)).units(10)
    records = list(unit.records())
    assert [read_captions(record.captions) for record in records] == [[text] for text in captions]
    seen = [{"file_name": "a.png", "text": text, "score": i} for i, text in enumerate(captions)]
    assert [record.columns for record in records] == seen


def test_a_broken_row_is_counted_and_the_others_are_read(tmp_path):
    rows = ["file_name,text", 'a.png,"a "cat"', "a.png,a cat", f'a.png,"{"x" * 2_000_000}"', "a.png,a dog", 'a.png,"a']
    tree(tmp_path, {"a.png": PICTURE, "metadata.csv": "\n".join(rows)})
    kept, reasons = read(open_source(str(tmp_path)))
    assert (kept, reasons) == ({"a.png": "a dog"}, {"broken-row": 2, "caption-too-long": 1})
    rows = ["file_name,text", "", 'a.png,"open', "b.png,a dog", 'c.png,"a fox"', 'd.png,"open', "e.png,a hen"]
    tree(tmp_path / "open", {f"{name}.png": PICTURE for name in "abcde"} | {"metadata.csv": "\n".join(rows)})
    kept, reasons = read(open_source(str(tmp_path / "open")))
    assert kept == {"b.png": "a dog", "c.png": "a fox", "e.png": "a hen"}
    assert reasons == {"broken-row": 2, "not-in-metadata": 2}
    lines = [json.dumps(ROW).encode(), b'{"file_name": "a.png", "text": "caf\xe9"}', bytes(9), json.dumps(ROW).encode()]
    tree(tmp_path / "json", {"a.png": PICTURE, "metadata.jsonl": b"\n".join(lines)})
    assert read(open_source(str(tmp_path / "json"))) == ({"a.png": "a cat"}, {"metadata-not-json": 2})


def test_a_row_of_more_cells_than_columns_is_not_cut(tmp_path):
    rows = ["file_name,text", "a.png,a cat, sitting", 'a.png,"a cat, sitting"', "a.png,a cat,"]
    tree(tmp_path, {"a.png": PICTURE, "metadata.csv": "\n".join(rows)})
    (unit,) = open_source(str(tmp_path)).units(9)
    found = [getattr(record, "reason", None) or record.captions for record in unit.records()]
    assert found == ["more-cells-than-columns", "a cat, sitting", "a cat"]


# --- several kinds, splits, gaps ---------------------------------------------------------------------------------

TABLE = pyarrow.table({"image": [PICTURE], "caption": ["a cat"]})


def write_table(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(TABLE, file)


@pytest.mark.parametrize("stray", ["b.tar", "x/b.tar.gz", "b.parquet", "b.zip"])
def test_a_stray_file_among_captioned_pictures_is_refused_by_name(tmp_path, stray):
    tree(tmp_path, CAPTIONED | {stray: b""})
    with pytest.raises(UserError, match=rf"holds a.* \({stray}\) and a captioned picture \(a\.png\); name one"):
        open_source(str(tmp_path))


def test_tars_and_tables_are_refused_together_and_img2datasets_are_not(tmp_path):
    write_tar(tmp_path / "00000.tar", 2)
    write_table(tmp_path / "00000.parquet")
    assert open_source(str(tmp_path)).kind == "webdataset"
    write_table(tmp_path / "other.parquet")
    with pytest.raises(UserError, match=r"holds an archive \(00000\.tar\) and a table \(other\.parquet\)"):
        open_source(str(tmp_path))


def test_pictures_without_captions_beside_tars_are_counted(tmp_path):
    write_tar(tmp_path / "00000.tar", 1)
    tree(tmp_path, {"assets/logo.png": PICTURE, "README.md": "a data set", "00001.tar.part": "half of it"})
    kept, reasons = read(open_source(str(tmp_path)))
    assert (len(kept), reasons) == (1, {"no-caption": 1, "other-file": 1})


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("a.parquet", "a_eval.parquet"),
        ("split=train/part-0.parquet", "split=test/part-0.parquet"),
        ("Train.parquet", "testing.parquet"),
    ],
)
def test_tables_of_another_split_are_counted_and_not_read(tmp_path, train, test):
    for name in (train, test):
        write_table(tmp_path / name)
    for split, name in (("train", train), ("test", test)):
        source = open_source(str(tmp_path), split=split)
        assert source.files == [str(tmp_path / name)]
        assert read(source)[1] == {"other-split": 1}
    with pytest.raises(UserError, match="has the splits test, train, and not 'validation'; name one with --split"):
        open_source(str(tmp_path), split="validation")


def test_a_table_of_the_pictures_in_the_folder_of_its_name_is_read(tmp_path):
    tree(tmp_path, {"train/a.png": PICTURE})
    parquet.write_table(pyarrow.table({"image": ["train/a.png"], "caption": ["a cat"]}), tmp_path / "train.parquet")
    assert list(read(open_source(str(tmp_path)))[0].values()) == ["a cat"]


def test_tables_of_two_splits_beside_their_pictures(tmp_path):
    tables = {f"{part}.csv": f"path,caption\n{part}.png,a cat" for part in ("train", "test")}
    tree(tmp_path, tables | {"train.png": PICTURE, "test.png": PICTURE})
    for part, other in (("train", "test"), ("test", "train")):
        kept, reasons = read(open_source(str(tmp_path), split=part))
        assert (kept, reasons) == ({f"{part}.png": "a cat"}, {"other-split": 1, "not-in-metadata": 1}), other


def test_a_split_that_nothing_is_named_after_is_refused(tmp_path):
    with pytest.raises(UserError, match="has the splits train, and not 'test'; name one with --split"):
        open_source(str(tree(tmp_path, CAPTIONED)), split="test")


def test_a_pattern_keeps_to_the_split_unless_it_names_one(tmp_path):
    for name in ("train-0.parquet", "test-0.parquet"):
        write_table(tmp_path / name)
    assert read(open_source(f"{tmp_path}/*.parquet"))[1] == {"other-split": 1}
    assert open_source(f"{tmp_path}/test-*.parquet").files == [f"{tmp_path}/test-0.parquet"]
    assert open_source(f"{tmp_path}/test-0.parquet").files == [f"{tmp_path}/test-0.parquet"]


def test_files_that_nothing_says_are_of_a_split_are_not_taken_for_it(tmp_path):
    """Training pictures would be measured as held-out ones."""
    write_table(tmp_path / "train-0.parquet")
    with pytest.raises(UserError, match="has the splits train, and not 'validation'"):
        open_source(f"{tmp_path}/*.parquet", split="validation")
    for name in ("train-0.parquet", "train-{0..1}.parquet", "a.tar", "a.csv"):
        (tmp_path / name).touch()
        with pytest.raises(UserError, match="is read whole, whatever its split; got validation; leave out --split"):
            open_source(f"{tmp_path}/{name}", split="validation")
    write_table(tmp_path / "val-0.parquet")
    assert open_source(f"{tmp_path}/*.parquet", split="validation").files == [f"{tmp_path}/val-0.parquet"]


@pytest.mark.parametrize(
    ("table", "content"),
    [
        ("meta_lat.json", json.dumps({"a": {"caption": "a cat"}, "b": {"caption": "a dog"}})),
        ("metadata.csv", "file_name,text\na.png,a cat\nb.png,a dog\n"),
    ],
    ids=["keys without endings", "names in other case and below"],
)
def test_a_table_that_is_named_finds_the_pictures_that_its_folder_does(tmp_path, table, content):
    tree(tmp_path, {"A.PNG": PICTURE, "sub/b.png": PICTURE, table: content})
    kept, left_out = read(open_source(f"{tmp_path}/{table}"))
    assert ([*kept.values()], left_out) == (["a cat", "a dog"], {})
    assert kept == read(open_source(str(tmp_path)))[0]


def test_pictures_that_are_where_a_named_table_says_are_not_looked_for(tmp_path, monkeypatch):
    """Its folder may be a large one."""
    monkeypatch.setattr(sources, "survey", None)
    tree(tmp_path, {"a.png": PICTURE, "t.csv": f"file_name,text\na.png,a cat\n{tmp_path}/a.png,a cat\n"})
    assert len(read(open_source(f"{tmp_path}/t.csv"))[0]) == 2


def test_pictures_of_another_split(tmp_path):
    tree(tmp_path, {f"{part}/{name}": c for part in ("train", "val2017", "x") for name, c in CAPTIONED.items()})
    tree(tmp_path, {"x/test-b.png": PICTURE, "x/test-b.txt": "a cat", "split=test/c.png": PICTURE})
    kept, reasons = read(open_source(str(tmp_path)))
    assert (sorted(kept), reasons) == (["train/a.png", "x/a.png", "x/test-b.png"], {"other-split": 2})
    assert sorted(read(open_source(str(tmp_path), split="validation"))[0]) == ["val2017/a.png"]


def test_metadata_of_another_split(tmp_path):
    files = LAYOUTS["metadata one folder down"]
    tree(tmp_path, files | {name.replace("train", "test"): content for name, content in files.items()})
    kept, reasons = read(open_source(str(tmp_path), split="test"))
    assert (len(kept), reasons) == (1, {"other-split": 2})


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["00000.tar", "00001.tar", "00003.tar"], 1),
        (["a-00000-of-00004.tar", "a-00002-of-00004.tar"], 2),
        (["a-00001-of-00002.tar", "a-00002-of-00002.tar"], 0),
        (["20200101.tar", "20211231.tar"], 0),
        (["00000.tar", "00001.tar", "00002.tar", "00009.tar"], 6),
        (["shard-0.tar", "shard-1.tar", "shard-3.tar"], 1),
        (["a.tar", "b.tar"], 0),
    ],
)
def test_missing_shards_of_a_numbered_set_are_counted(tmp_path, names, missing):
    for name in names:
        write_tar(tmp_path / name, 1)
    for source in (str(tmp_path), f"{tmp_path}/*.tar"):
        assert read(open_source(source))[1] == ({"missing-shard": missing} if missing else {})


def test_missing_files_of_a_range_are_counted(tmp_path):
    write_tar(tmp_path / "01.tar", 1)
    assert read(open_source(f"{tmp_path}/{{00..02}}.tar"))[1] == {"missing-shard": 2}


# --- every file is counted ---------------------------------------------------------------------------------------


def test_what_is_seen_in_a_folder_is_counted(tmp_path):
    tree(
        tmp_path,
        CAPTIONED
        | {
            "mute.png": PICTURE,
            "lonely.txt": "nobody",
            "page.heic": b"\0\0\0 ftypheic",
            "page.txt": "a page",
            "cache.npz": b"",
            ".hidden.png": PICTURE,
            "README.md": "",
            "LICENSE.txt": "",
        },
    )
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "gone.png").symlink_to("nowhere")
    source = open_source(str(tmp_path))
    reasons = Counter(entry.reason for unit in source.units(9) for entry in unit.left_out)
    assert reasons == {"no-picture": 1, "other-file": 1, "not-a-file": 2, "missing-file": 1}
    (unit,) = source.units(9)
    assert [getattr(record, "reason", record.key) for record in unit.records()] == ["a.png", "no-caption", "page.heic"]


def test_linked_folders_are_read_once(tmp_path):
    tree(tmp_path / "elsewhere", CAPTIONED)
    tree(tmp_path / "data", {"b.png": PICTURE, "b.txt": "a cat"})
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data")
    kept, reasons = read(open_source(str(tmp_path / "data")))
    assert (sorted(kept), reasons) == (["b.png", "linked/a.png"], {"linked-twice": 1})


def test_a_folder_that_cannot_be_listed_is_counted(tmp_path, monkeypatch):
    tree(tmp_path, CAPTIONED | {"closed/b.png": PICTURE})
    real = os.scandir

    def scandir(place):
        if str(place).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return real(place)

    monkeypatch.setattr(os, "scandir", scandir)
    assert read(open_source(str(tmp_path)))[1] == {"unreadable-folder": 1}


def test_a_caption_that_cannot_be_read_is_not_called_missing(tmp_path):
    tree(tmp_path, {"a.png": PICTURE, "b.png": PICTURE, "b.txt": "a cat"})
    (tmp_path / "a.txt").write_text("a cat")
    source = open_source(str(tmp_path))
    (tmp_path / "a.txt").unlink()
    (tmp_path / "a.txt").mkdir()
    assert read(source)[1] == {"unreadable-caption": 1}


def test_a_picture_that_cannot_be_read_is_not_called_missing(tmp_path, monkeypatch):
    tree(
        tmp_path, {"metadata.jsonl": [ROW, ROW | {"file_name": "pipe"}, ROW | {"file_name": "none"}], "a.png": PICTURE}
    )
    os.mkfifo(tmp_path / "pipe")
    source = open_source(str(tmp_path))
    real = os.open

    def refused(path, *how):
        if str(path).endswith("a.png"):
            raise PermissionError(13, "Permission denied")
        return real(path, *how)

    monkeypatch.setattr(os, "open", refused)
    assert read(source)[1] == {"unreadable-file": 2, "missing-file": 1, "not-a-file": 1}


def test_pictures_that_no_row_names_are_counted(tmp_path):
    tree(tmp_path, {"x/a.png": PICTURE, "b.png": PICTURE, "metadata.jsonl": [ROW | {"file_name": "x\\a.png"}]})
    assert read(open_source(str(tmp_path)))[1] == {"not-in-metadata": 1}


def test_a_picture_that_a_row_names_without_a_caption_is_counted_once(tmp_path):
    tree(tmp_path, {"a.png": PICTURE, "b.png": PICTURE, "metadata.jsonl": [ROW, {"file_name": "b.png"}]})
    assert read(open_source(str(tmp_path))) == ({"a.png": "a cat"}, {"no-caption": 1})


# --- tars --------------------------------------------------------------------------------------------------------


TEXT_AND_PICTURE = {"txt": b"a cat", "png": PICTURE}


def tar_of(file, members):
    with tarfile.open(file, "w") as archive:
        for name, content in members:
            add(archive, name, content)
    return read(open_source(str(file)))


TARS = {
    "pictures first, texts after": (["a.png", "b.png", "a.txt", "b.txt"], ["a", "b"], {}),
    "dots inside names": (["i.01.png", "i.01.txt", "i.02.png", "i.02.txt"], ["i.01", "i.02"], {}),
    "both": (["i.01.png", "i.02.png", "i.01.txt", "i.02.txt"], ["i.01", "i.02"], {}),
    "several pictures of a text": (["a.img.png", "a.seg.png", "a.txt", "b.png", "b.txt"], ["a", "b"], {}),
    "a mask before the picture": (["a.mask.png", "a.png", "a.txt"], ["a"], {}),
    "two pictures of words of their own": (["a.old.png", "a.new.png", "a.txt"], [], {"several-pictures": 1}),
    "two pictures of the name alone": (["a.jpg", "a.png", "a.txt"], [], {"several-pictures": 1}),
    "a dotted one without a text": (["i.01.png", "i.01.txt", "i.02.png"], ["i.01"], {"no-caption": 1}),
    "the same key twice": (["a.png", "a.txt", "a.png", "a.txt", "b.png", "b.txt"], ["a", "b"], {}),
    "a part twice": (["a.png", "a.txt", "a.txt"], ["a"], {"no-picture": 1}),
    "other endings": (
        ["a.jfif", "a.txt", "b", "b.txt", "c.cls", "d.heic", "d.txt"],
        ["a", "b", "d"],
        {"no-picture": 1},
    ),
    "another composition": (["e\u0301.png", "\u00e9.txt"], ["\u00e9"], {}),
    "a table in a tar": (["a.png", "a.txt", "metadata.jsonl"], ["a"], {"table-in-tar": 1}),
    "both parts with words in front": (["a.image.png", "a.caption.txt"], ["a"], {}),
    "macOS": (["._a.png", "a.png", "a.txt", "__MACOSX/a.png"], ["a"], {}),
}


@pytest.mark.parametrize(("members", "keys", "reasons"), TARS.values(), ids=TARS.keys())
def test_records_of_a_tar(tmp_path, members, keys, reasons):
    contents = [(name, b"a cat" if name.endswith("txt") else PICTURE) for name in members]
    kept, left_out = tar_of(tmp_path / "a.tar", contents)
    assert (sorted(kept), left_out) == (keys, reasons)


@pytest.mark.parametrize(
    ("members", "column", "chosen"),
    [
        (["mask.png", "png", "txt"], None, "png"),
        (["depth.png", "jpg", "txt"], None, "jpg"),
        (["mask.png", "image.png", "txt"], None, "image.png"),
        (["condition.jpg", "target.jpg", "json"], None, None),
        (["condition.jpg", "target.jpg", "json"], "target.jpg", "target.jpg"),
        (["jpg", "png", "txt"], "png", "png"),
        (["jpg", "mask.png", "txt"], "mask.png", "mask.png"),
    ],
)
def test_which_of_several_pictures_of_a_tar_is_read(tmp_path, members, column, chosen):
    texts = {"txt": b"a cat", "json": b'{"caption": "a cat"}'}
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in members:
            add(archive, f"0.{name}", texts.get(name, name.encode()))
    (unit,) = open_source(str(tmp_path / "a.tar"), Columns(column)).units(1)
    (record,) = unit.records()
    if chosen:
        assert record.image() == chosen.encode()
    else:
        found = (record.reason, record.detail)
        assert found == ("several-pictures", ".condition.jpg, .target.jpg; name one with --image-column")


def test_both_records_of_one_key_are_kept(tmp_path):
    tar_of(tmp_path / "a.tar", [("a.png", PICTURE), ("a.txt", b"one"), ("a.png", PICTURE), ("a.txt", b"two")])
    (unit,) = open_source(str(tmp_path / "a.tar")).units(1)
    assert [record.captions for record in unit.records()] == [b"one", b"two"]


@pytest.mark.parametrize("stem", ["", "dotted."])
@pytest.mark.parametrize("texts_first", [False, True])
def test_what_waits_in_a_tar_is_bounded(tmp_path, monkeypatch, stem, texts_first):
    """Of one here, parts are read again; of one that is packed, those of the oldest are gone, once each and by the
    reason, and a picture without a text is that still."""
    monkeypatch.setattr("scott.data.sources.tar.WAITING", 4 * len(PICTURE))
    pictures = [(f"{stem}{i:02}.png", PICTURE) for i in range(12)]
    texts = [(f"{stem}{i:02}.txt", b"a cat".ljust(len(PICTURE) if texts_first else 0)) for i in range(11)]
    kept, reasons = tar_of(tmp_path / "a.tar", texts + pictures if texts_first else pictures + texts)
    assert (len(kept), reasons) == (11, {"no-caption": 1})
    (unit,) = open_source(str(tmp_path / "a.tar")).units(1)
    images = [record.image() for record in unit.records() if isinstance(record, Record)]
    assert images == [PICTURE] * 11

    (tmp_path / "a.tar.gz").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    kept, reasons = read(open_source(str(tmp_path / "a.tar.gz")))
    assert 0 < len(kept) < 5
    assert reasons == {"no-caption": 1, "parts-too-far-apart": 11 - len(kept)}


@pytest.mark.parametrize("packed", [False, True])
def test_records_of_one_name_up_to_its_dot_do_not_wait_for_each_other(tmp_path, monkeypatch, packed):
    monkeypatch.setattr("scott.data.sources.tar.WAITING", 4 * len(PICTURE))
    parts = [(f"i.{i:02}.{ending}", content) for i in range(12) for ending, content in TEXT_AND_PICTURE.items()]
    tar_of(tmp_path / "a.tar", parts)
    if packed:
        (tmp_path / "a.tar").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    assert read(open_source(str(tmp_path / "a.tar"))) == ({f"i.{i:02}": "a cat" for i in range(12)}, {})


def test_tars_that_were_joined_are_read_whole(tmp_path):
    """`cat a.tar b.tar`: each ends with its own mark, behind which the blocks of a record are empty."""
    for name in "ab":
        tar_of(tmp_path / f"{name}.tar", [(f"{name}.png", PICTURE), (f"{name}.txt", b"a cat")])
    joined = b"".join((tmp_path / f"{name}.tar").read_bytes() for name in "ab")
    (tmp_path / "c.tar").write_bytes(joined)
    assert read(open_source(str(tmp_path / "c.tar"))) == ({"a": "a cat", "b": "a cat"}, {})
    for end, reasons in ((10_240 + 700, {"corrupt-tar": 1}), (10_240 - 700, {})):
        (tmp_path / "c.tar").write_bytes(joined[:end])
        assert read(open_source(str(tmp_path / "c.tar"))) == ({"a": "a cat"}, reasons)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_tars_that_were_joined(tmp_path, compress):
    """bgzip writes such files too; and what was flipped in one is found by its checksum."""
    tar_of(tmp_path / "a.tar", [("a.png", PICTURE), ("a.txt", b"a cat")])
    tar_of(tmp_path / "b.tar", [("b.png", PICTURE), ("b.txt", b"a cat")])
    joined = b"".join(compress((tmp_path / f"{name}.tar").read_bytes()) for name in "ab")
    (tmp_path / "c.tar").write_bytes(joined)
    assert read(open_source(str(tmp_path / "c.tar"))) == ({"a": "a cat", "b": "a cat"}, {})
    (tmp_path / "c.tar").write_bytes(joined[:-9] + b"\xff" * 9)
    assert read(open_source(str(tmp_path / "c.tar")))[1] == {"corrupt-tar": 1}


@pytest.mark.parametrize("kind", ["bz2", "xz"])
def test_compressions_that_are_read(tmp_path, kind):
    with tarfile.open(tmp_path / f"a.tar.{kind}", f"w:{kind}") as archive:
        add(archive, "a.png", PICTURE)
        add(archive, "a.txt", b"a cat")
    for source in (tmp_path / f"a.tar.{kind}", tmp_path):
        assert read(open_source(str(source))) == ({"a": "a cat"}, {})


@pytest.mark.parametrize("ending", ["tar.zst", "zip", "tar.lz4", "csv.zst"])
def test_other_archives_are_refused_with_the_reason(tmp_path, ending):
    (tmp_path / f"a.{ending}").write_bytes(b"\x28\xb5\x2f\xfd")
    for source in (tmp_path / f"a.{ending}", tmp_path):
        with pytest.raises(UserError, match="is packed in a way that is not read; unpack it"):
            open_source(str(source))


def test_a_tar_that_is_something_else_says_so(tmp_path):
    for start, reason in ((b"\x28\xb5\x2f\xfd", "unsupported-compression"), (b"\n<!DOCTYPE html>", "web-page")):
        (tmp_path / "a.tar").write_bytes(start + bytes(100))
        assert read(open_source(f"file://{tmp_path / 'a.tar'}")) == ({}, {reason: 1})


# --- patterns ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a{08..11}.tar", ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]),
        ("{2..0}{a,b}", ["2a", "2b", "1a", "1b", "0a", "0b"]),
        ("a{0..10..5}{x}{", ["a0{x}{", "a5{x}{", "a10{x}{"]),
        ("{" * 5000, ["{" * 5000]),
        ("{", ["{"]),
        ("}{", ["}{"]),
    ],
)
def test_what_braces_stand_for(pattern, names):
    assert braces(pattern) == names


def test_braces_of_too_many(tmp_path):
    with pytest.raises(UserError, match="stands for more than 1,000,000 files"):
        open_source(f"{tmp_path}/{{0..999999}}{{0..999999}}.tar")
    with pytest.raises(UserError, match="no data at"):
        open_source("{")


@pytest.mark.parametrize("folder", ["a[1]", "a{b,c}", "a::b"])
def test_a_folder_may_be_named_like_a_pattern(tmp_path, folder):
    (tmp_path / folder).mkdir()
    write_tar(tmp_path / folder / "0.tar", 1)
    assert len(read(open_source(f"{tmp_path}/{folder}/0.tar"))[0]) == 1
    if folder == "a[1]":
        assert len(read(open_source(f"{tmp_path}/{folder}/*.tar"))[0]) == 1


def test_a_pattern_is_of_what_its_files_are(tmp_path):
    """Whatever it ends in itself; files that are there are never "no data"."""
    for number, ending in enumerate(("tar", "tar.gz", "tgz")):
        write_tar(tmp_path / f"{number}.{ending}", 1)
    for pattern, count in {"*.t*": 3, "{0,1}.{tar,tar.gz}": 2, "[0-9]*": 0, "?.tar*": 0, "*": 3}.items():
        if count:
            assert len(open_source(f"{tmp_path}/{pattern}").tars) == count
        else:  # a shell's other signs are letters here
            with pytest.raises(UserError, match="no data at"):
                open_source(f"{tmp_path}/{pattern}")
    (tmp_path / "0.png").write_bytes(PICTURE)
    for pattern, first in {"*": "0.png", "*.png": "0.png", "0.{png,tar}": "0.png"}.items():
        with pytest.raises(UserError, match=f"stands for . files such as .*{first}; expected tars alone or .parquet"):
            open_source(f"{tmp_path}/{pattern}")


def test_shards_and_runs_in_a_folder_of_data_are_no_data(tmp_path):
    """Else what a command was told to write there would change its data, or be another kind of them."""
    tree(tmp_path, {"a.png": PICTURE, "a.txt": "a cat"})
    before = open_source(str(tmp_path))
    tree(tmp_path, {"shards/preparation.json": "{}", "shards/000000.tar": b"", "x/run/config.json": "{}"})
    tree(tmp_path, {"x/run/checkpoints/y": "", "x/run/samples/b.png": PICTURE, "x/run/data/000000.tar": b""})
    after = open_source(str(tmp_path))
    assert read(after) == read(before) == ({"a.png": "a cat"}, {})
    assert after.version == before.version
    tree(tmp_path, {"other/config.json": "{}", "other/b.png": PICTURE, "other/b.txt": "a dog"})
    assert read(open_source(str(tmp_path)))[0] == {"a.png": "a cat", "other/b.png": "a dog"}


def test_columns_may_be_named_of_a_table_in_text(tmp_path):
    tree(tmp_path, {"a.png": PICTURE, "list.csv": "p,c,d\na.png,x,a cat"})
    assert read(open_source(str(tmp_path), Columns("p", ("d",)))) == ({"a.png": "a cat"}, {})
