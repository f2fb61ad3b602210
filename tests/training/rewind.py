"""A run again, without its newest checkpoint: `main()` under `several`, with RUN and COPY."""

import os
import shutil
import sys
from pathlib import Path

import torch.distributed

from scott.training.checkpoint import latest_checkpoint


def main():
    run, copy = map(Path, sys.argv[1:])
    if os.environ["RANK"] == "0":
        shutil.copytree(run, copy)
        shutil.rmtree(latest_checkpoint(copy / "checkpoints"))
    torch.distributed.barrier()
