"""Several command lines of scott, one after another: `… -m tests.training.several COMMANDS`, a JSON list of lists.

They have one process group, which a command would leave behind it closed.
"""

import json
import sys

import torch.distributed
from accelerate.state import AcceleratorState, GradientState

from scott.cli import main

if __name__ == "__main__":
    close, torch.distributed.destroy_process_group = torch.distributed.destroy_process_group, lambda *group: None
    for words in json.loads(sys.argv[1]):
        sys.argv = ["scott", *words]
        try:
            main()
        except SystemExit as stop:
            if stop.code:
                raise
        AcceleratorState._reset_state()
        GradientState._reset_state()
    close()
