"""Every command and every Python block of the README and the site is run, where what it names is tiny.

A command is given `workshop.FEWER` besides, and what `CHANGED` says of it. Parsed but not run are `NOT_HERE`; nor are
`make`, `pip` and `pytest` run (CI is them). Launches of several processes run as one; recipes of other
families get a dry run.
"""

import importlib.util
import shutil
import subprocess
from urllib.request import urlopen

import gradio
import pytest
from tests.pages import ROOT, SITE, commands, name_of, python_blocks
from tests.workshop import DEMO, MINE, fresh, furnish, scott, small

from scott.commands import prepare, validation
from scott.recipes.configs import RECIPES

NOT_HERE = {
    "scott demo": "takes minutes; tests/commands/test_demo.py",
    "--preset laion-aesthetics-6plus": "reads the hub",
    "prepare me/my-pictures": "reads the hub",
    "flux1-merge": "a file of FLUX's real size; tests/teachers/test_teacher_source.py",
    "--push": "uploads to the hub; tests/commands/test_push.py",
    "--to onnx": "takes a minute; tests/export/test_onnx.py",
}
SHORTER = {"a small green apple on a blue background": "a cat", "a small green apple": "a cat"}
"""Prompts that have more tokens than the tiny text encoders read."""
CHANGED = {
    "...": "--data ./pictures --out runs/with-dots",
    "--teacher my-merge": "--teacher-config my-fine-tune",  # the published configs are of the real size
    "--teacher my-sdxl.safetensors": "--teacher-config my-sdxl",
    "--protocol coco": "--metrics fid --features openai/clip-vit-large-patch14 --precision fp32",
    "--protocol mjhq": "--metrics fid coverage --features openai/clip-vit-large-patch14 --precision fp32",
    "--features efficientnet": "--diversity 2",
    "--teacher-steps": "--teacher-steps 2",
    "--height 768": "--height 96 --width 64",
}
"""What a command has in it → what it is given besides, or instead."""
IN_PYTHON = {
    "max_steps=300": "max_steps=1, batch_size=2",
    'student.safetensors")': 'student.safetensors", config="my-fine-tune")',
}
"""The same of a block of Python: what stands there → what does instead."""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory, teacher_folders, style_lora):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("workshop"))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("sys.argv", [])
        patch.setattr(prepare, "MINI_SCENES", 16)
        for name, fewer in {"PROMPTS": 1, "FEW_STEPS": (2,), "TEACHER_STEPS": 1}.items():
            patch.setattr(validation, name, fewer)
        patch.setattr(gradio.Blocks, "block_thread", _seen)
        furnish(teacher_folders, style_lora)
        yield {f"scott {line}" for line in (DEMO, MINE)}


def _seen(page):
    """A reader who opens the page of `scott app` and stops it."""
    assert b"SCott" in urlopen(page.local_url).read()
    page.close()


def _without(words, options):
    """The words of a command line but for some options and their values."""
    kept, leaves = [], False
    for word in words:
        leaves = word in options if word.startswith("--") else leaves
        if not leaves:
            kept.append(word)
    return kept


@pytest.mark.parametrize("page", SITE, ids=name_of)
def test_the_commands_of_a_page_run(page, workshop, capfd):
    """Once, where several pages have it."""
    fresh()
    done = workshop
    for words in commands(page):
        line = " ".join(words)
        if line in done or any(part in line for part in NOT_HERE):
            continue
        done.add(line)
        match words:
            case ["scott", *given]:
                pass
            case ["accelerate", *_]:
                given = words[words.index("scott.cli") + 1 :]
            case ["make", *targets]:
                subprocess.run(["make", "--dry-run", *targets], cwd=ROOT, check=True, capture_output=True)
                continue
            case _:
                continue
        if given[:1] == ["distill"] and given[1] in RECIPES.keys() - {"mini", "sd15"}:
            given = [*given, "--dry-run"]  # one family trains here; tests/teachers and tests/export train the others
        if given[0] == "distill" and "--dry-run" not in given:
            shutil.rmtree(given[given.index("--out") + 1] if "--out" in given else "runs/with-dots", ignore_errors=True)
        added = [word for part, more in CHANGED.items() if part in line for word in more.split()]
        given = [SHORTER.get(word, word) for word in _without(given, added) if word != "..."]
        code = scott(*small(given), *added)
        assert code == 0, f"{line}: {capfd.readouterr()}"


@pytest.mark.parametrize("page", [page for page in SITE if python_blocks(page)], ids=name_of)
def test_the_python_of_a_page_runs(page, workshop):
    fresh()
    names = {}
    for block in python_blocks(page):
        if "optimum" in block and importlib.util.find_spec("optimum") is None:
            continue  # which `make older` has, and draws with
        for there, instead in IN_PYTHON.items():
            block = block.replace(there, instead)
        exec(compile(block, name_of(page), "exec"), names)
