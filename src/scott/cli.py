"""Entry point of the command line: parses it, runs the command, and says what went wrong.

Bad input is one line and exit code 2.
"""

import logging
import os
import re
import signal
import sys
from contextlib import redirect_stderr
from io import StringIO, TextIOWrapper
from typing import Annotated, Any, NoReturn, Union

import tyro
from rich.console import Console
from rich.markup import escape
from safetensors import SafetensorError
from tyro import conf

from scott import __version__
from scott.arguments import COMMANDS, Distill, Prepare
from scott.commands.measuring import Compare
from scott.commands.options import described, lists_of
from scott.errors import Preempted, UserError, first_line, is_out_of_memory, one_line, with_way_out
from scott.training.config import DistillConfig

DESCRIPTION = """Distil a text-to-image diffusion model into a student that draws in few steps.
`scott --version` prints the version."""


def parse(arguments: list[str]) -> Any:
    """The command that the arguments name, as one of `COMMANDS`. Raises `UserError` for what is wrong with them."""
    kind: Any = COMMANDS.get(name := arguments[0] if arguments else "")
    prog, lists = "scott", set[str]()
    if kind is None:  # for what there is
        kind = Union[tuple(Annotated[one, conf.subcommand(called)] for called, one in COMMANDS.items())]  # noqa: UP007
    else:  # alone, or what tyro says of a mistake would be of every command's options
        if kind is not Distill:
            described(kind)
        prog, lists = f"scott {name}", lists_of(DistillConfig if kind is Distill else kind)
        arguments = arguments[1:]
    manners = (
        conf.OmitArgPrefixes,
        conf.OmitSubcommandPrefixes,
        conf.DisallowNone,
        conf.PositionalMetavarFromFieldName,
    )
    said = StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(
                kind,
                prog=prog,
                args=_joined(arguments, lists),
                config=manners,
                description=DESCRIPTION if prog == "scott" else None,
            )
    except SystemExit as stop:
        if stop.code == 2:
            raise UserError(_sentence(said.getvalue())) from None
        raise


def _joined(arguments: list[str], lists: set[str]) -> list[str]:
    """`--data A --data B` as `--data A B`, for options of `lists`: of one given twice, the parser has the last."""
    there: dict[str, list[str]] = {}
    groups = [now := list[str]()]
    for argument in arguments:
        name, equals, value = argument.partition("=")
        option = name.removeprefix("--").replace("-", "_") if name.startswith("--") else ""
        if option in there:
            now = there[option]
        elif option:
            groups.append(now := [name if option in lists else argument])
            if option in lists:
                there[option] = now
        else:
            now.append(argument)
        if option in lists and equals:
            now.append(value)
    return [argument for group in groups for argument in group]


_NUMBERS = {"INT": "whole number", "FLOAT": "number"}
"""How tyro's help calls a kind of number → how a message does."""


def _sentence(box: str) -> str:
    """What tyro's box says of a command line, without options' help: names of those that may have been meant, or that
    are missing."""
    parts = re.split(r"^│ ─{4,} │$", box, flags=re.MULTILINE)
    rows = [[line for line in part.splitlines() if line.startswith("│")] for part in parts]
    sections, said = [" ".join(filter(None, (line.strip("│ ") for line in part))) for part in rows], []
    for section, following, lines in zip(sections, [*sections[1:], ""], rows, strict=True):
        if section.startswith(("Perhaps", "Arguments similar")):
            named = (re.match(r"│ {5}(--[a-z][\w-]*)", line) for line in lines)  # deeper in are options' helps
            said.append("perhaps " + ", ".join([*dict.fromkeys(match[1] for match in named if match)][:3]))
        elif section.startswith("Missing from"):
            command, _, lacking = section.partition(":")
            names = (option.split()[0] for option in lacking.split("(required)") if option.strip().startswith("--"))
            said.append(f"{command}: {', '.join(names)}")
        elif section.startswith("For full helptext, run"):
            said.append("see" + section.removeprefix("For full helptext, run").removeprefix(":"))
        elif not section.startswith(("Argument helptext", "For full helptext, see")):  # which is no command's own page
            section = re.sub(r"^Error parsing (?!--)\S+: ", "", section)  # names of our own classes' fields
            section = re.split(" (?:Got errors:|Arguments are applied)", section)[0].strip().rstrip(".")
            said.append(_no_number(section, following) or section)
    return "; ".join(said)


def _no_number(section: str, helptext: str) -> str | None:
    """What a section says of a value that is no number, without Python's names of types; None of anything else."""
    kind = re.match(r"Argument helptext: \S+ \[?(INT|FLOAT)( \[?(?:INT|FLOAT))?", helptext)
    value = re.match(r"Error parsing (\S+): [^'\"]*((['\"]).*\3)", section)
    if kind is None or value is None:
        return None
    expected = f"{_NUMBERS[kind[1]]}s" if kind[2] else f"a {_NUMBERS[kind[1]]}"
    return f"got {value[2]} for {value[1]}; expected {expected}"


def main() -> None:
    """Entry point of `scott`."""
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")  # read when they are imported, after parsing
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # what a Mac's GPU lacks, its CPU computes
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # an argument may be of bytes that are no text
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # which peft imports, and which warns on every CPU
    if sys.argv[1:] == ["--version"]:
        print(__version__)  # noqa: T201
        return
    try:
        command = parse(sys.argv[1:])
        if not (isinstance(command, Compare) or (isinstance(command, Prepare) and command.check)):
            from scott.teachers.load import hide_loading_bars  # all others load networks, which takes seconds

            hide_loading_bars()
        command.run()
    except (UserError, FloatingPointError, OSError, SafetensorError) as error:  # the last where a disk is full
        _stop(f"[bold red]error[/] {escape(one_line(with_way_out(error)))}", 2)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _stop(f"[bold red]error[/] {escape(first_line(error))}; {_what_holds_less(sys.argv[1:2])}", 2)
    except Preempted as stop:
        _stop(f"{stop}; the same command goes on from there", 128 + signal.SIGTERM)
    except KeyboardInterrupt:
        _stop("stopped; a run goes on from its last checkpoint by the same command", 130)


def _what_holds_less(command: list[str]) -> str:
    """What a command that ran out of memory may be given."""
    match command:
        case ["distill"]:
            return "--dry-run says what a run holds: lower --batch-size"
        case ["sample"]:
            return "try --precision bf16, or smaller pictures"
        case ["evaluate"]:
            return "lower --batch-size, or try --precision bf16"
        case ["prepare"]:
            return "lower --batch-size, or try --precision bf16 or --low-memory"
        case _:
            return "close what else holds memory"


def _stop(message: str, code: int) -> NoReturn:
    Console(stderr=True).print(message, highlight=False, soft_wrap=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
