"""What `scott sample` makes of its arguments before a network is loaded."""

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from scott.arguments import Sample
from scott.commands import sample
from scott.commands.drawn import Drawn
from scott.commands.sample import _prompts, draw
from scott.errors import UserError
from scott.evaluation.pictures import how_made
from scott.teacher_source import TeacherParts, TeacherSource


def test_each_prompts_file_is_read_in_its_place(tmp_path):
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text("a cat\n\na dog\n")
    second.write_text("a fox")
    assert _prompts([str(first), "an owl", str(second)]) == ["a cat", "a dog", "an owl", "a fox"]
    with pytest.raises(UserError, match=r"nowhere.txt cannot be read"):
        _prompts(["an owl", "nowhere.txt"])
    first.write_text("\n")
    with pytest.raises(UserError, match="got no prompts"):
        _prompts([str(first)])


OTHERWISE = {
    "another strength": {"teacher": TeacherSource(teacher="t", teacher_lora=("style.safetensors:1.0",))},
    "another VAE": {"teacher": TeacherSource(teacher="t", teacher_lora=("style.safetensors:0.5",), vae="other")},
    "another precision": {"precision": "bf16"},
    "another engine": {"engine": "onnx"},
    "another picture to start from": {"asked": Drawn(image=Path("other.png"))},
}


@pytest.mark.parametrize("changes", OTHERWISE.values(), ids=OTHERWISE.keys())
def test_a_picture_that_was_made_otherwise_is_not_replaced(changes, tmp_path, monkeypatch):
    """Of one prompt and seed: what is compared has the same name."""
    monkeypatch.chdir(tmp_path)
    for name, content in (("first.png", b"1"), ("other.png", b"2")):
        Path(name).write_bytes(content)
    student = SimpleNamespace(name="t with a.safetensors", backbone=Mock(), info=None)
    monkeypatch.setattr(sample, "find_student", lambda *_: student)
    sampler = Mock(guidance=1.0, return_value=torch.zeros(1, 3, 8, 8))
    monkeypatch.setattr(sample, "drawing", lambda student, asked: sampler)
    first = {"teacher": TeacherSource(teacher="t", teacher_lora=("style.safetensors:0.5",)), "out": tmp_path / "out"}
    first |= {"asked": Drawn(image=Path("first.png"))}
    (file,) = draw(["a cat"], **first)
    assert draw(["a cat"], **first) == [file], "made alike"
    with pytest.raises(UserError, match="was made otherwise; choose another --out, nothing was changed"):
        draw(["a cat"], **first | changes)
    Path("first.png").write_bytes(b"3")
    with pytest.raises(UserError, match="was made otherwise"):
        draw(["a cat"], **first)


def test_prompts_of_one_name_have_two_files(tmp_path, monkeypatch):
    student = SimpleNamespace(name="s", backbone=Mock(), info=None)
    monkeypatch.setattr(sample, "find_student", lambda *_: student)
    monkeypatch.setattr(sample, "drawing", lambda *_: Mock(guidance=1.0, return_value=torch.zeros(1, 3, 8, 8)))
    prompts = [f"{'a small green apple, ' * 4}at {when}" for when in ("dawn", "night")]
    files = [draw([prompt], asked=Drawn(), out=tmp_path) for prompt in prompts * 2]
    assert files[:2] == files[2:]
    assert [how_made(file)["prompt"] for (file,) in files] == prompts * 2
    assert {len(made[0].name) - len(files[0][0].name) for made in files} == {0, 9}
    info = PngInfo()
    info.add_text("parameters", "[1]")  # by another program
    Image.open(files[0][0]).save(files[0][0], pnginfo=info)
    with pytest.raises(UserError, match="was made otherwise"):
        draw(prompts[:1], asked=Drawn(), out=tmp_path)


def test_a_contact_sheet_is_no_picture_of_a_prompt(tmp_path):
    files = sample._files_to_make(tmp_path, ["grid", "x"], 0, True, {"steps": 2})
    assert [file.name for file in files] == [
        f"{name}-2-steps-seed-{i}.png" for name, i in (("grid", 0), ("x", 1), ("grid_", 0))
    ]


PARTS = {
    "teacher-config": {"teacher_config": "configs"},
    "teacher-lora": {"teacher_lora": ("nope.safetensors",)},
    "vae": {"vae": "nothing-here"},
    "prediction": {"prediction": "v"},
    "variant": {"variant": "fp16"},
}
"""Flag → it given."""


@pytest.mark.parametrize(("flag", "given"), PARTS.items(), ids=PARTS.keys())
def test_parts_of_a_teacher_that_is_not_given_are_refused(flag, given, monkeypatch):
    monkeypatch.setattr(sample, "draw", lambda **given: [given["teacher"]])
    parts = TeacherParts(**given)
    with pytest.raises(UserError, match=f"got --{flag} without --teacher; leave them out, or give it and --lora"):
        Sample("run", ("a",), parts=parts).run()
    Sample("run", ("a",)).run()
    Sample(None, ("a",), teacher="mini", lora="x", parts=parts).run()


def test_all_parts_that_are_given_are_named():
    every = {name: value for given in PARTS.values() for name, value in given.items()}
    flags = "--teacher-config, --teacher-lora, --vae, --prediction, --variant"
    with pytest.raises(UserError, match=f"got {flags} without --teacher"):
        Sample("run", ("a",), parts=TeacherParts(**every)).run()
