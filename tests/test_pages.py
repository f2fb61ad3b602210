"""Every command on a page is one that there is: what `scott` is given parses; modules, targets, extras, files exist."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from scott.arguments import parse

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "experiments").rglob("README.md"),
    ]
)
PAGES += [ROOT / "benchmarks" / "README.md", ROOT / "src" / "scott" / "mini" / "assets" / "README.md"]
TARGETS = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
PROJECT = (ROOT / "pyproject.toml").read_text()


def commands(page):
    """The commands of a page's shell blocks, without comments and what they set in the environment."""
    for language, block in re.findall(r"^ *```(\w*)\n(.*?)^ *```$", page.read_text(), re.MULTILINE | re.DOTALL):
        lines = block.replace("\\\n", " ").replace("&&", "\n").splitlines() if language in ("", "bash") else []
        for line in lines:
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words:
                yield words


def check_one(words):
    match words:
        case ["scott", *given]:
            parse([word for word in given if word != "..."])
        case ["accelerate" | "torchrun", *_] if "scott.cli" in words:
            parse(words[words.index("scott.cli") + 1 :])
        case ["python", "-m", module, *_] | [_, "python", "-m", module, *_]:
            assert importlib.util.find_spec(module), module
        case ["make", *targets]:
            assert {*targets} <= {*TARGETS}, words
        case ["pip" | "pipx", *rest]:
            for extra in re.findall(r"\[([\w,]+)\]", " ".join(rest)):
                assert all(re.search(rf"^{name} = \[", PROJECT, re.MULTILINE) for name in extra.split(","))
        case ["git", "clone" | "worktree", *_] | ["cd", _]:
            pass
        case ["pytest", *rest]:
            assert all((ROOT / path.split("::")[0]).exists() for path in rest if path.startswith("tests"))
        case _:
            raise AssertionError(f"not a command that is known here: {words}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_is_one_that_there_is(page, capsys):
    for words in commands(page):
        try:
            check_one(words)
        except SystemExit:
            pytest.fail(f"{' '.join(words)}: {capsys.readouterr().out[-600:]}")
