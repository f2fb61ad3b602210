"""The exceptions that are messages to the user."""


class UserError(ValueError):
    """Bad input from outside (a flag, a file, a folder, a prompt).

    The command line prints the message as one line and exits with code 2; the library lets it propagate. It is a
    `ValueError`, so callers who do not know scott can still catch it by the usual name.
    """


class Preempted(Exception):
    """SIGTERM came; the message says what was saved. The command line prints it and exits with code 143."""
