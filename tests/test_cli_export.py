"""`scott export` and the whole of `scott sample`, as a user meets them, on a LoRA run of the embedded teacher."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from scott.cli import main
from scott.commands.sample import _prompts, _slug
from scott.mini.embedded import TEACHER
from scott.mini.scenes import Scenes
from scott.recipes.configs import mini
from scott.teachers.sd import UNetBackbone

PROMPT = "a small red apple"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    pictures = tmp_path_factory.mktemp("pictures")
    for index, (image, caption) in enumerate(Scenes(2)[i] for i in range(2)):
        image.save(pictures / f"{index}.png")
        (pictures / f"{index}.txt").write_text(caption)
    out = tmp_path_factory.mktemp("runs") / "run"
    small = ["--max-steps", "1", "--batch-size", "1", "--lora-rank", "4", "--lora-alpha", "8", "--critic", "none"]
    small += ["--learning-rate", "0.01", "--warmup-steps", "0", "--ema-decay", "0"]  # one step that shows
    command = ["scott", "distill", "mini", "--train", "lora", "--data", str(pictures), "--out", str(out), *small]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", command)
        main()
    return out


def pixels(file):
    return np.asarray(Image.open(file)).astype(int)


def test_a_lora_run_ends_with_its_exports_and_cards(run_folder):
    for name in ("student/model_index.json", "lora/pytorch_lora_weights.safetensors", "card.md"):
        assert (run_folder / name).is_file()
    for name in ("student", "lora"):
        assert f'"{name}"' in (run_folder / name / "card.md").read_text()
        assert str(run_folder.parent) not in (run_folder / name / "README.md").read_text()


def test_an_export_says_where_it_is_and_draws_what_the_run_draws(run_folder, tmp_path, scott):
    code, said = scott("export", run_folder, "--to", "kohya")
    assert code == 0
    assert str(run_folder / "kohya" / "card.md") in said.replace("\n", "")
    ways = {
        "run": [run_folder],
        "student": [run_folder / "student"],
        "lora": ["--teacher", "mini", "--lora", run_folder / "lora" / "pytorch_lora_weights.safetensors"],
        "kohya": ["--teacher", "mini", "--lora", run_folder / "kohya"],
    }
    for name, arguments in ways.items():
        assert scott("sample", *arguments, "--prompts", PROMPT, "--seed", 5, "--out", tmp_path / name)[0] == 0
        (file,) = (tmp_path / name).iterdir()
        assert np.abs(pixels(file) - pixels(next((tmp_path / "run").iterdir()))).max() <= 1
        assert json.loads(Image.open(file).info["parameters"])["seed"] == 5


def test_a_lora_on_another_base_draws_with_a_warning(run_folder, tmp_path, scott):
    other = tmp_path / "other"
    shutil.copytree(TEACHER, other)
    (file,) = (other / "unet").glob("*.safetensors")
    weights = load_file(file)
    weights["conv_in.weight"] = -weights["conv_in.weight"]
    save_file(weights, file, {"format": "pt"})
    for teacher, lora, warned in ((TEACHER, run_folder / "lora", False), (other, run_folder, True)):
        arguments = ("--teacher", teacher, "--lora", lora, "--prompts", PROMPT, "--steps", 1)
        code, said = scott("sample", *arguments, "--out", tmp_path / teacher.name)
        assert code == 0
        assert ("a LoRA draws best on its own base" in " ".join(said.split())) == warned


def test_prompts_are_checked_one_at_a_time(run_folder, tmp_path, scott, monkeypatch):
    """A batch of all of a long file's would fill the memory."""
    encoded, encode = [], UNetBackbone.encode_prompts

    def counted(backbone, texts, **options):
        encoded.append(len(texts))
        return encode(backbone, texts, **options)

    monkeypatch.setattr(UNetBackbone, "encode_prompts", counted)
    (tmp_path / "prompts.txt").write_text("a cat\na dog\na fox\n")
    given = ("--prompts", tmp_path / "prompts.txt", "--steps", 1, "--out", tmp_path / "out")
    assert scott("sample", run_folder, *given)[0] == 0
    assert max(encoded) == 1


def test_a_contact_sheet_holds_every_picture(run_folder, tmp_path, scott):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"{n} apples\n" for n in "abcdefgh"))
    out = tmp_path / "out"
    assert scott("sample", run_folder, "--prompts", prompts, "--steps", 1, "--grid", "--out", out)[0] == 0
    sheet = out / "grid-1-steps-seed-0.png"
    assert len(list(out.iterdir())) == 9
    made = json.loads(Image.open(sheet).info["parameters"])
    assert (len(made["prompts"]), made["steps"], made["seed"]) == (8, 1, 0)
    page = pixels(sheet)
    for index, name in enumerate("abcdefgh"):
        picture = pixels(out / f"{name}-apples-1-steps-seed-{index}.png")
        assert any(
            np.array_equal(page[y : y + 64, x : x + 64], picture)
            for y, x in np.argwhere((page == picture[0, 0]).all(-1))
            if y + 64 <= page.shape[0] and x + 64 <= page.shape[1]
        ), name


def test_a_line_of_a_prompts_file_ends_at_a_newline_alone(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa cat\u2028on a mat\r\n\n un\x85deux\x0btrois \n".encode())
    assert _prompts([str(file)]) == ["a cat\u2028on a mat", "un\x85deux\x0btrois"]


def test_guidance_and_names_of_a_student_come_from_what_it_was_trained_for(run_folder, tmp_path, scott):
    scott("sample", run_folder, "--prompts", PROMPT, "--out", tmp_path)
    (file,) = tmp_path.iterdir()
    parameters = json.loads(Image.open(file).info["parameters"])
    assert parameters["guidance_scale"] == mini(train="lora").guidance_min
    assert parameters["student"] == str(run_folder)


def test_prompts_in_any_alphabet_have_files_of_their_own(run_folder, tmp_path, scott):
    prompts = ("красное яблоко", "りんご", "苹果", "🍎", "🍏")
    for prompt in prompts:
        assert scott("sample", run_folder, "--prompts", prompt, "--steps", 1, "--out", tmp_path)[0] == 0
    names = {file.name.removesuffix("-1-steps-seed-0.png") for file in tmp_path.iterdir()}
    assert len(names) == len(prompts)
    assert names >= {"красное-яблоко", "りんご", "苹果"}
    assert len(_slug("𠮷" * 100).encode()) == 180, "a name has 255 bytes at most"


def test_a_picture_of_another_student_is_not_overwritten(run_folder, tmp_path, scott):
    out = tmp_path / "out"
    asked = ("--prompts", PROMPT, "a fox", "--grid", "--out", out)
    assert scott("sample", run_folder, *asked)[0] == 0
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in out.iterdir()}
    assert len(before) == 3
    code, said = scott("sample", run_folder / "student", *asked)
    assert code == 2
    assert "made otherwise" in said
    assert before == {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in out.iterdir()}
    assert scott("sample", run_folder, *asked)[0] == 0
    assert all(before[file][0] == file.read_bytes() for file in out.iterdir())


BAD = {
    "no student": (["--prompts", "a"], "both --teacher and --lora"),
    "a teacher alone": (["--teacher", "mini", "--prompts", "a"], "both --teacher and --lora"),
    "a student and a LoRA": (["RUN", "--lora", "RUN/lora", "--prompts", "a"], "both --teacher and --lora"),
    "a LoRA as a student": (["RUN/lora", "--prompts", "a"], "give it as --lora"),
    "a LoRA file as a student": (["RUN/lora/x.safetensors", "--prompts", "a"], "give it as --lora"),
    "a LoRA that is none": (["--teacher", "mini", "--lora", "RUN/student", "--prompts", "a"], "no LoRA file"),
    "a LoRA of a run that wrote none": (
        ["--teacher", "mini", "--lora", "BARE", "--prompts", "a"],
        "is a run without a LoRA file; draw with `scott sample",
    ),
    "a LoRA of another teacher": (
        ["--teacher", "OTHER", "--lora", "RUN/lora", "--prompts", "a"],
        "another kind of teacher",
    ),
    "ONNX that was not exported": (["RUN", "--engine", "onnx", "--prompts", "a"], "--to onnx"),
    "ONNX with a LoRA": (
        ["--teacher", "mini", "--lora", "RUN/lora", "--engine", "onnx", "--prompts", "a"],
        "--engine onnx",
    ),
    "an unknown engine": (["RUN", "--engine", "tensorrt", "--prompts", "a"], "onnx"),
    "no steps": (["RUN", "--steps", "0", "--prompts", "a"], "1 to 8"),
    "too many steps": (["RUN", "--steps", "9", "--prompts", "a"], "1 to 8"),
    "no prompts": (["RUN"], "prompts"),
    "a prompts file that is not there": (["RUN", "--prompts", "nowhere.txt"], "nowhere.txt cannot be read"),
    "a prompts file that is no text": (["RUN", "--prompts", "RUN/binary.txt"], "expected a UTF-8 text file"),
}


@pytest.mark.parametrize(("arguments", "said"), BAD.values(), ids=BAD.keys())
def test_bad_samples_are_one_message(
    arguments, said, run_folder, teacher_folders, tmp_path, tmp_path_factory, monkeypatch, scott
):
    monkeypatch.chdir(tmp_path)
    (run_folder / "binary.txt").write_bytes(b"\xff\xfe\x00")
    bare = tmp_path_factory.mktemp("bare")
    shutil.copy(run_folder / "config.json", bare)
    names = {"RUN": str(run_folder), "BARE": str(bare), "OTHER": str(teacher_folders["sd3"])}
    first, slash, rest = zip(*(argument.partition("/") for argument in arguments), strict=True)
    code, printed = scott("sample", *(names.get(a, a) + b + c for a, b, c in zip(first, slash, rest, strict=True)))
    assert code == 2
    assert said in " ".join(printed.replace("│", " ").split()), printed
    assert "Traceback" not in printed
    assert "draws best on its own base" not in printed, "of what does not fit at all"
    assert not list(tmp_path.iterdir()), "nothing may be written"


def test_bad_exports_are_one_message(run_folder, tmp_path, scott):
    for arguments, said in (
        ([tmp_path, "--to", "diffusers"], "expected the run folder"),
        ([run_folder, "--to", "gguf"], "kohya"),
        ([run_folder], "--to"),
    ):
        code, printed = scott("export", *arguments)
        assert code == 2
        assert said in " ".join(printed.replace("│", " ").split()), printed
    broken = tmp_path / "run"
    shutil.copytree(run_folder, broken)
    (broken / "student" / "scott.json").write_text("{}")
    code, printed = scott("sample", broken, "--prompts", "a", "--out", tmp_path / "out")
    assert code == 2
    assert "export it again" in printed.replace("\n", " ")
    assert scott("export", broken, "--to", "diffusers")[0] == 0
    assert scott("sample", broken, "--prompts", "a", "--out", tmp_path / "out")[0] == 0


def test_the_embedded_students_cards_run_as_they_stand(run_folder, tmp_path, monkeypatch):
    """Beside the exports; the teacher's text encoder is stored in half precision."""
    shutil.copytree(run_folder, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    for name in ("student", "lora"):
        (code,) = re.findall(r"```python\n(.*?)```", (run_folder / name / "card.md").read_text(), re.DOTALL)
        exec(code, {})
        assert Image.open("picture.png").size == (64, 64)


def test_a_student_draws_in_bf16(run_folder, tmp_path, scott):
    common = ("sample", run_folder, "--prompts", PROMPT, "--out")
    assert scott(*common, tmp_path / "whole")[0] == 0
    assert scott(*common, tmp_path / "half", "--precision", "bf16")[0] == 0
    (whole,), (half,) = (list((tmp_path / name).iterdir()) for name in ("whole", "half"))
    difference = np.abs(pixels(whole) - pixels(half))
    assert 0 < difference.mean() < 6
    code, said = scott(*common, tmp_path / "onnx", "--precision", "bf16", "--engine", "onnx")
    assert code == 2
    assert "whose exports are fp32" in said
