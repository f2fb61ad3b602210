"""An export is done when what was read back draws the same, and not before."""

import json

import pytest
import torch

from scott.errors import UserError
from scott.export.pipeline import export_student
from scott.recipes import mini


@pytest.mark.parametrize("train", ["full", "lora"])
def test_a_student_is_written_with_its_guidance(make_backbone, tmp_path, train):
    backbone = make_backbone(train)
    config = mini(out=tmp_path, train=train, guidance_min=2.0, guidance_max=2.0)
    folder = export_student(backbone, config.make_grid(backbone.schedule), config)
    assert json.loads((folder / "scott.json").read_text()) == {"train": train, "guidance_min": 2.0, "guidance_max": 2.0}
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_a_student_that_reads_back_differently_is_refused_and_the_old_one_stays(make_backbone, tmp_path, monkeypatch):
    backbone = make_backbone("full")
    config = mini(out=tmp_path, guidance_min=2.0, guidance_max=2.0)
    grid = config.make_grid(backbone.schedule)
    old = (export_student(backbone, grid, config) / "model_index.json").stat().st_mtime_ns
    save = backbone.save_student

    def save_then_move(folder, grid):
        save(folder, grid)
        with torch.no_grad():
            next(iter(backbone.target_parameters().values())).add_(0.1)

    monkeypatch.setattr(backbone, "save_student", save_then_move)
    with pytest.raises(UserError, match="of a spread off"):
        export_student(backbone, grid, config)
    assert (tmp_path / "student" / "model_index.json").stat().st_mtime_ns == old
