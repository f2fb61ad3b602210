"""Two steps whose networks are split over processes, or averaged, beside the same steps of one."""

import json

import pytest
from tests.training.launch import finish, free_port, start

pytestmark = pytest.mark.timeout(900)
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


def found(teacher_folders, cases, *launches, **options):
    """By case, what `parallel_worker` found in the processes of some launches."""
    given = json.dumps({case: (str(teacher_folders[family]), more) for case, (family, more) in cases.items()})
    port = free_port()
    workers = [start("tests.training.parallel_worker", given, port=port, launch=f, **options) for f in launches]
    done = [finish(process) for process in workers]
    assert not any(code for code, _ in done), done
    lines = [json.loads(line) for _, output in done for line in output.splitlines() if line.startswith("{")]
    return {line["case"]: line for line in lines}


@pytest.fixture(scope="module")
def split_steps(teacher_folders):
    """Of two processes, under torchrun."""
    return found(teacher_folders, SPLIT, (), processes=2)


@pytest.fixture(scope="module")
def machine_steps(teacher_folders):
    """Of two machines of two processes each, as accelerate's config for several starts them."""
    here = ("--num_machines", 2, "--main_process_ip", "127.0.0.1", "--machine_rank")
    return found(teacher_folders, MACHINES, (*here, 0), (*here, 1), processes=4, accelerate="multi_node")


@pytest.mark.parametrize("case", [*SPLIT, *MACHINES])
def test_two_steps_split_over_processes_are_those_of_a_whole_network(request, case):
    """Frozen network, student, target and critic with their optimizers, and what the budget says goes between them."""
    found = request.getfixturevalue("split_steps" if case in SPLIT else "machine_steps")[case]
    tolerance = 1e-2 if case.startswith("fp16") else 1e-4
    assert max(found["losses"], found["norms"], found["weights"]) < tolerance
    assert found["held"] < 0.55 or case == "drawn, averaged", "half of all"
    if case != "drawn, averaged":  # which DDP sends
        assert found["exchanged"] == pytest.approx(found["traffic"], rel=0.1)
