"""What the pages tell their reader to type: commands of shell blocks, inline `scott …`, blocks of Python."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
SITE = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OTHERS = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "experiments").rglob("README.md"))]
OTHERS += [ROOT / "benchmarks" / "README.md", ROOT / "src" / "scott" / "mini" / "assets" / "README.md"]
PAGES = SITE + OTHERS
STANDS_FOR = {"RECIPE": "sd15", "FORM": "diffusers", "diffusers|lora|kohya|checkpoint|onnx": "lora"}
"""A word in capitals of an inline command that is a choice → one of its choices."""


def name_of(page):
    return str(page.relative_to(ROOT))


def _blocks(page, *languages):
    for language, block in re.findall(r"^ *```(\w*)\n(.*?)^ *```$", page.read_text(), re.MULTILINE | re.DOTALL):
        if language in languages:
            yield block


def commands(page):
    """The words of each command of a page's shell blocks, without comments and what they set in the environment."""
    for block in _blocks(page, "", "bash"):
        for line in block.replace("\\\n", " ").replace("&&", "\n").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words:
                yield words


def python_blocks(page):
    return list(_blocks(page, "python"))


def inline_commands(page):
    """The words of each `scott …` of a page's text."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for line in re.findall(r"`scott ([^`]+)`", text):
        words = [STANDS_FOR.get(word, word) for word in shlex.split(line.replace("…", " "))]
        yield [word for word in words if word != "..."]
