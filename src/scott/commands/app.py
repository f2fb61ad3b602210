"""`scott app`: the page in the browser, and the runs it is about."""

import os
import socket
from collections.abc import Sequence
from pathlib import Path

from scott.commands.plan import planned
from scott.diffusion.tensors import DTYPES
from scott.errors import UserError, first_line, require
from scott.progress import console
from scott.students import is_run

RUNS = Path("runs")
"""Where runs are looked for if none is named."""


def app(names: Sequence[str], host: str, port: int | None, precision: str) -> None:
    """Serve the page until it is stopped.

    Raises `UserError` when gradio is not installed, a name is neither a run nor a student, or the address is not to be
    had.
    """
    check_address(host, port)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    require("gradio", "the page")
    from scott.app.models import Models
    from scott.app.page import build, serve

    models = Models(names or found_runs, DTYPES[precision])
    for name in set(names) & set(models.students):
        models.student(name)  # what cannot be loaded is known before the page is served
    page = build(models, planned)
    console.print(f"at {serve(page, host, port)}   Ctrl-C stops it", highlight=False)
    page.block_thread()


def check_address(host: str, port: int | None) -> None:
    """Raises `UserError` where nothing can be served at the host, or at its port."""
    if port is not None and not 0 < port < 2**16:
        raise UserError(f"got --port {port}; expected one from 1 to {2**16 - 1}")
    try:
        family, *_ = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.create_server((host, port or 0), family=family):
            pass
    except (OSError, UnicodeError) as error:  # the latter of what can be no name
        named = f"--host {host}" + (f" --port {port}" if port else "")
        raise UserError(f"got {named}, which cannot be served at ({first_line(error)}); name others") from None


def found_runs(folder: Path = RUNS) -> list[str]:
    """The run folders in `runs`, the newest first."""
    found = [run for run in folder.iterdir() if is_run(run)] if folder.is_dir() else []
    return [str(run) for run in sorted(found, key=lambda run: run.stat().st_mtime, reverse=True)]
