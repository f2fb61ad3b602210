"""The one exception a user may cause: a message that says what was got, what was expected and the way out."""


class UserError(ValueError):
    """Bad input from outside (a flag, a file, a folder, a prompt).

    The command line prints the message as one line and exits with code 2; the library lets it propagate. It is a
    `ValueError`, so callers who do not know scott can still catch it by the usual name.
    """
