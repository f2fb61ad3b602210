"""One run comes out of one process, of two and of two passes; and of one that was killed and started again."""

import json
import shutil
import signal

import pytest
import torch
from PIL import Image
from tests.training.launch import finish, free_port, start, stop_after
from tests.training.runs import assert_same_run, final, metrics

from scott.errors import UserError
from scott.training.checkpoint import checkpoint_step, latest_checkpoint
from scott.training.config import DistillConfig
from scott.training.parallel import rows_of_pass

STEPS = 12


@pytest.fixture(scope="module")
def shards(teacher_folders, tmp_path_factory):
    """Prepared shards of eleven pictures: epochs end within batches."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(11):
        Image.effect_noise((64, 64), 40.0 + 5 * index).convert("RGB").save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text("a cat" if index % 2 else "dog")
    out = tmp_path_factory.mktemp("data") / "shards"
    code, output = finish(start("scott.cli", "prepare", folder, "--teacher", teacher_folders["sd1"], "--out", out))
    assert code == 0, output
    return out


@pytest.fixture(scope="module")
def distil(teacher_folders, shards):
    """`distil(out, processes, *flags)`: the command, started."""

    def command(out, *flags, processes=1, accelerate=None):
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
        words = [str(word) for setting in settings.items() for word in setting]
        words += ["--no-gradient-checkpointing", *flags]
        return start("scott.cli", "distill", "sd15", *words, processes=processes, accelerate=accelerate)

    return command


@pytest.fixture(scope="module")
def runs(distil, tmp_path_factory):
    """Folders of uninterrupted runs by number of processes and passes, made when first asked for."""
    made = {}

    def folder(processes=1, passes=1):
        if (processes, passes) not in made:
            out = made[processes, passes] = tmp_path_factory.mktemp("runs") / f"{processes}-{passes}"
            code, output = finish(distil(out, "--gradient-accumulation", str(passes), processes=processes))
            assert code == 0, output
        return made[processes, passes]

    return folder


def assert_same_up_to_sums(one, other):
    """Losses within 1e-4 and weights within a hundredth of what they moved: Adam turns rounding into steps."""
    assert [record["step"] for record in metrics(other)] == list(range(1, STEPS + 1))
    for mine, theirs in zip(metrics(one), metrics(other), strict=True):
        assert theirs["consistency"] == pytest.approx(mine["consistency"], rel=1e-4)
        assert theirs["critic"] == pytest.approx(mine["critic"], rel=1e-4)
        assert theirs["student_gradient_norm"] == pytest.approx(mine["student_gradient_norm"], rel=1e-3)
    (parts, state), (their_parts, their_state) = final(one), final(other)
    assert state == their_state
    for part, tensors in parts.items():
        assert tensors.keys() == their_parts[part].keys()
        mine, theirs = (torch.cat([p[part][name].flatten() for name in tensors]) for p in (parts, their_parts))
        assert (mine - theirs).norm() < 1e-3 * mine.norm(), part


@pytest.mark.parametrize(("processes", "passes"), [(2, 1), (2, 2)])
def test_the_same_batch_spread_otherwise_is_the_same_run(runs, processes, passes):
    assert_same_up_to_sums(runs(), runs(processes, passes))


def test_spread_batches_are_not_compared_with_themselves(runs):
    """Another order of sums leaves other bits."""
    parts, others = final(runs())[0]["student"], final(runs(2))[0]["student"]
    assert any(not torch.equal(parts[name], others[name]) for name in parts)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_is_killed_comes_out_bit_for_bit(runs, distil, tmp_path, processes):
    """SIGKILL between and right after checkpoints, with batches read ahead, in the middle of epochs."""
    out = tmp_path / "run"
    for step in (2, 7) if processes == 1 else (5,):
        code, output = stop_after(distil(out, processes=processes), out, step, signal.SIGKILL)
        assert code != 0, output
        assert metrics(out)[-1]["step"] < STEPS
    code, output = finish(distil(out, processes=processes))
    assert code == 0, output
    assert_same_run(out, runs(processes))


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_saves_first_and_the_same_command_goes_on(runs, distil, tmp_path, processes):
    """The signal finds the processes in different steps, and they agree on the one to stop after."""
    out = tmp_path / "run"
    started = distil(out, "--checkpoint-every", "1000", processes=processes)
    code, output = stop_after(started, out, 2, signal.SIGTERM)
    assert code == (143 if processes == 1 else 1), output  # torchrun has a code of its own
    assert "stopped by SIGTERM after step" in " ".join(output.split())
    stopped = final(out)[1]["step"]
    assert 2 <= stopped < STEPS
    code, output = finish(distil(out, processes=processes))
    assert code == 0, output
    assert_same_run(out, runs(processes))
    assert [record["step"] for record in metrics(out)] == list(range(1, STEPS + 1))


def test_a_split_run_that_is_killed_goes_on_in_one_process(runs, distil, tmp_path):
    out = tmp_path / "run"
    code, output = stop_after(distil(out, "--shard", "full", processes=2), out, 5, signal.SIGKILL)
    assert code != 0, output
    code, output = finish(distil(out))
    assert code == 0, output
    assert_same_up_to_sums(runs(), out)


def test_a_run_of_one_process_goes_on_split_over_four(runs, distil, tmp_path):
    """Under accelerate's launcher, from the checkpoint before the last."""
    out = tmp_path / "run"
    shutil.copytree(runs(), out)
    newest = latest_checkpoint(out / "checkpoints")
    shutil.rmtree(newest)
    assert checkpoint_step(latest_checkpoint(out / "checkpoints")) == STEPS - 3
    code, output = finish(distil(out, "--shard", "full", processes=4, accelerate="cpu"))
    assert code == 0, output
    assert_same_up_to_sums(runs(), out)


SPLIT = {
    "full": ("sd1", {"train": "full", "critic": "full"}, 1),
    "lora": ("sd3", {"train": "lora", "checkpointing": True, "precision": "fp16"}, 1),
    "two machines": ("sd1", {"train": "lora"}, 2),
}


@pytest.mark.parametrize("case", SPLIT)
def test_two_steps_split_over_processes_are_those_of_a_whole_network(teacher_folders, case):
    """Frozen network, student, target and critic with their optimizers; each machine has two processes."""
    family, changes, machines = SPLIT[case]
    arguments = ("tests.training.parallel_worker", teacher_folders[family], json.dumps(changes))
    port = free_port()
    launches = [("--nnodes", machines, "--node-rank", rank, "--master-addr", "127.0.0.1") for rank in range(machines)]
    workers = [start(*arguments, processes=2, port=port, launch=launch) for launch in launches]
    done = [finish(worker) for worker in workers]
    assert not any(code for code, _ in done), done
    found = json.loads(next(line for _, output in done for line in output.splitlines() if line.startswith("{")))
    tolerance = 1e-2 if changes.get("precision") == "fp16" else 1e-4
    assert max(found["losses"], found["norms"], found["weights"]) < tolerance
    assert found["held"] < 0.55, "half of all"


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
