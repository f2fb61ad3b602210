"""What preparing writes: what encoding gives, the same bytes however it was stopped or shared, and every skip."""

import dataclasses
import json
import subprocess
import sys
from collections import Counter

import pytest
import torch
from PIL import Image
from tests.data.making import Pictures, bomb, contents, noise, saved

from scott.data import loading
from scott.data.locks import locked
from scott.data.manifest import Manifest
from scott.data.pictures import aspect_buckets, cropped, decode
from scott.data.preparation import full_settings, prepare_shards
from scott.data.records import Record, Rejected, Unit, slices, with_left_out
from scott.data.settings import Settings
from scott.data.shard_source import ShardSource
from scott.data.shards import Shard
from scott.errors import UserError

SETTINGS = Settings(shard_size=4, batch_size=3)
TEACHER = {"name": "tiny", "vae": {"class": "VAE", "sha256": "1"}}


@pytest.fixture(scope="module")
def backbone(make_backbone):
    return make_backbone()


@pytest.fixture
def prepare(backbone, tmp_path):
    def run(source, out="out", settings=SETTINGS, report=lambda *_: None, **processes):
        full = full_settings("noise", source, settings, backbone, TEACHER)
        return prepare_shards(source, backbone, settings, full, tmp_path / out, report, **processes)

    return run


def test_shards_hold_what_encoding_gives_in_half_precision(prepare, backbone, tmp_path):
    outcome = prepare(Pictures(10))
    assert (outcome.records, outcome.manifest.samples, len(outcome.manifest.shards)) == (10, 10, 3)
    shapes = outcome.manifest.tensors
    assert shapes == {"mean": [4, 8, 8], "std": [4, 8, 8], "cond.text": [16, 32]}
    shard = Shard(tmp_path / "out" / "000001.tar")
    for i in range(4):
        pixels = cropped(decode(saved(noise(4 + i))), [(64, 64)])[None].float() / 255
        mean, std = backbone.encode_images(pixels)
        captions = [f"picture {chr(97 + 4 + i)}", "noise", "dots"][: 1 + (4 + i) % 3]
        expected = {"mean": mean[0], "std": std[0], "cond.text": backbone.encode_prompts(captions)["text"]}
        got = shard.sample(i, shapes)
        for name, value in expected.items():
            torch.testing.assert_close(got[name].float(), value, rtol=2e-3, atol=1e-3)
        info = {"key": str(4 + i), "captions": captions, "width": 40, "height": 30, "columns": {"score": 4 + i}}
        assert shard.info(i) == info
    assert len(ShardSource(tmp_path / "out", 0).batch(0, 5)) == 5


def test_stopped_anywhere_it_ends_with_the_same_bytes(prepare, tmp_path):
    prepare(Pictures(10), "whole")
    whole = contents(tmp_path / "whole")
    for stop in range(10):
        with pytest.raises(KeyboardInterrupt):
            prepare(Pictures(10, stop=stop), f"stopped {stop}")
        assert not (tmp_path / f"stopped {stop}" / "manifest.json").exists()
        assert prepare(Pictures(10), f"stopped {stop}").records == 10 - stop // 4 * 4
        assert contents(tmp_path / f"stopped {stop}") == whole


KILLED = """
import os, signal, sys
from pathlib import Path
from scott.teachers import load_backbone
from scott.data import preparation, shards
from tests.data.making import Pictures
from tests.data.test_preparation import SETTINGS, TEACHER

add = shards.ShardWriter.add
def add_and_die(self, key, *rest):
    add(self, key, *rest)
    self._file.flush()
    if key == "000001_000002":
        os.kill(os.getpid(), signal.SIGKILL)
shards.ShardWriter.add = add_and_die
backbone, source = load_backbone(sys.argv[1]), Pictures(10)
full = preparation.full_settings("noise", source, SETTINGS, backbone, TEACHER)
preparation.prepare_shards(source, backbone, SETTINGS, full, Path(sys.argv[2]), print)
"""


def test_killed_in_the_middle_of_a_shard_it_ends_with_the_same_bytes(prepare, tmp_path, teacher_folders):
    command = [sys.executable, "-c", KILLED, str(teacher_folders["sd1"]), str(tmp_path / "killed")]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -9
    names = {path.name for path in (tmp_path / "killed").iterdir()}
    assert names == {"preparation.json", "000000.tar", "000000.json", "000001.partial", ".lock-0-of-1"}
    assert prepare(Pictures(10), "killed").records == 6
    prepare(Pictures(10), "whole")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_processes_share_the_work_and_the_bytes_are_the_same(prepare, tmp_path):
    prepare(Pictures(10), "alone")
    first = prepare(Pictures(10), "shared", rank=1, world=2)
    assert (first.manifest, first.records) == (None, 4)
    assert prepare(Pictures(10), "shared", rank=0, world=2).manifest.samples == 10
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")


@pytest.mark.parametrize("spoil", ["cut", "no record", "broken record"])
def test_a_shard_that_is_not_whole_is_made_again(prepare, tmp_path, spoil):
    prepare(Pictures(10))
    whole = contents(tmp_path / "out")
    tar, side = tmp_path / "out" / "000001.tar", tmp_path / "out" / "000001.json"
    if spoil == "cut":
        tar.write_bytes(tar.read_bytes()[:-512])
    elif spoil == "no record":
        side.unlink()
    else:
        side.write_text("{")
    assert prepare(Pictures(10)).records == 4
    assert contents(tmp_path / "out") == whole


def test_a_shard_with_a_flipped_byte_is_made_again(prepare, tmp_path):
    prepare(Pictures(10))
    whole = contents(tmp_path / "out")
    for place in (0, -600):
        tar = bytearray(whole["000001.tar"])
        tar[place] ^= 1
        (tmp_path / "out" / "000001.tar").write_bytes(tar)
        assert prepare(Pictures(10)).records == 4
        assert contents(tmp_path / "out") == whole


WRITING = """
import sys, time
from pathlib import Path
from scott.data.locks import locked
with locked(Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.mark.parametrize("part", ["0-of-1", "0-of-2", "1-of-2"])
def test_a_second_writer_learns_of_the_first_until_that_is_gone(prepare, tmp_path, part):
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", WRITING, str(tmp_path / "out"), part]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"is being written by another command \(process {first.pid} on "):
            prepare(Pictures(4))
        assert not list((tmp_path / "out").glob("*.tar"))
        first.kill()
    assert prepare(Pictures(4)).manifest.samples == 4
    assert not [name for name in contents(tmp_path / "out") if "lock" in name]


def test_processes_of_one_launch_write_at_once(prepare, tmp_path):
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out", "1-of-2"):
        assert prepare(Pictures(10), rank=0, world=2).records == 6


def test_a_finished_folder_is_left_as_it_is(prepare, tmp_path):
    prepare(Pictures(10))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert prepare(Pictures(10)).records == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")} == before


@pytest.mark.parametrize(
    ("change", "said"), [({"min_size": 8}, "min_size: 0 → 8"), ({"where": "score > 3"}, "where: None → score > 3")]
)
def test_other_settings_are_refused_and_named(prepare, change, said):
    prepare(Pictures(4))
    with pytest.raises(UserError, match=f"begun with other settings \\({said}\\)"):
        prepare(Pictures(4), settings=dataclasses.replace(SETTINGS, **change))


def test_another_source_or_teacher_is_refused(prepare, backbone, tmp_path):
    prepare(Pictures(4))
    with pytest.raises(UserError, match="the source's files have other names, sizes or times of change"):
        prepare(Pictures(5))
    moved = full_settings("noise", Pictures(4), SETTINGS, backbone, TEACHER | {"name": "elsewhere"})
    prepare_shards(Pictures(4), backbone, SETTINGS, moved, tmp_path / "out", lambda *_: None)
    other = moved | {"teacher": {"name": "tiny", "vae": {"class": "VAE", "sha256": "2"}}}
    with pytest.raises(UserError, match=r"teacher\.vae\.sha256: 1 → 2"):
        prepare_shards(Pictures(4), backbone, SETTINGS, other, tmp_path / "out", lambda *_: None)


def test_a_teacher_whose_weights_were_rounded_is_the_same(prepare, backbone, tmp_path):
    def go_on(**vae):
        teacher = {"name": "tiny", "vae": {"class": "VAE"} | vae}
        full = full_settings("noise", Pictures(4), SETTINGS, backbone, teacher)
        prepare_shards(Pictures(4), backbone, SETTINGS, full, tmp_path / "out", lambda *_: None)

    go_on(sha256="1", half="2", signs="3")
    go_on(sha256="4", half="2", signs="3")
    go_on(sha256="1", signs="3")
    with pytest.raises(UserError, match=r"teacher\.vae\.class: VAE → other"):
        go_on(**{"class": "other"}, sha256="1", half="2", signs="3")
    with pytest.raises(UserError, match=r"begun with other settings \(teacher\.vae\..*: . → 5"):
        go_on(sha256="5", half="5", signs="3")


def test_a_folder_of_other_things_is_left_alone(prepare, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no shards"):
        prepare(Pictures(4))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    for place in ("out/mine.txt", "out/mine.txt/x"):
        with pytest.raises(UserError, match=r"cannot be made: .*; give another --out"):
            prepare(Pictures(4), place)


SPOILED = {
    0: b"",
    2: saved(noise(0))[:300],
    3: bomb(12_000),
    5: b"text",
    6: "no-caption",
    7: Image.new("RGB", (400, 30)),
}


def test_what_is_left_out_is_counted_and_named(prepare, tmp_path):
    settings = dataclasses.replace(SETTINGS, where="score != 9", min_size=20, max_aspect=4.0)
    manifest = prepare(Pictures(11, SPOILED), settings=settings).manifest
    assert manifest.skipped == {
        "empty-file": 1,
        "max-aspect": 1,
        "no-caption": 1,
        "not-a-picture": 1,
        "too-many-pixels": 1,
        "truncated": 1,
        "where": 1,
    }
    assert manifest.samples == 4
    side = json.loads((tmp_path / "out" / "000000.json").read_text())
    assert [(entry["key"], entry["reason"]) for entry in side["rejected"]] == [
        ("0", "empty-file"),
        ("2", "truncated"),
        ("3", "too-many-pixels"),
    ]
    assert sorted(ShardSource(tmp_path / "out", 0).examples(9)[1]) == sorted(
        f"picture {chr(97 + i)}" for i in (1, 4, 8, 10)
    )


def test_named_skips_are_bounded_and_a_shard_may_be_empty(prepare, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "LISTED", 2)
    manifest = prepare(Pictures(8, dict.fromkeys(range(4), b""))).manifest
    assert [shard.samples for shard in manifest.shards] == [0, 4]
    side = json.loads((tmp_path / "out" / "000000.json").read_text())
    assert (len(side["rejected"]), side["skipped"]) == (2, {"empty-file": 4})
    assert len(ShardSource(tmp_path / "out", 0).batch(0, 4)) == 4


def test_keeping_nothing_is_an_error_with_the_reasons(prepare, tmp_path):
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"kept none of 3 records \(empty-file 2, not-a-picture 1\); .* first was 0"
        ):
            prepare(Pictures(3, {0: b"", 1: b"", 2: b"x"}))
    assert not list((tmp_path / "out").iterdir())
    assert prepare(Pictures(4)).manifest.samples == 4, "the same command, when the source was mended"


def test_an_unknown_column_is_refused_before_anything_is_written(prepare, tmp_path):
    with pytest.raises(UserError, match="column 'scoer'; the source has score"):
        prepare(Pictures(4), settings=dataclasses.replace(SETTINGS, where="scoer > 3"))
    assert not (tmp_path / "out").exists()


def test_latents_beyond_half_precision_are_left_out(prepare, backbone, monkeypatch):
    real = backbone.encode_images

    def overflow(pixels):
        mean, std = real(pixels)
        mean[0] = 1e6
        return mean, std

    monkeypatch.setattr(backbone, "encode_images", overflow)
    assert prepare(Pictures(4)).manifest.skipped == {"not-finite": 2}


def test_a_limit_takes_the_first_records(prepare, tmp_path):
    prepare(Pictures(10), settings=dataclasses.replace(SETTINGS, limit=6))
    assert len(ShardSource(tmp_path / "out", 0)) == 6


def test_units_of_unknown_size_are_counted_as_they_end(prepare):
    class Stream(Pictures):
        def units(self, size):
            return [Unit(unit.name, None, unit.records) for unit in super().units(size)]

    seen = []
    prepare(Stream(10), report=lambda phase, done, total, terms: seen.append((phase, done, total)))
    assert seen[-1] == ("prepare", 3, 3)
    settings = dataclasses.replace(SETTINGS, limit=3)
    assert prepare(Stream(10), "first", settings).manifest.samples == 3


def test_progress_counts_what_is_there_already(prepare, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        prepare(Pictures(10, stop=9))
    seen = []
    prepare(Pictures(10), report=lambda phase, done, total, terms: seen.append((done, total, terms["rate"] >= 0)))
    assert seen[0] == (4, 10, True)
    assert seen[-1] == (10, 10, True)


def test_what_a_source_leaves_out_counts_in_the_progress(prepare):
    class Partly(Pictures):
        def units(self, size):
            return with_left_out(super().units(size), [Rejected("test.tar", "other-split")])

    seen = []
    outcome = prepare(Partly(4), report=lambda phase, done, total, terms: seen.append((done, total)))
    assert seen[-1] == (5, 5)
    assert (outcome.manifest.samples, outcome.manifest.skipped) == (4, {"other-split": 1})


def test_pictures_are_not_read_where_their_columns_do_not_pass(prepare):
    read = []

    class Lazy(Pictures):
        def _records(self, rows):
            for i in rows:
                yield Record(str(i), lambda i=i: read.append(i) or saved(noise(i)), "a", {"score": i})

    prepare(Lazy(6), settings=dataclasses.replace(SETTINGS, where="score >= 4"))
    assert sorted(read) == [4, 5]


@pytest.mark.parametrize(
    "change",
    [
        *({"shard_size": 0}, {"batch_size": -1}, {"max_aspect": 0.5}, {"max_aspect": float("nan")}, {"limit": 0}),
        *({"min_size": -1}, {"resolution": 0}, {"resolution": 10**8}),
    ],
    ids=str,
)
def test_settings_out_of_range(change):
    with pytest.raises(UserError, match=f"got {next(iter(change))} .*, expected (0|1) (or more|to 8,192)"):
        Settings(**change)


def test_what_stopped_before_its_first_shard_is_in_no_ones_way(prepare, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        prepare(Pictures(10, stop=1))
    other = dataclasses.replace(SETTINGS, min_size=8)
    assert prepare(Pictures(4), settings=other).manifest.settings["min_size"] == 8
    with pytest.raises(UserError, match="begun with other settings"):
        prepare(Pictures(4))


def test_a_resolution_the_vae_cannot_have(prepare):
    with pytest.raises(UserError, match="got resolution 50, expected a multiple of 8"):
        prepare(Pictures(4), settings=dataclasses.replace(SETTINGS, resolution=50))
    manifest = prepare(Pictures(4), settings=dataclasses.replace(SETTINGS, resolution=32)).manifest
    assert manifest.tensors["mean"] == [4, 4, 4]


def test_a_manifest_reads_back(prepare, tmp_path):
    assert prepare(Pictures(4)).manifest == Manifest.load(tmp_path / "out")


class Shapes:
    """Pictures of three aspects in turn, with the aspect's index as their brightness and `count` of them."""

    kind, columns, version = "shapes", (), "1"

    def __init__(self, count, of=lambda i: i % 3):
        self.count, self.of = count, of

    def units(self, size):
        return [
            Unit(str(rows), len(rows), lambda rows=rows: map(self._record, rows)) for rows in slices(self.count, size)
        ]

    def _record(self, i):
        width, height = ((30, 40), (40, 40), (60, 40))[self.of(i)]
        image = Image.new("RGB", (width, height), (self.of(i) * 100,) * 3)
        return Record(str(i), lambda: image, chr(97 + i % 26) + " cat" * (i // 26), {})


BUCKETS = dataclasses.replace(SETTINGS, aspect_buckets=True, shard_size=8)


def test_pictures_of_one_shape_stand_together(prepare, tmp_path):
    """Each in the bucket nearest to its aspect, of those that the teacher's 64 px have."""
    manifest = prepare(Shapes(16), settings=BUCKETS).manifest
    sides = [(9, 7), (8, 8), (6, 10)]
    assert [shard.buckets for shard in manifest.shards] == [
        [[6, 10, 2], [8, 8, 3], [9, 7, 3]],
        [[6, 10, 3], [8, 8, 2], [9, 7, 3]],
    ]
    assert {(h, w) for h, w in aspect_buckets(64, 8)} >= {(8 * h, 8 * w) for h, w in sides}
    assert Manifest.load(tmp_path / "out") == manifest
    shard = Shard(tmp_path / "out" / "000000.tar")
    found = [(tuple(shard.tensors(i)["mean"].shape[1:]), int(shard.info(i)["key"]) % 3) for i in range(8)]
    assert found == sorted((sides[i % 3], i % 3) for i in range(8))


def test_buckets_are_stopped_and_shared_without_a_trace(prepare, tmp_path):
    prepare(Shapes(16), settings=BUCKETS)
    for rank in range(2):
        prepare(Shapes(16), out="shared", settings=BUCKETS, rank=rank, world=2)
    assert contents(tmp_path / "shared") == contents(tmp_path / "out")
    (tmp_path / "shared" / "000001.json").unlink()
    prepare(Shapes(16), out="shared", settings=BUCKETS)
    assert contents(tmp_path / "shared") == contents(tmp_path / "out")


@pytest.mark.parametrize("size", [2, 12])
def test_a_batch_is_of_one_shape_and_all_come_round_equally_often(prepare, tmp_path, size):
    """14 square pictures, 4 tall and 4 wide ones; also where a batch holds a rare shape three times over."""
    prepare(Shapes(22, of=lambda i: i % 3 if i < 12 else 1), settings=BUCKETS)
    source, steps = ShardSource(tmp_path / "out", 0), 3000
    assert source.varied
    shapes = Counter(tuple(source.batch(step, size, slice(1)).mean.shape[2:]) for step in range(steps))
    for shape, count in {(9, 7): 4, (8, 8): 14, (6, 10): 4}.items():
        assert shapes[shape] == pytest.approx(steps * count / 22, abs=3)
    batches = [source.batch(step, size) for step in range(181 + 636 + 181)]  # a round
    seen = Counter(tuple(row.flatten().tolist()) for batch in batches for row in batch.cond["text"])
    assert len(seen) == 22
    assert max(seen.values()) < 1.03 * min(seen.values())
    assert [batch.mean.shape for batch in batches[:9]] != [batch.mean.shape for batch in batches[9:18]]
    parts = [source.batch(17, size, part) for part in (slice(0, 1), slice(1, size))]
    assert torch.equal(torch.cat([part.mean for part in parts]), batches[17].mean)
    assert torch.equal(ShardSource(tmp_path / "out", 0).batch(300, size).mean, batches[300].mean)


def test_examples_are_of_the_most_frequent_shape(prepare, tmp_path):
    prepare(Shapes(16), settings=BUCKETS)
    means, captions = ShardSource(tmp_path / "out", 0).examples(4)
    assert means.shape == (4, 4, 9, 7)
    assert captions == ["a", "d", "g", "j"]


def test_buckets_that_do_not_add_up_are_refused(prepare, tmp_path):
    prepare(Shapes(8), settings=BUCKETS)
    file = tmp_path / "out" / "manifest.json"
    content = json.loads(file.read_text())
    for buckets in ([[8, 8, 7]], [[8, 8, 9], [9, 7, -1]], [[8, 8]]):
        content["shards"][0]["buckets"] = buckets
        file.write_text(json.dumps(content))
        with pytest.raises(UserError, match="is not as scott writes it"):
            Manifest.load(tmp_path / "out")
