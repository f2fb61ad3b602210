"""What `--push` uploads, seen at the hub's own interface: its calls as they are declared, and the folder."""

import re
import shutil
from dataclasses import replace
from unittest.mock import create_autospec

import pytest
import yaml
from httpx2 import ConnectError
from huggingface_hub import HfApi
from PIL import Image

from scott.arguments import Export
from scott.commands import push as module
from scott.commands.push import check_repository, push
from scott.errors import UserError
from scott.export.info import STUDENT_INFO, StudentInfo
from scott.recipes.configs import sd15

INFO = {"pipeline": "StableDiffusionPipeline", "scheduler": "LCMScheduler", "train": "lora", "updates": 1200}
INFO |= {"guidance_min": 3.0, "guidance_max": 3.0, "takes_guidance": False, "original_inference_steps": 125}
INFO |= {"times": {"2": [999, 503]}, "lora_rank": 4, "lora_alpha": 4.0}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    (folder / "samples").mkdir(parents=True)
    for step in (200, 1200):
        Image.new("RGB", (8, 8), (step % 256, 0, 0)).save(folder / "samples" / f"step-{step:08d}.png")
    (folder / "config.json").write_text(sd15(data=("laion/some-set", str(tmp_path)), out=folder).to_json())
    (folder / "lora").mkdir()
    (folder / "lora" / STUDENT_INFO).write_text(StudentInfo(**INFO).to_json())
    return folder


@pytest.fixture
def api(monkeypatch, tmp_path):
    """The hub's interface, which copies what is uploaded to `tmp_path / "hub"`."""
    hub = create_autospec(HfApi, instance=True)
    hub.create_repo.return_value = "https://huggingface.co/me/student"
    hub.upload_folder.side_effect = lambda **given: shutil.copytree(
        given["folder_path"], tmp_path / "hub", ignore=shutil.ignore_patterns(*given["ignore_patterns"])
    )
    monkeypatch.setattr(module, "HfApi", lambda: hub)
    return hub


def test_an_export_becomes_a_model_with_its_page(run, api, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = sd15(data=("laion/some-set", str(tmp_path), "run/samples"), out=run, teacher_lora=("mine/style.x:0.5",))
    (run / "config.json").write_text(config.to_json())
    (run / "lora" / "card.md").write_text("runs/of/this/machine")
    assert push(run, run / "lora", "lora", "me/student") == "https://huggingface.co/me/student"
    api.create_repo.assert_called_once_with("me/student", repo_type="model", exist_ok=True)
    assert api.upload_folder.call_args.kwargs["repo_id"] == "me/student"
    assert {file.name for file in (tmp_path / "hub").iterdir()} == {"README.md", "samples.png", STUDENT_INFO}
    assert Image.open(tmp_path / "hub" / "samples.png").getpixel((0, 0)) == (1200 % 256, 0, 0)
    _, front, text = (tmp_path / "hub" / "README.md").read_text().split("---\n", 2)
    fields = yaml.safe_load(front)
    assert fields["base_model"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert (fields["base_model_relation"], fields["datasets"]) == ("adapter", ["laion/some-set"])
    assert (fields["library_name"], fields["pipeline_tag"]) == ("diffusers", "text-to-image")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert 'LCMScheduler.from_pretrained("me/student", subfolder="scheduler")' in code
    assert 'load_lora_weights("me/student", weight_name="pytorch_lora_weights.safetensors")' in code
    assert "at step 1,200](samples.png)" in text
    assert not any(path in text for path in (str(tmp_path), "run/samples", "mine/style.x"))
    assert "`samples`" in text
    assert 'pipe.load_lora_weights("style.x")' in code


def test_the_pictures_are_of_the_student_that_is_uploaded_or_an_earlier_one(run, api, tmp_path):
    info = StudentInfo(**INFO | {"updates": 600})
    (run / "lora" / STUDENT_INFO).write_text(info.to_json())
    push(run, run / "lora", "lora", "me/student")
    assert "at step 200](samples.png)" in (tmp_path / "hub" / "README.md").read_text()
    assert Image.open(tmp_path / "hub" / "samples.png").getpixel((0, 0)) == (200, 0, 0)


def test_base_and_licence_are_those_that_are_said(run, api, tmp_path):
    """Of a teacher that is a folder, whose place on the hub is not known."""
    config = sd15(data="x", out=run, teacher=str(tmp_path / "mine"))
    (run / "config.json").write_text(config.to_json())
    said = {"base": "owner/base", "licence": "openrail++"}
    for given, expected in ((said, ("owner/base", "openrail++")), ({}, (None, None))):
        push(run, run / "lora", "lora", "me/student", **given)
        _, front, text = (tmp_path / "hub" / "README.md").read_text().split("---\n", 2)
        fields = yaml.safe_load(front)
        assert (fields.get("base_model"), fields.get("license")) == expected
        base, licence = expected[0] or "mine", expected[1]
        assert f"| teacher | `{base}` (" in text
        page = ", <https://huggingface.co/owner/base>" if given else ""
        assert f"| licence of the teacher | see the teacher's page{page} |" in text
        assert (f"| licence of the student | {licence} |" in text) == bool(given)
        (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        assert f'DiffusionPipeline.from_pretrained("{base}", torch_dtype=torch.float32)' in code
        assert ("mine" in text) == (not given)
        shutil.rmtree(tmp_path / "hub")
    exported = Export(run, "lora", license="mit")
    with pytest.raises(UserError, match="--license without --push"):
        exported.run()
    with pytest.raises(UserError, match="got --base-model here; expected the owner"):
        replace(exported, push="me/student", base_model="here").run()


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("lora", 'pipe = DiffusionPipeline.from_pretrained("owner/base", torch_dtype=torch.float32)'),
        ("checkpoint", 'from_single_file(hf_hub_download("me/student", "student.safetensors"), config="owner/base")'),
    ],
)
def test_a_file_of_this_machine_is_its_base_everywhere(run, api, tmp_path, monkeypatch, kind, line):
    """Also where a folder here is called as its base is there, and a licence stands with the base alone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "base").mkdir(parents=True)
    (tmp_path / "owner" / "base" / "README.md").write_text("---\nlicense: openrail\n---\n")
    config = sd15(data="x", out=run, teacher=str(tmp_path / "here.safetensors"), teacher_config="local/configs")
    (run / "config.json").write_text(config.to_json())
    (run / "lora").rename(run / kind)
    push(run, run / kind, kind, "me/student", base="owner/base")
    text = (tmp_path / "hub" / "README.md").read_text()
    assert line in text
    assert "| teacher | `owner/base` (" in text
    assert "| licence of the teacher | openrail |" in text
    assert 'license: "openrail"' in text
    assert not any(name in text for name in ("here.safetensors", "local/configs", "configs"))


@pytest.mark.parametrize("kind", [OSError, ConnectError])
def test_what_the_hub_does_not_take_is_one_line(run, api, kind):
    api.create_repo.side_effect = kind("401 Unauthorized\nlonger")
    with pytest.raises(UserError, match=r"is written, but the hub does not take it as me/student \(401 Unauthorized\)"):
        push(run, run / "lora", "lora", "me/student")


@pytest.mark.parametrize("name", ["student", "a/b/c", "me/", "https://huggingface.co/me/student"])
def test_a_name_that_is_no_repository(name):
    with pytest.raises(UserError, match="such as me/my-student"):
        check_repository(name)
