"""Batches of shards: every sample once an epoch, each batch a function of its step, parts that make the whole."""

import contextlib
import itertools
import json
import pickle
from dataclasses import asdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scott.data import mixture
from scott.data.batch import Batch
from scott.data.manifest import Manifest, ShardEntry
from scott.data.shard_source import ShardSource
from scott.data.shards import shard_writer
from scott.errors import UserError
from scott.rng import generator_for


def tensors(number, captions=1):
    value = torch.full((1, 1, 1), float(number)).half()
    texts = torch.arange(captions).view(-1, 1, 1) + 100.0 * number
    return {"mean": value, "std": value + 0.5, "cond.text": texts.half()}


def write(folder, counts, captions=1):
    folder.mkdir(parents=True, exist_ok=True)
    entries, numbers = [], itertools.count()
    for i, count in enumerate(counts):
        with shard_writer(folder / f"{i}.tar") as writer:
            for _ in range(count):
                number = next(numbers)
                writer.add(f"k{number}", tensors(number, captions), {"captions": [f"picture {number}"]})
            sha256 = writer.finish()
        entries.append(ShardEntry(f"{i}.tar", count, writer.bytes, sha256))
    shapes = {"mean": [1, 1, 1], "std": [1, 1, 1], "cond.text": [1, 1]}
    Manifest({}, tuple(entries), shapes, {}).save(folder)
    return folder


def rows(batch):
    return batch.mean.flatten().int().tolist()


def same(one, other):
    pairs = [(one.mean, other.mean), (one.std, other.std), (one.cond["text"], other.cond["text"])]
    return one.cond.keys() == other.cond.keys() and all(torch.equal(a, b) for a, b in pairs)


COUNTS = ([7], [3, 0, 4, 2], [1] * 9, [5, 1, 8, 2, 0, 3])


@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("group", [1, 2, 16])
@pytest.mark.parametrize("size", [3, 10])
def test_every_epoch_holds_every_sample_once(tmp_path, counts, group, size):
    source, count = ShardSource(write(tmp_path, counts), seed=0, shuffle_shards=group), sum(counts)
    assert len(source) == count
    seen = [row for step in range(3 * count) for row in rows(source.batch(step, size))]
    epochs = [seen[i : i + count] for i in range(0, len(seen), count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_few_shards_are_shuffled_as_one(tmp_path):
    source = ShardSource(write(tmp_path, [3, 4, 2]), seed=5)
    orders = [torch.randperm(9, generator=generator_for(5, epoch, 1)) for epoch in range(4)]
    sequence = torch.cat(orders).tolist()
    assert [row for step in range(9) for row in rows(source.batch(step, 4))] == sequence
    batch = source.batch(1, 4)
    assert torch.equal(batch.std, batch.mean + 0.5)
    assert torch.equal(batch.cond["text"].flatten(), batch.mean.flatten() * 100)


@pytest.mark.parametrize("group", [1, 2, 16])
def test_a_batch_is_a_function_of_seed_and_step(tmp_path, group):
    folder = write(tmp_path, [3, 4, 2, 5], captions=3)
    source = ShardSource(folder, 0, group)
    forward = [source.batch(step, 4) for step in range(20)]
    backward = [ShardSource(folder, 0, group).batch(step, 4) for step in reversed(range(20))]
    assert all(map(same, forward, backward[::-1]))
    assert [rows(ShardSource(folder, 1, group).batch(step, 4)) for step in range(20)] != [*map(rows, forward)]
    assert same(pickle.loads(pickle.dumps(source)).batch(7, 4), forward[7])


def test_parts_make_the_whole_and_read_no_more(tmp_path, monkeypatch):
    source = ShardSource(write(tmp_path, [3, 4, 2, 5], captions=3), 0, 2)
    whole = source.batch(3, 6)
    read = []
    real = source._read
    monkeypatch.setattr(source, "_read", lambda *place: read.append(place) or real(*place))
    parts = [source.batch(3, 6, part) for part in (slice(0, 2), slice(2, 3), slice(3, None))]
    joined = Batch(
        torch.cat([part.mean for part in parts]),
        torch.cat([part.std for part in parts]),
        {"text": torch.cat([part.cond["text"] for part in parts])},
    )
    assert same(joined, whole)
    assert len(read) == 6


def test_every_caption_is_taken_in_time_and_stays_with_its_picture(tmp_path):
    source = ShardSource(write(tmp_path, [4], captions=3), 0)
    taken = {i: set() for i in range(4)}
    for step in range(60):
        batch = source.batch(step, 2)
        for row, text in zip(rows(batch), batch.cond["text"].flatten().int().tolist(), strict=True):
            taken[row].add(text - 100 * row)
    assert all(choices == {0, 1, 2} for choices in taken.values())


def test_few_shards_are_open_at_once(tmp_path):
    source = ShardSource(write(tmp_path, [2] * 12), 0, 2)
    for step in range(24):
        source.batch(step, 3)
    assert len(source._open) <= 4


def test_sources_of_a_mixture_share_what_one_may_hold_open(tmp_path, monkeypatch):
    monkeypatch.setattr(mixture, "OPEN", 6)
    sources = [ShardSource(write(tmp_path / name, [2] * 12), 0, 2) for name in "abc"]
    mixed = mixture.Mixture(sources, [1, 1, 1], 0)
    for step in range(60):
        mixed.batch(step, 3)
    assert all(1 <= len(source._open) <= 2 for source in sources)


def test_workers_of_a_data_loader_give_the_same(tmp_path):
    source = ShardSource(write(tmp_path, [3, 4, 2]), 0, 2)
    source.batch(0, 2)  # its shards are open when it is sent

    class Batches(torch.utils.data.Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, step):
            return asdict(source.batch(step, 4))

    loader = torch.utils.data.DataLoader(Batches(), batch_size=None, num_workers=1)
    assert all(same(Batch(**loaded), source.batch(step, 4)) for step, loaded in enumerate(loader))


def test_all_samples_are_in_their_order(tmp_path):
    batch = ShardSource(write(tmp_path, [2, 0, 3], captions=2), 0).all()
    assert rows(batch) == list(range(5))
    assert batch.cond["text"].flatten().tolist() == [0, 100, 200, 300, 400]


def test_examples_are_the_first_samples(tmp_path):
    source = ShardSource(write(tmp_path, [2, 0, 3]), 0)
    means, captions = source.examples(4)
    assert captions == [f"picture {i}" for i in range(4)]
    assert means.flatten().tolist() == [0, 1, 2, 3]
    assert len(source.examples(99)[1]) == 5


def test_conditions_are_those_of_the_examples(tmp_path):
    source = ShardSource(write(tmp_path, [2, 0, 3], captions=2), 0)
    conditions = source.conditions(4)
    assert list(conditions) == source.examples(4)[1]
    assert [read()["text"].flatten().tolist() for read in conditions.values()] == [[0], [100], [200], [300]]


def edited(folder, old, new):
    file = folder / "manifest.json"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


BROKEN = {
    "visits without end": (lambda f: edited(f, '"repeats": 1', '"repeats": 1000000000000'), "not as scott writes it"),
    "a size in words": (
        lambda f: edited(f, '"settings": {}', '"settings": {"resolution": "big"}'),
        "not as scott writes it",
    ),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "manifest.json cannot be read"),
    "not JSON": (lambda f: (f / "manifest.json").write_text("{"), "manifest.json cannot be read"),
    "no object": (lambda f: (f / "manifest.json").write_text("[]"), "no JSON object"),
    "another format": (lambda f: (f / "manifest.json").write_text('{"format": 2}'), "has format 2, expected 1"),
    "not ours": (lambda f: (f / "manifest.json").write_text('{"format": 1, "shards": 3}'), "not as scott writes it"),
    "a shard missing": (lambda f: (f / "1.tar").unlink(), r"^\S*1\.tar is missing, expected [\d,]+ bytes"),
    "a shard cut": (lambda f: (f / "1.tar").write_bytes(b"x" * 512), r"^\S*1\.tar has 512 bytes"),
}


@pytest.mark.parametrize(("spoil", "said"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_folder_is_refused_when_it_is_opened(tmp_path, spoil, said):
    folder = write(tmp_path, [2, 3])
    spoil(folder)
    with pytest.raises(UserError, match=said):
        ShardSource(folder, 0)


JSON = st.none() | st.booleans() | st.integers(-5, 10**12) | st.text(max_size=3) | st.just([]) | st.just({})


@given(data=st.data())
def test_any_manifest_is_read_or_refused(tmp_path, data):
    folder = write(tmp_path / "data", [2, 3])
    manifest = json.loads((folder / "manifest.json").read_text())
    place = manifest
    while isinstance(place, (dict, list)) and place:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.booleans()):
            place[key] = data.draw(JSON)
            break
        place = place[key]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with contextlib.suppress(UserError):
        ShardSource(folder, 0).batch(0, 4)


def test_no_samples_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds no samples"):
        ShardSource(write(tmp_path, [0]), 0)


def test_a_shard_that_changed_is_named_when_it_is_read(tmp_path):
    file = write(tmp_path, [2]) / "0.tar"
    content = bytearray(file.read_bytes())
    content[512:520] = b"\xff" * 8  # the length of the first sample's header
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"0\.tar is corrupt, its SHA-256 is .* was .* when it was written"):
        ShardSource(tmp_path, 0).batch(0, 2)


def test_no_part_of_an_epoch_is_of_a_shard_alone(tmp_path):
    """Of nine shards in blocks of up to four, each third of an epoch is of three."""
    source = ShardSource(write(tmp_path, [6] * 9), 0, 4)
    for epoch in range(2):
        thirds = [rows(source.batch(3 * epoch + part, 18)) for part in range(3)]
        assert [len({row // 6 for row in third}) for third in thirds] == [3, 3, 3]
