"""Several modules' main functions, one after another in the same processes: `… -m tests.training.several RUNS`, a JSON
list of a module and its words each.

They have one process group, which each would leave behind it closed. Beside a run's student, the teacher is drawn in 2
steps, as `tests.conftest` has it.
"""

import importlib
import json
import sys

import torch.distributed
from accelerate.state import AcceleratorState, GradientState

from scott.commands import validation

if __name__ == "__main__":
    validation.TEACHER_STEPS = 2
    close, torch.distributed.destroy_process_group = torch.distributed.destroy_process_group, lambda *group: None
    for module, *words in json.loads(sys.argv[1]):
        sys.argv = [module, *words]
        try:
            importlib.import_module(module).main()
        except SystemExit as stop:
            if stop.code:
                raise
        AcceleratorState._reset_state()
        GradientState._reset_state()
    close()
