"""How the page's handlers say what is wrong."""

from collections.abc import Callable, Iterator
from functools import wraps
from html import escape
from typing import Any

import gradio as gr
from safetensors import SafetensorError

from scott.errors import UserError, first_line, is_out_of_memory, one_line

AT_ONCE: dict[str, Any] = {"concurrency_limit": None, "js": "(_, ...values) => [Date.now(), ...values]"}
"""Of an event that draws: it starts at once, with the time as its first input; `Drawer` has older ones give up."""


def sentence(error: Exception) -> str:
    """What is wrong, as the command line says it; raises an error that is none of its reader's doing."""
    if isinstance(error, (UserError, FloatingPointError, OSError, SafetensorError)):
        return one_line(str(error))
    if is_out_of_memory(error):
        return f"{first_line(error)}; choose fewer students or steps, or start scott app with --precision fp16"
    raise error


def sentences(handler: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """A handler whose bad input is a message on the page and no traceback."""

    @wraps(handler)
    def wrapped(*arguments: Any) -> Iterator[Any]:
        try:
            yield from handler(*arguments)
        except Exception as error:
            raise gr.Error(escape(sentence(error)), print_exception=False) from None

    return wrapped
