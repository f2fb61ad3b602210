"""One run comes out of one process, of two or four, split or not; and each of its steps does.

Two launches do it all, since processes that start cost more than these runs: two processes as accelerate's config for
one machine starts them, over gloo where there is no GPU, and four on two machines, as its config for several does.
"""

import json
import shutil
import signal

import pytest
import torch
from tests.training.launch import finish, free_port, here, start, stop_after
from tests.training.runs import SPREAD_STEPS, assert_same_run, assert_same_up_to_sums, final, metrics

from scott.errors import UserError
from scott.training.checkpoint import checkpoint_step, checkpoints, latest_checkpoint
from scott.training.config import DistillConfig
from scott.training.parallel import rows_of_pass

pytestmark = pytest.mark.timeout(1800)  # of fixtures, which make several runs
DRAWN = {"critic": "heads", "critic_fakes": "drawn", "critic_input": "clean", "adversarial_share": 0.3}
DRAWN |= {"solver": "ddim", "jump": 8, "substeps": 1}
COMPILED = {"compile": True, "checkpointing": True}
SPLIT = {
    "full, in two passes": ("sd1", {"train": "full", "critic": "full", "gradient_accumulation": 2}),
    "fp16 and checkpointing": ("sd3", {"train": "lora", "checkpointing": True, "precision": "fp16"}),
    "compiled": ("few", {"train": "lora", "compile": True}),
    "compiled and checkpointing, averaged": ("few", {"train": "lora", **COMPILED, "shard": "none"}),
    "drawn": ("sd3", {"train": "lora", "critic_r1": 0.1, **DRAWN}),
    "drawn, averaged": ("sd1", {"train": "full", "shard": "none", **DRAWN}),
    "layers without gradients, averaged": ("qwen-image", {"train": "lora", "shard": "none"}),
}
AVERAGED = {case for case, (_, changes) in SPLIT.items() if changes.get("shard") == "none"}
MACHINES = {"two machines": ("sd1", {"train": "lora"})}


def carried_out(teacher_folders, cases, commands, *launches, **options):
    """By case, what `parallel_worker` found in the processes of some launches, which carried out the commands then."""
    given = json.dumps({case: (str(teacher_folders[family]), more) for case, (family, more) in cases.items()})
    runs = [["tests.training.parallel_worker", given], *commands]
    port, several = free_port(), ("tests.training.several", json.dumps(runs))
    started = [start(*several, port=port, launch=flags, **options) for flags in launches]
    done = [finish(process) for process in started]
    assert not any(code for code, _ in done), done
    lines = [json.loads(line) for _, output in done for line in output.splitlines() if line.startswith('{"case"')]
    return {line["case"]: line for line in lines}


@pytest.fixture(scope="module")
def stopped(distil, tmp_path_factory):
    """The folder of a run of two processes that SIGTERM found in different steps, and its exit code and output."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    return out, *stop_after(distil(out, "--checkpoint-every", "1000", processes=2), out, 2, signal.SIGTERM)


@pytest.fixture(scope="module")
def two(words, stopped, teacher_folders, tmp_path_factory):
    """Of two processes: folders of runs by their flags, one of which had been stopped and goes on; and split steps."""
    folder = tmp_path_factory.mktemp("two")
    flags = {"plain": (), "two passes": ("--gradient-accumulation", "2")}
    flags |= {"split": ("--shard", "full", "--keep-checkpoints", "4")}
    shutil.copytree(stopped[0], folder / "stopped")
    commands = [["scott.cli", *words(folder / name, *more)] for name, more in (flags | {"stopped": ()}).items()]
    return folder, carried_out(teacher_folders, SPLIT, commands, (), processes=2, accelerate="multi_gpu")


@pytest.fixture(scope="module")
def four(words, one, teacher_folders, tmp_path_factory):
    """Of two machines of two processes each: a whole run, and again from its last checkpoint but one, a split one that
    goes on with one's; and split steps."""
    folder = tmp_path_factory.mktemp("four")
    shutil.copytree(one, folder / "gone on")
    saved = folder / "gone on" / "checkpoints"
    shutil.rmtree(latest_checkpoint(saved))
    assert checkpoint_step(latest_checkpoint(saved)) == SPREAD_STEPS - 1
    commands = [
        ["scott.cli", *words(folder / "whole")],
        ["tests.training.rewind", str(folder / "whole"), str(folder / "again")],
        ["scott.cli", *words(folder / "again")],
        ["scott.cli", *words(folder / "gone on", "--shard", "full")],
    ]
    machine = ("--num_machines", 2, "--main_process_ip", "127.0.0.1", "--machine_rank")
    launches = ((*machine, 0), (*machine, 1))
    return folder, carried_out(teacher_folders, MACHINES, commands, *launches, processes=4, accelerate="multi_node")


@pytest.mark.parametrize("spread", ["plain", "two passes", "split"])
def test_the_same_batch_over_two_processes_is_the_same_run(one, two, spread):
    assert_same_up_to_sums(one, two[0] / spread)


@pytest.mark.parametrize("spread", ["whole", "gone on"])
def test_the_same_batch_over_four_processes_is_the_same_run(one, four, spread):
    """Also where they go on, split, from the checkpoint before the last of one process."""
    assert_same_up_to_sums(one, four[0] / spread)


def test_a_split_run_goes_on_in_one_process(one, two, words, tmp_path):
    """From its first checkpoint, with a log that goes further, as one that was killed between steps three and six."""
    out = shutil.copytree(two[0] / "split", tmp_path / "run")
    for later in checkpoints(out / "checkpoints")[1:]:
        shutil.rmtree(later)
    assert checkpoint_step(latest_checkpoint(out / "checkpoints")) == 3
    here(*words(out))
    assert_same_up_to_sums(one, out)


def test_four_processes_that_go_on_come_out_bit_for_bit(four):
    """Sums of two are the same in any order, those of four are not."""
    assert_same_run(four[0] / "again", four[0] / "whole")


def test_spread_batches_are_not_compared_with_themselves(one, two):
    """Another order of sums leaves other bits."""
    parts, others = final(one)[0]["student"], final(two[0] / "plain")[0]["student"]
    assert any(not torch.equal(parts[name], others[name]) for name in parts)


def test_two_processes_that_are_stopped_come_out_bit_for_bit(stopped, two):
    """They agree on the step to stop after."""
    out, code, output = stopped
    assert code == 1, output  # torchrun has a code of its own
    assert "stopped by SIGTERM after step" in " ".join(output.split())
    assert 2 <= final(out)[1]["step"] < SPREAD_STEPS
    again, plain = (two[0] / name for name in ("stopped", "plain"))
    assert_same_run(again, plain)
    assert [record["step"] for record in metrics(again)] == list(range(1, SPREAD_STEPS + 1))


@pytest.mark.parametrize("case", [*SPLIT, *MACHINES])
def test_two_steps_split_over_processes_are_those_of_a_whole_network(request, case):
    """Frozen network, student, target and critic with their optimizers, and what the budget says goes between them."""
    found = request.getfixturevalue("two" if case in SPLIT else "four")[1][case]
    tolerance = 1e-2 if case.startswith("fp16") else 1e-4
    for what in ("losses", "norms", "weights"):
        assert found[what] < tolerance, what  # one by one: `max` may pass over a NaN
    assert found["held"] < 0.55 or case in AVERAGED, "half of all"
    assert (found["graphs"] > 0) == case.startswith("compiled")
    if case not in AVERAGED:  # whose gradients DDP sends
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
