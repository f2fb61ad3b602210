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
from scott.export.trained import STUDENT_INFO

OLDER = os.environ.get("OLDER", "")
"""Folder with the older packages, which `make older` installs; the rest is this environment's."""
KINDS = {
    "sd1": ("diffusers", "lora", "kohya", "onnx"),
    "sd2": ("diffusers", "lora", "kohya"),
    "sdxl": ("diffusers", "lora", "kohya"),
    "pixart": ("diffusers", "lora"),
    "sd3": ("diffusers", "lora"),
}


@pytest.mark.skipif(not OLDER, reason="make older")
def test_an_older_pair_draws_every_export(make_trained, make_backbone, tmp_path):
    exports = []
    for family, kinds in KINDS.items():
        trained = make_trained(family)
        # the tiny teachers are new ones, of which older versions open none
        teacher = tmp_path / family / "teacher"
        save_student(make_backbone(family=family), teacher, trained.grid)
        save_file({"latents": trained.latents().contiguous()}, tmp_path / family / "expected.safetensors")
        for kind in kinds:
            folder = tmp_path / family / kind
            if kind == "onnx":
                write_onnx(tmp_path / family / "diffusers", folder)
            else:
                write(trained, folder, kind)
                (folder / STUDENT_INFO).write_text(trained.info.to_json())
            exports.append(
                {
                    "name": f"{family} {kind}",
                    "kind": kind,
                    "folder": str(folder),
                    "teacher": str(teacher),
                    "guidance_scale": trained.info.guidance_scale,
                    "options": call_options(trained.info.pipeline),
                    "expected": str(tmp_path / family / "expected.safetensors"),
                }
            )
    (tmp_path / "exports.json").write_text(json.dumps(exports))
    script = Path(__file__).with_name("older.py")
    environment = os.environ | {"PYTHONPATH": str(Path(OLDER).resolve()), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, script, tmp_path], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "off.json").read_text())
    assert found["versions"]["diffusers"] == "0.35.2"
    assert found["versions"]["transformers"].startswith("4.57")
    off = found["off"]
    assert len(off) == sum(map(len, KINDS.values()))
    assert max(off.values()) < 1e-3, off
