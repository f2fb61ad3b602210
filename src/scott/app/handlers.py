"""How the page's handlers say what is wrong."""

from collections.abc import Callable, Iterator
from functools import wraps
from html import escape
from typing import Any

import gradio as gr

from scott.errors import UserError

EXPECTED = (UserError, FloatingPointError, OSError)
"""What the command line prints as one line too."""
AT_ONCE: dict[str, Any] = {"concurrency_limit": None, "js": "(_, ...values) => [Date.now(), ...values]"}
"""Of an event that draws: it starts at once, with the time as its first input; `Drawer` has older ones give up."""


def sentences(handler: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """A handler whose bad input is a message on the page and no traceback."""

    @wraps(handler)
    def wrapped(*arguments: Any) -> Iterator[Any]:
        try:
            yield from handler(*arguments)
        except EXPECTED as error:
            raise gr.Error(escape(str(error)), print_exception=False) from None

    return wrapped
