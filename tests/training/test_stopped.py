"""A run that is stopped comes out as one that is not."""

import signal

import pytest
from tests.training.launch import here, stop_after
from tests.training.runs import SPREAD_STEPS, assert_same_run, assert_same_up_to_sums, final, metrics

from scott.data.locks import locked

pytestmark = pytest.mark.timeout(600)


def test_a_run_that_is_killed_comes_out_bit_for_bit(one, distil, words, tmp_path):
    """SIGKILL between and right after checkpoints, with batches read ahead, in the middle of epochs."""
    out = tmp_path / "run"
    for step in (2, 4):
        code, output = stop_after(distil(out), out, step, signal.SIGKILL)
        assert code != 0, output
        assert metrics(out)[-1]["step"] < SPREAD_STEPS
    here(*words(out))
    assert_same_run(out, one)


def test_sigterm_saves_first_and_the_same_command_goes_on(one, distil, words, tmp_path):
    out = tmp_path / "run"
    code, output = stop_after(distil(out, "--checkpoint-every", "1000"), out, 2, signal.SIGTERM)
    assert code == 143, output
    assert "stopped by SIGTERM after step" in " ".join(output.split())
    assert 2 <= final(out)[1]["step"] < SPREAD_STEPS
    here(*words(out))
    assert_same_run(out, one)
    assert [record["step"] for record in metrics(out)] == list(range(1, SPREAD_STEPS + 1))


def test_a_run_that_another_command_writes_is_refused(one, words, capsys):
    with locked(one), pytest.raises(AssertionError):
        here(*words(one))
    assert "is being written by another command (process" in " ".join(capsys.readouterr().err.split())


def test_a_split_run_that_is_killed_goes_on_in_one_process(one, distil, words, tmp_path):
    out = tmp_path / "run"
    code, output = stop_after(distil(out, "--shard", "full", processes=2), out, 5, signal.SIGKILL)
    assert code != 0, output
    here(*words(out))
    assert_same_up_to_sums(one, out)
