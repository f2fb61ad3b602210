"""What `scott sample` makes of its arguments before a network is loaded."""

import pytest

from scott.arguments import Sample
from scott.commands import sample
from scott.commands.sample import _prompts
from scott.errors import UserError
from scott.teacher_source import TeacherParts


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
