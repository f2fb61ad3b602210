"""Starts processes as a user would, and ends them as a cluster would."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from scott.cli import main
from scott.training.metrics import read_metrics

ROOT = Path(__file__).parents[2]
LIMIT = 900
"""Seconds after which a process that neither ends nor gets on is given up."""


def start(module, *arguments, processes=1, accelerate=None, port=None, launch=()):
    """A module as one process, as several under torchrun, or as a config of configs/accelerate says; `launch` has more
    flags of the launcher."""
    launcher, port = [], port or free_port()
    if accelerate:
        config = ROOT / "configs" / "accelerate" / f"{accelerate}.yaml"
        launcher = ["accelerate.commands.launch", "--config_file", config, "--num_processes", processes]
        launcher += ["--main_process_port", port, *launch, "-m"]
    elif processes > 1:
        launcher = ["torch.distributed.run", *launch, "--nproc-per-node", processes, "--master-port", port, "-m"]
    command = [sys.executable, "-m", *map(str, (*launcher, module, *arguments))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, cwd=ROOT, **pipes)


def here(*words, code=0):
    """A command in this process, with as many threads as one that was started has, which ends with an exit code."""
    threads, ended = torch.get_num_threads(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["scott", *map(str, words)])
        torch.set_num_threads(1)
        try:
            main()
        except SystemExit as stop:
            ended = stop.code
        finally:
            torch.set_num_threads(threads)
    assert ended == code


def finish(process):
    """Its exit code and all it wrote."""
    try:
        output, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, output


def stop_after(process, out, step, number):
    """Signal a run and its children, all at once, as soon as it has logged a step; its exit code and output."""
    began = time.monotonic()
    while process.poll() is None and time.monotonic() - began < LIMIT:
        if any(record["step"] >= step for record in read_metrics(out / "metrics.jsonl")):
            break
        time.sleep(0.02)
    tree = [*psutil.Process(process.pid).children(recursive=True), process] if process.poll() is None else []
    for one in tree:
        one.send_signal(number)
    return finish(process)


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
