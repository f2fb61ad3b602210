"""The layering: a lower room never imports a higher one, and heavy libraries stay where they belong."""

import ast
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

import scott

ROOT = Path(scott.__file__).parent
LEVELS = [
    {"errors", "choices", "device", "files", "rng", "progress", "measured", "teacher_source"},
    {"diffusion"},
    {"solvers", "guidance", "sampling", "teachers", "data", "evaluation"},
    {"objective"},
    {"samplers"},
    {"training", "export", "mini"},
    {"recipes", "students"},
    {"targets", "app"},
    {"commands"},
    {"arguments", "cli"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
MODELS = {"diffusers", "transformers", "peft"}
MODELS_OF_FILES = {Path("evaluation/networks.py"): {"transformers"}, Path("evaluation/stock.py"): {"diffusers"}}
"""What files outside `teachers` and `export` know of these."""
HOMES = {
    "accelerate": {"teachers", "training"},
    "docstring_parser": {"commands"},
    "gradio": {"app"},
    "jinja2": {"evaluation"},
    "matplotlib": {"evaluation"},
    "tyro": {"arguments", "cli", "commands"},
}
"""Library → the rooms that know it."""
FILES = sorted(
    path.relative_to(ROOT) for path in ROOT.rglob("*.py") if path.name != "__init__.py" or path.parent != ROOT
)


def room_of(path):
    return path.parts[0].removesuffix(".py")


def imports(path):
    """Every dotted module name a file imports, at any depth, relative ones made absolute."""
    package = ("scott", *path.parent.parts)
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            yield from (f"{module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_lower_rooms_never_import_higher_ones(path):
    room = room_of(path)
    assert room in LEVEL, f"give {room} its place in LEVELS"
    for name in imports(path):
        if name.startswith("scott.") and (other := name.split(".")[1]) in LEVEL:
            assert LEVEL[other] <= LEVEL[room], f"{path} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_heavy_libraries_stay_in_their_rooms(path):
    libraries = {name.split(".")[0] for name in imports(path)}
    if room_of(path) not in {"teachers", "export"}:
        assert not libraries & (MODELS - MODELS_OF_FILES.get(path, set()))
    for library, rooms in HOMES.items():
        assert library not in libraries or room_of(path) in rooms


def loaded(*statements, where=None):
    """The top-level modules that a new interpreter has loaded after some statements, and what these printed."""
    code = "\n".join(["import sys", *statements, "print(*{name.split('.')[0] for name in sys.modules})"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=where)
    assert done.returncode == 0, done.stderr
    *said, modules = done.stdout.splitlines()
    return set(modules.split()), "\n".join(said)


def test_help_is_shown_without_torch():
    show = ["from scott.cli import main", "sys.argv = ['scott', 'distill', 'sd15', '--help']"]
    heavy = {"torch", "accelerate", "matplotlib", *MODELS}
    modules, said = loaded(*show, "try: main()", "except SystemExit as stop: assert stop.code == 0")
    assert "usage: scott distill sd15" in said
    assert not modules & heavy


def test_commands_that_need_no_network_load_no_models_library(tmp_path):
    """From the command line, to the end of what they do: of no results a refusal, of a table's rows and of a folder's
    pictures a page."""
    (tmp_path / "folder").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "folder" / "a.png")
    (tmp_path / "folder" / "a.txt").write_text("a cat")
    row = {"image": {"bytes": (tmp_path / "folder" / "a.png").read_bytes(), "path": "a.png"}, "text": "a cat"}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "table.parquet")
    pages = {"table.parquet": "table.html", "folder": "folder.html"}
    commands = [["compare", "a.jpg"], *(["prepare", name, "--check", "--out", page] for name, page in pages.items())]
    heavy = {*MODELS, "accelerate"}
    run = ["from scott.cli import main"]
    for words in commands:
        run += [f"sys.argv = ['scott', *{words}]", "code = 0"]
        run += ["try: main()", "except SystemExit as stop: code = stop.code"]
        run += [f"assert code == {2 * (words[0] == 'compare')}", f"assert not {heavy} & sys.modules.keys(), sys.argv"]
    loaded(*run, where=tmp_path)
    assert all((tmp_path / page).exists() for page in pages.values())
