"""Every command on a page is one that there is: what `scott` is given parses; modules, targets, extras, files exist.

`tests/test_pages_run.py` runs those of the README and the site.
"""

import importlib.util
import re
import runpy
import sys
import tomllib
import warnings
from itertools import takewhile

import pytest
import tyro
from tests.pages import PAGES, ROOT, commands, inline_commands, name_of

from scott.cli import parse
from scott.errors import UserError

TARGETS = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NEEDED = {
    "distill": ["--data", "x"],
    "sample": ["--prompts", "x"],
    "export": ["RUN", "--to", "lora"],
    "evaluate": ["RUN"],
}
"""Command → what it does not parse without, where a text names the command alone or with one flag of it."""


class Read(BaseException):
    """A module's command line was read; what it asks for is not done."""


def read_by_tyro(module, arguments):
    """Whether `python -m module` reads these arguments."""

    def reading(own):
        def read(*args, **options):
            own(*args, **options)
            raise Read

        return read

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of modules that are imported already
        for place, name in ((tyro, "cli"), (tyro.extras, "subcommand_cli_from_dict")):
            patch.setattr(place, name, reading(getattr(place, name)))
        patch.setattr(sys, "argv", [module, *arguments])
        try:
            runpy.run_module(module, run_name="__main__")
        except Read:
            return True
        except SystemExit:
            return False
    return False


def check_one(words):
    match words:
        case ["scott", *given]:
            parse([word for word in given if word != "..."])
        case ["accelerate" | "torchrun", *_] if "scott.cli" in words:
            parse(words[words.index("scott.cli") + 1 :])
        case ["python", "-m", module, *_] | [_, "python", "-m", module, *_]:
            assert importlib.util.find_spec(module), module
            if module.startswith("experiments"):
                given = [*takewhile(lambda word: word != ">>", words[words.index(module) + 1 :])]
                assert read_by_tyro(module, given), words
        case ["make", *targets]:
            assert {*targets} <= {*TARGETS}, words
        case ["pip" | "pipx", *rest]:
            for extra in re.findall(r"\[([\w,]+)\]", " ".join(rest)):
                assert {*extra.split(",")} <= PROJECT["project"]["optional-dependencies"].keys()
        case ["git", "clone" | "worktree", *_] | ["cd", _] | ["curl" | "unzip" | "hf", *_]:
            pass
        case ["pytest", *rest]:
            assert all((ROOT / path.split("::")[0]).exists() for path in rest if path.startswith("tests"))
        case _:
            raise AssertionError(f"not a command that is known here: {words}")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_of_a_page_is_one_that_there_is(page):
    for words in commands(page):
        try:
            check_one(words)
        except UserError as error:
            pytest.fail(f"{' '.join(words)}: {error}")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_in_a_sentence_is_one_that_there_is(page):
    """Of one that lacks what it needs, the flags are."""
    for command, *given in inline_commands(page):
        if given[-1:] == ["--help"]:
            continue
        needed = [word for word in NEEDED.get(command, []) if word not in given]
        for words in ([command, *given], [command, *given, *needed]):
            try:
                parse(words)
                break
            except UserError as error:
                said = error
        else:
            pytest.fail(f"scott {command} {' '.join(given)}: {said}")


def test_on_pypi_the_readme_leads_nowhere_that_is_not_there():
    text = (ROOT / "README.md").read_text()
    hook = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    assert "](docs/" in text
    for substitution in hook["substitutions"]:
        text = re.sub(substitution["pattern"], substitution["replacement"].replace("\\1", r"\1"), text)
    assert re.findall(r"\]\((?!https?://)[^)]*\)", text) == []
    assert "https://arxiv.org/abs/2403.01505" in text
