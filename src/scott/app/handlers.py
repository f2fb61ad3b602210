"""How the page's handlers draw, and how they say what is wrong."""

from typing import Any

from safetensors import SafetensorError

from scott.app.figures import message
from scott.errors import UserError, first_line, is_out_of_memory, one_line

AT_ONCE: dict[str, Any] = {"concurrency_limit": None, "js": "(_, ...values) => [Date.now(), ...values]"}
"""Of an event that draws: it starts at once, with the time as its first input; `Drawer` has older ones give up."""


def problem(error: Exception) -> str:
    """What is wrong, as the command line says it, in the place of what was asked for: it stays until that is there.

    Raises an error that is none of its reader's doing.
    """
    if isinstance(error, (UserError, FloatingPointError, OSError, SafetensorError)):
        return message(one_line(str(error)))
    if is_out_of_memory(error):
        said = f"{first_line(error)}; choose fewer students or steps, or start scott app with --precision fp16"
        return message(said)
    raise error
