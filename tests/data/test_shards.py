"""A shard comes back as it was written, is whole or absent, and no bytes make the reader do more than refuse."""

import contextlib
import errno
import os
import resource
import tarfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.data.making import add

from scott import files
from scott.data.shards import Shard, shard_writer, write_durably
from scott.errors import UserError

SHAPES = {"mean": [2, 3, 3], "std": [2, 3, 3], "cond.text": [4, 5]}


def sample(seed, captions=2):
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: [captions, *shape] if name.startswith("cond.") else shape for name, shape in SHAPES.items()}
    return {name: torch.randn(shape, generator=generator).half() for name, shape in shapes.items()}


def write(file, count=3):
    with shard_writer(file) as writer:
        for i in range(count):
            writer.add(f"k{i}", sample(i, captions=1 + i % 2), {"captions": [f"picture {i} ü"]})
        writer.finish()
    return file


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write(tmp_path_factory.mktemp("shard") / "000000.tar")


def test_samples_come_back(whole):
    shard = Shard(whole)
    assert (len(shard), shard.keys) == (3, ["k0", "k1", "k2"])
    for i in (2, 0, 1):
        read = shard.sample(i, SHAPES)
        assert all(torch.equal(value, read[name]) for name, value in sample(i, 1 + i % 2).items())
        assert shard.info(i) == {"captions": [f"picture {i} ü"]}


def test_it_is_a_plain_tar_of_safetensors_without_time_or_owner(whole, tmp_path):
    with tarfile.open(whole) as archive:
        members = archive.getmembers()
        assert [m.name for m in members][:2] == ["k0.safetensors", "k0.json"]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}
    assert write(tmp_path / "again.tar").read_bytes() == whole.read_bytes()


def test_an_empty_shard(tmp_path):
    assert len(Shard(write(tmp_path / "none.tar", 0))) == 0


def fails_with(error):
    def fail(*_):
        raise error

    return fail


def write_one(file, prepare=lambda writer: None):
    with shard_writer(file) as writer:
        prepare(writer)
        writer.add("a", sample(0), {})
        writer.finish()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "broken"), ValueError()])
def test_a_failure_leaves_nothing(tmp_path, monkeypatch, error):
    with pytest.raises(type(error)):
        write_one(tmp_path / "x.tar", lambda writer: monkeypatch.setattr(writer, "finish", fails_with(error)))
    assert not list(tmp_path.iterdir())


NO_ROOM = r"no room at .* \(\w[\w ]+; [\d,]+ bytes free\); make some"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch, number):
    full = fails_with(OSError(number, os.strerror(number)))
    with pytest.raises(UserError, match=NO_ROOM):
        write_one(tmp_path / "x.tar", lambda writer: monkeypatch.setattr(writer, "_write", full))
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match=NO_ROOM):
        write_one(tmp_path / "x.tar")
    with pytest.raises(UserError, match=NO_ROOM):
        write_durably(tmp_path / "x.json", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"mean": sample(0)["mean"]},
        sample(0) | {"more": torch.zeros(2)},
        sample(0) | {"std": torch.zeros(2, 3, 4).half()},
        sample(0) | {"mean": torch.zeros(2, 3, 3)},
        sample(0, captions=0),
        sample(0) | {"cond.text": torch.tensor(1.0).half()},
    ],
)
def test_a_sample_of_other_tensors_is_named(tmp_path, tensors):
    with shard_writer(tmp_path / "x.tar") as writer:
        writer.add("a", tensors, {})
        writer.finish()
    with pytest.raises(UserError, match=r"x\.tar is corrupt, sample a: it holds"):
        Shard(tmp_path / "x.tar").sample(0, SHAPES)


def read_all(file):
    """Every sample, or a `UserError`; nothing else may happen."""
    with contextlib.suppress(UserError):
        shard = Shard(file)
        for i in range(len(shard)):
            with contextlib.suppress(UserError):
                shard.sample(i, SHAPES)
            with contextlib.suppress(UserError):
                shard.info(i)


@given(data=st.binary(max_size=2000))
def test_any_bytes_are_refused(tmp_path, data):
    (tmp_path / "x.tar").write_bytes(data)
    read_all(tmp_path / "x.tar")


@given(
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.binary(min_size=1, max_size=12)), max_size=4), data=st.data()
)
def test_a_mutated_shard_is_read_or_refused(whole, tmp_path, changes, data):
    content = bytearray(whole.read_bytes())
    for position, change in changes:
        start = position % len(content)
        content[start : start + len(change)] = change
    cut = data.draw(st.integers(0, len(content)))
    (tmp_path / "x.tar").write_bytes(content[: cut or None])
    read_all(tmp_path / "x.tar")


@given(header=st.binary(max_size=300), info=st.binary(max_size=60), length=st.integers(0, 2**64 - 1))
def test_members_of_any_content_are_read_or_refused(tmp_path, header, info, length):
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        add(archive, "a.safetensors", length.to_bytes(8, "little") + header)
        add(archive, "a.json", info)
    read_all(tmp_path / "x.tar")


def test_a_size_beyond_the_file_and_an_endless_header_are_refused(whole, tmp_path):
    header = tarfile.TarInfo("a.safetensors")
    header.size = 1 << 40
    (tmp_path / "x.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(UserError, match="no file of"):
        Shard(tmp_path / "x.tar")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"x\.tar cannot be read"):
        Shard(tmp_path / "x.tar")


def test_where_files_run_out_the_limit_is_named(tmp_path):
    write(tmp_path / "x.tar")
    most, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        with pytest.raises(UserError, match=r"x\.tar cannot be read .*; allow more open files: ulimit -n"):
            opened.extend(Shard(tmp_path / "x.tar") for _ in range(65))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
