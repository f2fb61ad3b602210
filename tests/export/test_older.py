"""An older diffusers and transformers draw from every export what the new ones draw: `make older`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file
from tests.export.conftest import write

from scott.export.onnx import write_onnx
from scott.export.pipeline import call_options, save_student
from scott.export.trained import draw_latents
from scott.teachers.layout import family_class

OLDER = os.environ.get("OLDER", "")
"""Folder with the older packages, which `make older` installs; the rest is this environment's."""
FULL = ("sd1", "sd2", "sdxl", "pixart", "sd3", "flux", "qwen-image", "sana")
KINDS = {
    "sd1": ("diffusers", "lora", "kohya", "checkpoint"),
    "sd2": ("diffusers", "lora", "kohya", "checkpoint"),
    "sdxl": ("diffusers", "lora", "kohya", "checkpoint"),
    "pixart": ("diffusers", "lora"),
    "sd3": ("diffusers", "lora"),
    "sd35": ("diffusers", "lora"),
    "sd1 dora": ("diffusers", "lora"),
    "flux": ("diffusers", "lora"),
    "qwen-image": ("diffusers", "lora"),
    "sana": ("diffusers", "lora"),
    **{f"{family} full": ("diffusers",) for family in FULL},
}
"""Student → forms of its export: LoRA, if it does not say otherwise."""
SMALL = [("sd1", "lora"), ("sdxl", "full")]
"""Families and trained parts of the students whose ONNX optimum reads."""
SIDE = 64
"""In pixels, of those that draw many by default."""


@pytest.mark.skipif(not OLDER, reason="make older")
@pytest.mark.timeout(900)
def test_an_older_pair_draws_every_export(make_trained, make_backbone, small_student, tmp_path):
    exports = []

    def add(student, kind, info, latents, teacher=None, picture=None):
        folder = tmp_path / student
        size = dict.fromkeys(("height", "width"), SIDE) if family_class(info.pipeline).own_size else {}
        expected = folder / f"{kind}.safetensors"
        drawn = {"latents": latents} | ({} if picture is None else {"picture": picture})
        save_file({name: value.contiguous() for name, value in drawn.items()}, expected)
        exports.append(
            {
                "name": f"{student} {kind}",
                "kind": kind,
                "folder": str(folder / kind),
                "teacher": str(teacher),
                "options": {"guidance_scale": info.guidance_scale} | call_options(info.pipeline) | size,
                "expected": str(expected),
            }
        )

    for student, kinds in KINDS.items():
        family, _, how = student.partition(" ")
        backbone = make_backbone(family=family)
        if backbone.own_size:
            backbone.resize(SIDE)
        how_made = {"full": {"train": "full"}, "dora": {"variant": "dora"}}.get(how, {})
        trained = make_trained(family, backbone=backbone, **how_made)
        # the tiny teachers are new ones, of which older versions open none
        teacher = tmp_path / student / "teacher"
        save_student(make_backbone(family=family), teacher, trained.grid)
        info, latents = trained.info, backbone.pack(trained.latents())
        picture = backbone.decode(trained.latents())
        for kind in kinds:
            write(trained, tmp_path / student / kind, kind)
            add(student, kind, info, latents, teacher, picture)
    for family, train in SMALL:
        stock, backbone, grid, info = small_student(family, train)
        write_onnx(stock, tmp_path / f"small {family}" / "onnx")
        add(f"small {family}", "onnx", info, draw_latents(backbone, grid, info.guidance))
    (tmp_path / "exports.json").write_text(json.dumps(exports))
    script = Path(__file__).with_name("older.py")
    environment = os.environ | {"PYTHONPATH": str(Path(OLDER).resolve()), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, script, tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "off.json").read_text())
    assert found["versions"]["diffusers"] == "0.35.2"
    assert found["versions"]["transformers"].startswith("4.57")
    assert {name.rpartition(" ")[0] for name in found["off"]} == {export["name"] for export in exports}
    assert sum(name.endswith(" picture") for name in found["off"]) == sum(map(len, KINDS.values()))
    assert max(found["off"].values()) < 1e-3, found["off"]
