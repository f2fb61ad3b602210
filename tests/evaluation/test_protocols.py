"""The protocols' choice of pictures, and their commands to the end on a few pictures and a tiny pipeline."""

import csv
import json
import os
import shutil
import weakref
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.evaluation.conftest import VAL2014

from scott.commands.evaluate import KNOWN
from scott.data.records import Columns, Record, Rejected, Skip
from scott.data.sources import open_source
from scott.errors import UserError
from scott.evaluation import Results
from scott.evaluation.mjhq import Mjhq
from scott.evaluation.pictures import save_picture
from scott.evaluation.protocols import by_category, by_digest, by_list, listed, names_in, prompts_of, write_list
from scott.measured import Measured
from scott.mini import embedded
from scott.mini.scenes import Scenes


def digest(name):
    return sha256(name.encode()).digest()


def entries(*names):
    return [Record(name, bytes, "a caption") for name in names]


def test_the_list_of_coco_2014_is_that_of_the_smallest_digests() -> None:
    """30,000 of 40,504 draws from [0, 1) end at .741, with a standard deviation of .002."""
    names = [f"COCO_val2014_{number:012d}.jpg" for number in VAL2014]
    digests = [int(sha256(name.encode()).hexdigest(), 16) / 2**256 for name in names]
    assert digests == sorted(set(digests))
    assert len(digests) == 30_000
    assert digests[-1] == pytest.approx(30_000 / 40_504, abs=0.008)
    assert [entry.key for entry in by_digest(entries(*reversed(names[:50])))] == names[:50]
    assert [entry.key for entry in by_list(entries("another", *reversed(names[:50])))] == names[:50]
    with pytest.raises(UserError, match="got 1 pictures, none of COCO's val2014"):
        by_list(entries("another"))


def test_the_list_of_a_protocol_needs_no_picture(mjhq, coco2014, tmp_path) -> None:
    """And is what the command measures on."""
    names, prompts = prompts_of("mjhq-5k", str(mjhq))
    assert names[:2] == [min((n for n in names if n.startswith(c)), key=digest) for c in ("animals/", "food/")]
    assert len(prompts) == 24
    write_list(tmp_path / "list.csv", *prompts_of("coco2014-30k", str(coco2014)))
    assert (tmp_path / "list.csv").read_text().splitlines()[:2] == [
        "name,prompt",
        f"COCO_val2014_{VAL2014[0]:012d}.jpg,cat",
    ]


def test_any_whole_rounds_of_mjhq_are_as_many_of_each_category() -> None:
    names = [f"{category}/{index}.jpg" for category in ("art", "food", "people") for index in range(20)]
    first = [entry.key.partition("/")[0] for entry in by_category(entries(*names))[:30]]
    assert sorted(first) == ["art"] * 10 + ["food"] * 10 + ["people"] * 10


def test_a_published_list_is_taken_in_its_order() -> None:
    there = entries("a", "b", "c")
    there.append(Rejected("d", "no-caption"))
    assert [entry.key for entry in listed(iter(there), ["c", "a"], "x")] == ["c", "a"]
    with pytest.raises(UserError, match="has no e"):
        listed(there, ["e"], "x")


def test_a_name_of_several_pictures_is_refused_and_rows_of_one_picture_are_one() -> None:
    """As of tars whose names begin anew, and of tables with a row a caption."""
    rows = [Record(name, partial(bytes, name), f"{name} {row}") for row in range(2) for name in "ab"]
    assert [entry.captions for entry in listed(rows, ["b"], "x")] == ["b 0"]
    several = [*rows, *(Record("c", lambda: b"", "c") for _ in range(3))]
    assert len(listed(several, ["b"], "x")) == 1
    said = "got --names with 'c', which 3 pictures of x are called; expected names of one picture each; rename them, or"
    with pytest.raises(UserError, match=said):
        listed(several, ["b", "c"], "x")


def test_data_that_are_not_a_protocols_whole_are_refused(coco2014, tmp_path) -> None:
    def prompts(**options):
        measured = Measured(data=str(coco2014), **options)
        return KNOWN["coco2014-30k"].reference(measured, 30_000, 64, {}, lambda *_: None).prompts

    with pytest.raises(UserError, match=r"got 23 readable .* expected 30,000 or more; complete them, or .* --samples"):
        prompts()
    assert len(prompts(samples=30_000)) == 23
    names = prompts_of("coco2014-30k", str(coco2014))[0][:12]
    (tmp_path / "names").write_text("\n".join(names))
    assert len(prompts(names=tmp_path / "names")) == 12


def test_a_short_reference_is_refused_whatever_was_measured_before(coco2014, monkeypatch, tmp_path) -> None:
    """What fewer pictures gave is not kept, so that the whole protocol cannot find it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def count(**options):
        instruments, measured = {"features": embedded.load_features()}, Measured(data=str(coco2014), **options)
        return len(KNOWN["coco2014-30k"].reference(measured, 30_000, 64, instruments, lambda *_: None).prompts)

    assert count(samples=30_000) == 23
    with pytest.raises(UserError, match="got 23 readable"):
        count()
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.fixture
def table(monkeypatch, tmp_path):
    """A table of 30 scenes with a second column of captions; and `reference(**options)` of its first ten."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    scenes = Scenes(30, "held-out")
    rows = [{"file_name": f"{i:02d}.png", "text": scenes[i][1], "alt": f"alt {i}"} for i in range(30)]
    for index in range(30):
        scenes[index][0].save(tmp_path / f"{index:02d}.png")
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    instruments = {"features": embedded.load_features()}

    def reference(**options):
        measured = Measured(data=str(tmp_path), samples=10, **options)
        return KNOWN["custom"].reference(measured, 10, 64, instruments, lambda *_: None)

    return reference


def test_another_column_of_captions_is_another_reference(table) -> None:
    assert table().prompts == Scenes(10, "held-out").captions()
    assert table(caption_column=("alt",)).prompts == [f"alt {index}" for index in range(10)]


def test_what_was_skipped_is_looked_at_again(table, tmp_path) -> None:
    """Where a source's version does not tell, as of pictures behind URLs."""
    (tmp_path / "00.png").unlink()
    reference = table()
    assert (reference.names[0], reference.skipped) == ("01.png", {"missing-file": 1})
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_the_floor_of_a_list_is_of_pictures_that_it_does_not_name(table, tmp_path) -> None:
    (tmp_path / "names").write_text("\n".join(f"{index:02d}.png" for index in range(19, 9, -1)))
    listed = table(names=tmp_path / "names")
    assert listed.names == [f"{index:02d}.png" for index in range(19, 9, -1)]
    assert torch.equal(listed.others["features"], table().real["features"])
    (tmp_path / "19.png").unlink()
    with pytest.raises(UserError, match="got 9 readable"):
        table(names=tmp_path / "names")


def test_what_a_list_names_and_is_not_measured_is_not_in_the_floor(table, tmp_path) -> None:
    (tmp_path / "names").write_text("\n".join(f"{index:02d}.png" for index in range(22, 9, -1)))
    listed = table(names=tmp_path / "names")
    assert listed.names == [f"{index:02d}.png" for index in range(22, 12, -1)]
    assert torch.equal(listed.others["features"], table().real["features"])


def test_a_list_is_measured_whole_unless_fewer_are_asked_for(table, tmp_path) -> None:
    (tmp_path / "names").write_text("\n".join(f"{index:02d}.png" for index in range(13)))
    measured = Measured(data=str(tmp_path), names=tmp_path / "names")
    for samples, expected in ((None, 13), (11, 11), (20, 20)):
        assert KNOWN["custom"].samples_of(replace(measured, samples=samples)) == expected


def test_what_a_list_leaves_out_is_not_held(tmp_path) -> None:
    """As a tar's records hold the bytes of their pictures."""
    live, most = weakref.WeakSet(), 0

    class Picture:
        def __call__(self):
            return b""

    def every():
        nonlocal most
        for index in range(200):
            live.add(picture := Picture())
            most = max(most, len(live))
            yield Record(str(index), picture, "a caption")
            del picture

    assert [entry.key for entry in listed(every(), ["150", "3"], "x")] == ["150", "3"]
    assert most < 10


def test_stored_pictures_are_measured_all(evaluated, table, tmp_path, monkeypatch) -> None:
    """Where no number is asked for: a protocol of one's own data has one for what is drawn."""
    monkeypatch.setitem(KNOWN, "custom", replace(KNOWN["custom"], samples=10))
    stored = tmp_path / "of.v1.5"
    stored.mkdir()
    for index in range(12):
        save_picture(Image.new("RGB", (64, 64), (20 * index, 0, 0)), stored / f"{index}.png", {})
        (stored / f"{index}.txt").write_text(f"picture {index}")
    words = ["--data", tmp_path, "--size", 64, "--bootstrap", 0, "--metrics", "fid"]
    (tmp_path / "results.json").unlink(missing_ok=True)
    row = evaluated(*words, target=stored, drawn=()).rows[-1]
    assert (row.name, row.samples) == ("of.v1.5", 12)
    assert evaluated(*words, "--samples", 11, target=stored, drawn=()).rows[-1].samples == 11


def test_mjhqs_layout(mjhq, tmp_path) -> None:
    records = [record for unit in Mjhq(str(mjhq)).units(10) for record in unit.records()]
    assert len(records) == 24
    assert records[1].key == "food/0001.jpg"
    assert records[1].image().startswith(b"\xff\xd8")
    for content in ('{"a": {"prompt": "b"}}', "{}", "[" * 100_000):
        (tmp_path / "meta_data.json").write_text(content)
        with pytest.raises(UserError, match="is not MJHQ-30K's"):
            Mjhq(str(tmp_path / "meta_data.json"))


def test_other_pictures_are_another_version_of_mjhq(mjhq, tmp_path) -> None:
    """Of their names too; names that lead elsewhere count for nothing."""
    copied = Path(shutil.copytree(mjhq.parent, tmp_path / "copy")) / "meta_data.json"
    before = Mjhq(str(copied)).version
    os.utime(next(copied.parent.rglob("*.jpg")), ns=(1, 1))
    assert Mjhq(str(copied)).version != before
    copied.write_text(json.dumps({"..\0": {"category": "x", "prompt": "a cat"}}))
    assert Mjhq(str(copied)).version


@pytest.mark.timeout(20)
def test_a_name_of_mjhq_leads_nowhere_else_and_a_pipe_is_not_waited_for(tmp_path) -> None:
    row = {"prompt": "a cat"}
    names = {"../../out": row | {"category": "x"}, "pipe": row | {"category": "x"}, "a" * 5000: row | {"category": "x"}}
    (tmp_path / "in" / "x").mkdir(parents=True)
    (tmp_path / "out.jpg").write_bytes(b"\xff\xd8")
    os.mkfifo(tmp_path / "in" / "x" / "pipe.jpg")
    (tmp_path / "in" / "meta_data.json").write_text(json.dumps(names))
    (unit,) = Mjhq(str(tmp_path / "in" / "meta_data.json")).units(10)
    reasons = []
    for record in unit.records():
        with pytest.raises(Skip) as skip:
            record.image()
        reasons.append(skip.value.reason)
    assert reasons == ["unsafe-name", "unreadable-file", "unreadable-file"]


def test_names_are_those_of_a_list_whatever_else_ends_a_line_somewhere(tmp_path) -> None:
    file = tmp_path / "names.csv"
    file.write_text('\ufeffname,prompt\na\u2028b.jpg,"two\nlines"\r\nc.jpg,x\n', encoding="utf-8")
    assert names_in(file) == ["a\u2028b.jpg", "c.jpg"]
    file.write_text("a" * 200_000)
    limit = csv.field_size_limit()
    for fields in limit, 10**6:  # a process in which a table of pictures was read allows longer ones
        csv.field_size_limit(fields)
        with pytest.raises(UserError, match="is no list of pictures' names"):
            names_in(file)
    csv.field_size_limit(limit)


@pytest.fixture
def evaluated(command_line, teacher_folders, tmp_path, monkeypatch):
    """`evaluated(*arguments)` runs `scott evaluate` on a tiny pipeline of stock parts; its results and their folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*arguments, target=teacher_folders["sd1"], drawn=("--steps", 1, "--guidance", 1), status=0):
        quick = [*drawn, "--features", "efficientnet", "--models", "clip", embedded.CLIP]
        file = tmp_path / "results.json"
        code, _, error = command_line("evaluate", target, *quick, "--out", file, *arguments)
        assert code == status, error
        return Results.load(file) if status == 0 else error

    return run


def test_the_coco_2014_command_draws_the_rules_captions_at_256_px(evaluated, coco2014, tmp_path) -> None:
    results = evaluated("--protocol", "coco2014-30k", "--data", coco2014, "--samples", 10, "--bootstrap", 5)
    floor, row = results.rows
    assert (floor.name, floor.samples, row.samples) == ("real-vs-real", 10, 10), "23 pictures have room for both"
    assert row.metrics["fid"].floor == floor.fid
    assert row.metrics["fid"].interval is not None
    assert results.meta["size"] == 256
    listed = list(csv.reader((tmp_path / "results.prompts.csv").open()))
    assert [name for name, _ in listed] == ["name", *(f"COCO_val2014_{number:012d}.jpg" for number in VAL2014[:10])]
    assert {prompt for _, prompt in listed[1:]} == {"cat"}, "the first caption"

    cached = list((tmp_path / "cache").rglob("*.safetensors"))
    assert len(cached) == 1
    stored = cached[0].stat().st_mtime_ns
    again = evaluated("--protocol", "coco2014-30k", "--data", coco2014, "--samples", 10, "--bootstrap", 5)
    assert [one.metrics for one in again.rows] == [one.metrics for one in results.rows]
    assert cached[0].stat().st_mtime_ns == stored

    names = tmp_path / "results.prompts.csv"
    listed_again = evaluated("--protocol", "coco2014-30k", "--data", coco2014, "--samples", 10, "--names", names)
    assert listed_again.rows[-1].fid == row.fid


def test_the_mjhq_command(evaluated, mjhq, tmp_path) -> None:
    kept = tmp_path / "kept"
    arguments = ["--protocol", "mjhq-5k", "--data", mjhq, "--samples", 10, "--bootstrap", 0, "--images", kept]
    results = evaluated(*arguments, "--seeds", 1, 2)
    row = results.rows[-1]
    assert len(row.metrics["fid"].seeds) == 2
    assert row.network_calls == 1
    pictures = kept / row.name / "seed-1"
    assert len(list(pictures.glob("*.png"))) == 10

    # the kept pictures are a target too, with the same figures and costs, and their own names
    stored = evaluated(*arguments[:-2], "--size", 64, target=pictures, drawn=()).rows[-1]
    listed = list(csv.reader((tmp_path / "results.prompts.csv").open()))[1:]
    first = evaluated(*arguments, "--seeds", 1).rows[-1]
    assert stored.metrics["fid"].value == pytest.approx(first.metrics["fid"].value, rel=1e-6)
    assert (stored.steps, stored.network_calls, stored.seeds) == (1, 1, (1,))
    assert stored.seconds_per_image == pytest.approx(first.seconds_per_image)
    assert open_source(str(pictures)).kind != "folder", "metadata.jsonl has the captions"
    assert [name for name, _ in listed] == [f"{index:05d}.png" for index in range(10)]
    assert [prompt for _, prompt in listed] == prompts_of("mjhq-5k", str(mjhq))[1][:10]


def test_pictures_of_other_captions_are_not_called_a_protocols(evaluated, mjhq, tmp_path) -> None:
    pictures, prompts = tmp_path / "others", prompts_of("mjhq-5k", str(mjhq))[1][:10]
    pictures.mkdir()
    for captions, status in ((prompts[::-1], 0), ([*prompts[1:], "a cat on the moon"], 2)):
        for index, caption in enumerate(captions):
            save_picture(Image.new("RGB", (64, 64), (20 * index, 0, 0)), pictures / f"{index}.png", {})
            (pictures / f"{index}.txt").write_text(caption)
        words = ["--data", mjhq, "--samples", 10, "--size", 64, "--bootstrap", 0, "--metrics", "fid"]
        error = evaluated("--protocol", "mjhq-5k", *words, target=pictures, drawn=(), status=status)
    said = "got 10 pictures, one of 'a cat on the moon', which is none of the first 10 captions of mjhq-5k; draw those"
    assert said in " ".join(error.split())


def test_kept_pictures_of_another_vae_are_refused(evaluated, coco2014, teacher_folders, tmp_path) -> None:
    arguments = ["--data", coco2014, "--samples", 10, "--bootstrap", 0, "--images", tmp_path / "kept"]
    other = tmp_path / teacher_folders["sd1"].name
    shutil.copytree(teacher_folders["sd1"], other)
    evaluated(*arguments)
    evaluated(*arguments, target=other)
    vae = other / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: 1.5 * value for name, value in load_file(vae).items()}, vae)
    assert "was made otherwise" in " ".join(evaluated(*arguments, target=other, status=2).split())


@pytest.mark.parametrize("protocol", ["coco2017-5k", "coco2014-30k", "mjhq-5k"])
@pytest.mark.parametrize("options", [{"image_column": "a"}, {"caption_column": ("b",)}], ids=str)
def test_columns_of_a_published_set_are_refused(protocol, options) -> None:
    with pytest.raises(UserError, match=f"-column with the protocol {protocol}, which does not read it; leave it out"):
        KNOWN[protocol].check(Measured(data="data", **options))


def test_a_split_is_of_the_folder_of_cocos_files(coco2017, mjhq) -> None:
    """MJHQ's one file has none."""
    measured = Measured(data=str(coco2017.parents[1]), data_split="val", samples=10)
    KNOWN["coco2017-5k"].check(measured)
    with pytest.raises(UserError, match="has the splits validation, and not 'train'"):
        KNOWN["coco2017-5k"].open(measured.data, Columns(), "train")
    (unit,) = KNOWN["coco2017-5k"].open(measured.data, Columns(), measured.data_split).units(10)
    assert len([*unit.records()]) == 10
    with pytest.raises(UserError, match="got --data-split with the protocol mjhq-5k, which does not read it"):
        KNOWN["mjhq-5k"].check(Measured(data=str(mjhq), data_split="val"))


def test_a_pipeline_under_another_scheduler(evaluated, coco2014) -> None:
    arguments = ["--data", coco2014, "--samples", 10, "--bootstrap", 0, "--metrics", "fid", "--guidance", 3]
    row = evaluated(*arguments, "--scheduler", "DPMSolverMultistepScheduler").rows[-1]
    assert row.name.endswith("-dpmsolvermultistep-1")
    assert (row.network_calls, row.guidance) == (2, 3.0), "with and without the caption"
    error = evaluated(*arguments, "--scheduler", "NoSuchScheduler", status=2)
    assert "has no scheduler NoSuchScheduler" in " ".join(error.split())


def test_every_protocol_of_the_command_line_is_known() -> None:
    names = get_args(get_args(get_type_hints(Measured)["protocol"])[0])
    assert set(names) == set(KNOWN)
