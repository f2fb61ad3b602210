"""One run comes out of one process, of two or four, split or not."""

import json
import shutil
import signal

import pytest
import torch
from tests.training.launch import finish, start, stop_after
from tests.training.runs import SPREAD_STEPS, assert_same_run, assert_same_up_to_sums, final, metrics

from scott.errors import UserError
from scott.training.checkpoint import checkpoint_step, latest_checkpoint
from scott.training.config import DistillConfig
from scott.training.parallel import rows_of_pass

pytestmark = pytest.mark.timeout(900)  # of a fixture, which makes several runs


@pytest.fixture(scope="module")
def stopped(distil, tmp_path_factory):
    """The folder of a run of two processes that SIGTERM found in different steps, and its exit code and output."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    return out, *stop_after(distil(out, "--checkpoint-every", "1000", processes=2), out, 2, signal.SIGTERM)


@pytest.fixture(scope="module")
def two(words, stopped, tmp_path_factory):
    """Folders of runs of two processes, by their flags; one had been stopped, and goes on."""
    folder = tmp_path_factory.mktemp("two")
    flags = {"plain": (), "two passes": ("--gradient-accumulation", "2"), "split": ("--shard", "full")}
    shutil.copytree(stopped[0], folder / "stopped")
    commands = [words(folder / name, *more) for name, more in (flags | {"stopped": ()}).items()]
    code, output = finish(start("tests.training.several", json.dumps(commands), processes=2))
    assert code == 0, output
    return {name: folder / name for name in (*flags, "stopped")}


@pytest.fixture(scope="module")
def four(words, one, tmp_path_factory):
    """Runs of four processes under accelerate's launcher: a whole one, and a split one that goes on with one's."""
    folder = tmp_path_factory.mktemp("four")
    shutil.copytree(one, folder / "gone on")
    checkpoints = folder / "gone on" / "checkpoints"
    shutil.rmtree(latest_checkpoint(checkpoints))
    assert checkpoint_step(latest_checkpoint(checkpoints)) == SPREAD_STEPS - 1
    commands = [words(folder / "whole"), words(folder / "gone on", "--shard", "full")]
    code, output = finish(start("tests.training.several", json.dumps(commands), processes=4, accelerate="cpu"))
    assert code == 0, output
    return folder


@pytest.mark.parametrize("spread", ["plain", "two passes", "split"])
def test_the_same_batch_over_two_processes_is_the_same_run(one, two, spread):
    assert_same_up_to_sums(one, two[spread])


@pytest.mark.parametrize("spread", ["whole", "gone on"])
def test_the_same_batch_over_four_processes_is_the_same_run(one, four, spread):
    """Also where they go on, split, from the checkpoint before the last of one process."""
    assert_same_up_to_sums(one, four / spread)


def test_spread_batches_are_not_compared_with_themselves(one, two):
    """Another order of sums leaves other bits."""
    parts, others = final(one)[0]["student"], final(two["plain"])[0]["student"]
    assert any(not torch.equal(parts[name], others[name]) for name in parts)


def test_two_processes_that_are_stopped_come_out_bit_for_bit(stopped, two):
    """They agree on the step to stop after."""
    out, code, output = stopped
    assert code == 1, output  # torchrun has a code of its own
    assert "stopped by SIGTERM after step" in " ".join(output.split())
    assert 2 <= final(out)[1]["step"] < SPREAD_STEPS
    assert_same_run(two["stopped"], two["plain"])
    assert [record["step"] for record in metrics(two["stopped"])] == list(range(1, SPREAD_STEPS + 1))


# --- without processes ---------------------------------------------------------------------------------------


def config(batch_size, passes):
    return DistillConfig(teacher="t", data="d", out="o", batch_size=batch_size, gradient_accumulation=passes)


@pytest.mark.parametrize(("batch", "passes", "processes"), [(12, 1, 1), (12, 3, 2), (12, 1, 4), (4, 2, 2)])
def test_every_row_of_a_batch_is_in_one_pass(batch, passes, processes):
    slices = [rows for process in range(processes) for rows in rows_of_pass(config(batch, passes), process, processes)]
    assert len(slices) == passes * processes
    assert [row for rows in slices for row in range(batch)[rows]] == list(range(batch))
    assert len({rows.stop - rows.start for rows in slices}) == 1


@pytest.mark.parametrize(("batch", "passes", "processes"), [(10, 1, 3), (2, 2, 2), (1, 1, 2)])
def test_a_batch_that_does_not_divide_is_refused(batch, passes, processes):
    with pytest.raises(UserError, match=f"got batch size {batch}; expected a multiple of {processes * passes}"):
        rows_of_pass(config(batch, passes), 0, processes)
