"""`scott app`: the page in the browser, and the runs it is about."""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from scott.commands.plan import planned
from scott.diffusion.tensors import DTYPES
from scott.errors import UserError
from scott.progress import console
from scott.students import is_run

RUNS = Path("runs")
"""Where runs are looked for if none is named."""


def app(names: Sequence[str], host: str, port: int | None, precision: str) -> None:
    """Serve the page until it is stopped.

    Raises `UserError` when gradio is not installed, or a name is neither a run nor a student.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UserError("got no gradio, which draws the page; pip install gradio")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    from scott.app.models import Models
    from scott.app.page import build, serve

    models = Models(names or found_runs(), DTYPES[precision])
    for name in set(names) & set(models.students):
        models.student(name)  # what cannot be loaded is known before the page is served
    page = build(models, planned)
    console.print(f"at {serve(page, host, port)}   Ctrl-C stops it", highlight=False)
    page.block_thread()


def found_runs(folder: Path = RUNS) -> list[str]:
    """The run folders in `runs`, the newest first."""
    found = [run for run in folder.iterdir() if is_run(run)] if folder.is_dir() else []
    return [str(run) for run in sorted(found, key=lambda run: run.stat().st_mtime, reverse=True)]
