"""Several modules' main functions, one after another in the same processes: `… -m tests.training.several RUNS`, a JSON
list of a module and its words each.

They have one process group, which each would leave behind it closed. Of runs few samples are drawn, as `tests.conftest`
has it, and the last alone is exported.
"""

import importlib
import json
import sys

import torch.distributed
from accelerate.state import AcceleratorState, GradientState

from scott.commands import distill, validation

if __name__ == "__main__":
    vars(validation).update({"PROMPTS": 2, "FEW_STEPS": (2,), "TEACHER_STEPS": 2})
    runs, export = json.loads(sys.argv[1]), distill.export_finished
    close, torch.distributed.destroy_process_group = torch.distributed.destroy_process_group, lambda *group: None
    for number, (module, *words) in enumerate(runs, 1):
        distill.export_finished = export if number == len(runs) else lambda *given: None
        sys.argv = [module, *words]
        try:
            importlib.import_module(module).main()
        except SystemExit as stop:
            if stop.code:
                raise
        AcceleratorState._reset_state()
        GradientState._reset_state()
    close()
