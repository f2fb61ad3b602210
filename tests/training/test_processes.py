"""One run comes out of one process, of two or four, split or not; and of one that was stopped and started again."""

import json
import shutil
import signal
import sys

import pytest
import torch
from PIL import Image
from tests.training.launch import finish, free_port, start, stop_after
from tests.training.runs import assert_same_run, final, metrics

from scott.cli import main
from scott.errors import UserError
from scott.training.checkpoint import checkpoint_step, latest_checkpoint
from scott.training.config import DistillConfig
from scott.training.parallel import rows_of_pass

STEPS = 12
pytestmark = pytest.mark.timeout(900)  # of a fixture, which makes several runs


@pytest.fixture(scope="module")
def shards(teacher_folders, tmp_path_factory):
    """Prepared shards of eleven pictures: epochs end within batches."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(11):
        Image.effect_noise((64, 64), 40.0 + 5 * index).convert("RGB").save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text("a cat" if index % 2 else "dog")
    out = tmp_path_factory.mktemp("data") / "shards"
    here("prepare", folder, "--teacher", teacher_folders["sd1"], "--out", out)
    return out


def here(*words):
    """A command in this process, with as many threads as one that was started has."""
    threads, code = torch.get_num_threads(), None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["scott", *map(str, words)])
        torch.set_num_threads(1)
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        finally:
            torch.set_num_threads(threads)
    assert not code


@pytest.fixture(scope="module")
def words(teacher_folders, shards):
    """`words(out, *flags)`: the command."""

    def command(out, *flags):
        settings = {
            "--teacher": teacher_folders["sd1"],
            "--data": shards,
            "--out": out,
            "--max-steps": STEPS,
            "--batch-size": 4,
            "--precision": "fp32",
            "--lora-rank": 4,
            "--critic-rank": 2,
            "--learning-rate": 1e-3,
            "--critic-learning-rate": 1e-3,
            "--warmup-steps": 0,
            "--log-every": 1,
            "--checkpoint-every": 3,
            "--sample-every": 1000,
            "--loader-workers": 2,
            "--tracker": "none",
        }
        given = [str(word) for setting in settings.items() for word in setting]
        return ["distill", "sd15", *given, "--no-gradient-checkpointing", *flags]

    return command


@pytest.fixture(scope="module")
def distil(words):
    """`distil(out, *flags, processes=1)`: the command, started."""
    return lambda out, *flags, processes=1: start("scott.cli", *words(out, *flags), processes=processes)


@pytest.fixture(scope="module")
def one(words, tmp_path_factory):
    """The folder of an uninterrupted run of one process."""
    out = tmp_path_factory.mktemp("runs") / "one"
    here(*words(out))
    return out


@pytest.fixture(scope="module")
def two(words, tmp_path_factory):
    """Folders of uninterrupted runs of two processes, by their flags."""
    folder = tmp_path_factory.mktemp("two")
    flags = {"plain": (), "two passes": ("--gradient-accumulation", "2"), "split": ("--shard", "full")}
    commands = [words(folder / name, *more) for name, more in flags.items()]
    code, output = finish(start("tests.training.several", json.dumps(commands), processes=2))
    assert code == 0, output
    return {name: folder / name for name in flags}


@pytest.fixture(scope="module")
def four(words, one, tmp_path_factory):
    """Runs of four processes under accelerate's launcher: a whole one, and a split one that goes on with one's."""
    folder = tmp_path_factory.mktemp("four")
    shutil.copytree(one, folder / "gone on")
    checkpoints = folder / "gone on" / "checkpoints"
    shutil.rmtree(latest_checkpoint(checkpoints))
    assert checkpoint_step(latest_checkpoint(checkpoints)) == STEPS - 3
    commands = [words(folder / "whole"), words(folder / "gone on", "--shard", "full")]
    code, output = finish(start("tests.training.several", json.dumps(commands), processes=4, accelerate="cpu"))
    assert code == 0, output
    return folder


def assert_same_up_to_sums(one, other):
    """Losses within 1e-4 and weights within a hundredth of what they moved: Adam turns rounding into steps."""
    assert [record["step"] for record in metrics(other)] == list(range(1, STEPS + 1))
    for mine, theirs in zip(metrics(one), metrics(other), strict=True):
        assert theirs["consistency"] == pytest.approx(mine["consistency"], rel=1e-4)
        assert theirs["critic"] == pytest.approx(mine["critic"], rel=1e-4)
        assert theirs["student_gradient_norm"] == pytest.approx(mine["student_gradient_norm"], rel=1e-3)
    (parts, state), (their_parts, their_state) = final(one), final(other)
    spread, their_spread = (torch.tensor(s.pop("spread")) for s in (state, their_state))
    assert torch.allclose(spread, their_spread, rtol=1e-3, atol=1e-4)
    assert state == their_state
    for part, tensors in parts.items():
        assert tensors.keys() == their_parts[part].keys()
        mine, theirs = (torch.cat([p[part][name].flatten() for name in tensors]) for p in (parts, their_parts))
        assert (mine - theirs).norm() < 1e-3 * mine.norm(), part


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


def test_a_run_that_is_killed_comes_out_bit_for_bit(one, distil, words, tmp_path):
    """SIGKILL between and right after checkpoints, with batches read ahead, in the middle of epochs."""
    out = tmp_path / "run"
    for step in (2, 7):
        code, output = stop_after(distil(out), out, step, signal.SIGKILL)
        assert code != 0, output
        assert metrics(out)[-1]["step"] < STEPS
    here(*words(out))
    assert_same_run(out, one)


def test_sigterm_saves_first_and_the_same_command_goes_on(one, distil, words, tmp_path):
    out = tmp_path / "run"
    code, output = stop_after(distil(out, "--checkpoint-every", "1000"), out, 2, signal.SIGTERM)
    assert code == 143, output
    assert "stopped by SIGTERM after step" in " ".join(output.split())
    assert 2 <= final(out)[1]["step"] < STEPS
    here(*words(out))
    assert_same_run(out, one)
    assert [record["step"] for record in metrics(out)] == list(range(1, STEPS + 1))


def test_two_processes_that_are_stopped_come_out_bit_for_bit(two, distil, tmp_path):
    """SIGTERM finds them in different steps, and they agree on the one to stop after; then SIGKILL."""
    out = tmp_path / "run"
    code, output = stop_after(distil(out, "--checkpoint-every", "1000", processes=2), out, 2, signal.SIGTERM)
    assert code == 1, output  # torchrun has a code of its own
    assert "stopped by SIGTERM after step" in " ".join(output.split())
    assert 2 <= final(out)[1]["step"] < STEPS
    code, output = stop_after(distil(out, processes=2), out, final(out)[1]["step"] + 2, signal.SIGKILL)
    assert code != 0, output
    code, output = finish(distil(out, processes=2))
    assert code == 0, output
    assert_same_run(out, two["plain"])
    assert [record["step"] for record in metrics(out)] == list(range(1, STEPS + 1))


def test_a_split_run_that_is_killed_goes_on_in_one_process(one, distil, words, tmp_path):
    out = tmp_path / "run"
    code, output = stop_after(distil(out, "--shard", "full", processes=2), out, 5, signal.SIGKILL)
    assert code != 0, output
    here(*words(out))
    assert_same_up_to_sums(one, out)


DRAWN = {"critic": "heads", "critic_fakes": "drawn", "critic_input": "clean", "adversarial_share": 0.3}
DRAWN |= {"solver": "ddim", "jump": 8, "substeps": 1}
SPLIT = {
    "full, in two passes": ("sd1", {"train": "full", "critic": "full", "gradient_accumulation": 2}),
    "fp16 and checkpointing": ("sd3", {"train": "lora", "checkpointing": True, "precision": "fp16"}),
    "compiled": ("sd1", {"train": "lora", "compile": True}),
    "drawn": ("sd3", {"train": "lora", "critic_r1": 0.1, **DRAWN}),
    "drawn, averaged": ("sd1", {"train": "full", "shard": "none", **DRAWN}),
}
MACHINES = {"two machines": ("sd1", {"train": "lora"})}


@pytest.fixture(scope="module")
def split_steps(teacher_folders):
    """By case, what `parallel_worker` found; each machine has two processes."""

    def found(cases, machines):
        given = json.dumps({case: (str(teacher_folders[family]), more) for case, (family, more) in cases.items()})
        port = free_port()
        launches = [
            ("--nnodes", machines, "--node-rank", rank, "--master-addr", "127.0.0.1") for rank in range(machines)
        ]
        worker = ("tests.training.parallel_worker", given)
        workers = [start(*worker, processes=2, port=port, launch=launch) for launch in launches]
        done = [finish(process) for process in workers]
        assert not any(code for code, _ in done), done
        lines = [json.loads(line) for _, output in done for line in output.splitlines() if line.startswith("{")]
        return {line["case"]: line for line in lines}

    return found(SPLIT, 1) | found(MACHINES, 2)


@pytest.mark.parametrize("case", [*SPLIT, *MACHINES])
def test_two_steps_split_over_processes_are_those_of_a_whole_network(split_steps, case):
    """Frozen network, student, target and critic with their optimizers, and what the budget says goes between them."""
    found = split_steps[case]
    tolerance = 1e-2 if case.startswith("fp16") else 1e-4
    assert max(found["losses"], found["norms"], found["weights"]) < tolerance
    assert found["held"] < 0.55 or case == "drawn, averaged", "half of all"
    if not case.startswith("drawn"):
        assert found["exchanged"] == pytest.approx(found["traffic"], rel=0.1)


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
