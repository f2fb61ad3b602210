"""The exceptions that are messages to the user, and what a library's exception says in a line."""

import errno
import re
from importlib import import_module
from typing import Any


class UserError(ValueError):
    """Bad input from outside (a flag, a file, a folder, a prompt).

    The command line prints the message as one line and exits with code 2; the library lets it propagate. It is a
    `ValueError`, so callers who do not know scott can still catch it by the usual name.
    """


class NotFinite(UserError):
    """What a model draws has values that are no finite numbers."""


LONGEST = 2000
"""Characters of a message; one that repeats what was given may be of any length."""


def first_line(error: Exception) -> str:
    """What an error says, without what follows it."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


OPEN_MORE = "allow more open files: ulimit -n 65536"
_WAYS_OUT = {
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "a file is in the way: name another place, or move it"),
    errno.EISDIR: "name a file, or another place for one",
    errno.ENOENT: "name one that is there, in a folder that is",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "name another place, or change who may use it"),
    errno.EMFILE: OPEN_MORE,
}


def with_way_out(error: Exception) -> str:
    """What an error says; one of the system's with a file, after its name and before what helps: of a rename, its
    target."""
    if isinstance(error, OSError) and error.filename is not None and error.errno in _WAYS_OUT:
        return f"{error.filename2 or error.filename}: {error.strerror}; {_WAYS_OUT[error.errno]}"
    return str(error)


def is_out_of_memory(error: Exception) -> bool:
    """torch's errors of a device are a kind of RuntimeError, and the CPU's plain ones."""
    kinds = (MemoryError, RuntimeError)
    return isinstance(error, kinds) and bool(re.search("out of memory|allocate", str(error)))


def printable(text: str) -> str:
    """A text as UTF-8 can hold it: a file's name may be of bytes that are none."""
    return text.encode("utf-8", "backslashreplace").decode()


def one_line(text: str) -> str:
    """A text with what ends a line, or steers a terminal, written as it is escaped: a name may hold any of it. Of a
    very long one, its beginning and its end."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def require(module: str, what: str, packages: str = "") -> Any:
    """A module that may not be installed. Raises `UserError` where it cannot be imported; `packages` are what then to
    install."""
    try:
        return import_module(module)
    except (ImportError, RuntimeError) as error:  # torchvision raises the latter where torch is of another build
        raise UserError(f"{what} needs {module} ({first_line(error)}); pip install {packages or module}") from None


class Preempted(Exception):
    """SIGTERM came; the message says what was saved. The command line prints it and exits with code 143."""
