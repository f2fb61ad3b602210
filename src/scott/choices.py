"""Errors of more than one option: an unknown name, with what there is and the nearest of it; a γ out of range."""

from collections.abc import Iterable
from difflib import get_close_matches

from scott.errors import UserError


def unknown(what: str, got: object, choices: Iterable[object]) -> UserError:
    """The error to raise when `got` is not among `choices`, e.g. `raise unknown("solver", name, SOLVERS)`."""
    listed = list(choices)
    nearest = get_close_matches(str(got), map(str, listed), n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return UserError(f"got {what} {got!r}; expected one of {', '.join(map(repr, listed)) or 'none'}.{hint}")


def check_gamma(gamma: float) -> None:
    """Raise `UserError` for what is no γ of `scott.sampling.sample`."""
    if not 0 <= gamma <= 1:
        raise UserError(f"got gamma {gamma:g}; expected 0 (all noise is kept) to 1 (all is new)")
