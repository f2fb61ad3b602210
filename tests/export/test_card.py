"""A card says what the student is, and its snippet draws with it as it stands."""

import json
import math
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from diffusers.loaders.single_file_utils import CHECKPOINT_KEY_NAMES
from PIL import Image
from safetensors.torch import load_file, save_file

from scott.diffusion import FlowSchedule, JumpGrid
from scott.errors import UserError
from scott.evaluation import Results, Row
from scott.export.card import FOLDERS, card, front_matter, results_of, teacher_licence, with_paths, write_cards
from scott.export.elsewhere import elsewhere
from scott.export.info import STUDENT_INFO, StudentInfo
from scott.export.ldm import VAE
from scott.export.lora import save_lora
from scott.export.pipeline import save_student
from scott.export.places import is_hub_id
from scott.export.schedules import flow_sigmas
from scott.export.single_file import FILE, save_checkpoint
from scott.export.trained import network_times
from scott.mini.embedded import TEACHER
from scott.recipes.configs import mini
from scott.teacher_source import TeacherSource
from scott.teachers import load_backbone


def block(text):
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return code


@pytest.mark.parametrize(
    ("family", "train", "kind"),
    [
        ("sdxl", "full", "diffusers"),
        ("pixart", "lora", "diffusers"),
        ("pixart", "lora", "lora"),
        ("sd1", "lora", "kohya"),
        ("sd3", "lora", "lora"),
        ("sd1", "full", "checkpoint"),
    ],
)
def test_the_snippet_runs_as_it_stands(make_trained, tmp_path, monkeypatch, family, train, kind):
    trained = make_trained(family, train)
    folder = tmp_path / FOLDERS[kind]
    if kind == "diffusers":
        save_student(trained.backbone, folder, trained.grid)
    else:
        folder.mkdir()
        (save_checkpoint if kind == "checkpoint" else partial(save_lora, kind=kind))(trained, folder)
    # a teacher of this machine is named by its last part
    monkeypatch.chdir(tmp_path)
    Path(Path(trained.config.teacher).name).symlink_to(trained.config.teacher)
    exec(block(card(trained.config, trained.info, kind, folder)), {})
    assert Image.open("picture.png").size == (trained.backbone.resolution,) * 2


def test_a_pages_snippet_draws_with_the_repository(make_trained, tmp_path, monkeypatch):
    trained, repository = make_trained("sd1", "full"), Path("me/student")
    (tmp_path / repository).mkdir(parents=True)
    save_checkpoint(trained, tmp_path / repository)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda name, file: str(tmp_path / name / file))
    monkeypatch.chdir(tmp_path)
    Path(Path(trained.config.teacher).name).symlink_to(trained.config.teacher)
    exec(block(card(trained.config, trained.info, "checkpoint", repository, hub=True)), {})
    assert Image.open("picture.png").size == (trained.backbone.resolution,) * 2


@pytest.mark.parametrize("vae", ["the config's", "another"])
def test_the_snippet_reads_a_file_that_has_no_vae(make_trained, teacher_folders, tmp_path, monkeypatch, vae):
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(teacher_folders["sd1"])
    save_checkpoint(make_trained(), tmp_path)
    tensors = {name: value for name, value in load_file(FILE).items() if not name.startswith(VAE)}
    save_file(tensors, "teacher.safetensors")
    given = {"teacher": "teacher.safetensors", "teacher_config": "configs"}
    given |= {"vae": "configs"} if vae == "another" else {}
    backbone = load_backbone(TeacherSource(**given))
    trained, folder = make_trained(backbone=backbone), tmp_path / "lora"
    folder.mkdir()
    save_lora(trained, folder, "lora")
    program = block(card(replace(trained.config, **given), trained.info, "lora", folder))
    assert ("AutoencoderKL.from_pretrained" in program) == (vae == "another")
    exec(program, made := {})
    for mine, theirs in zip(backbone.vae.parameters(), made["pipe"].vae.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    Path("teacher.safetensors").unlink()
    assert "from_single_file" in card(replace(trained.config, **given), trained.info, "lora", folder)


@pytest.mark.parametrize("form", ["folder", "file"])
def test_a_vaes_file_has_the_scale_of_the_teachers(make_trained, teacher_folders, tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(teacher_folders["sdxl"], "configs")
    (own := Path("configs/vae/config.json")).write_text(json.dumps(json.loads(own.read_text()) | {"scaling_factor": 2}))
    trained = make_trained("sdxl", backbone=load_backbone("configs"))
    save_checkpoint(trained, tmp_path)
    vae = {name.removeprefix(VAE): value for name, value in load_file(FILE).items() if name.startswith(VAE)}
    save_file(vae, "better.safetensors")
    given = {"teacher": "configs"} if form == "folder" else {"teacher": FILE, "teacher_config": "configs"}
    config = replace(trained.config, vae="better.safetensors", **given)
    folder = tmp_path / "lora"
    folder.mkdir()
    save_lora(trained, folder, "lora")
    exec(block(card(config, trained.info, "lora", folder)), made := {})
    assert made["pipe"].vae.config.scaling_factor == 2
    assert torch.equal(made["pipe"].vae.decoder.conv_in.weight, vae["decoder.conv_in.weight"])


def test_a_vaes_file_beside_a_published_kind_has_that_ones_config(make_trained, tmp_path):
    trained = make_trained("sdxl")
    names = [CHECKPOINT_KEY_NAMES[name] for name in ("xl_base", "clip_sdxl", "open_clip_sdxl")]
    save_file({name: torch.ones(1) for name in [*names, "model.diffusion_model.x"]}, tmp_path / "xl.safetensors")
    given = {"teacher": str(tmp_path / "xl.safetensors"), "teacher_config": None, "vae": "better.safetensors"}
    program = block(card(replace(trained.config, **given), trained.info, "lora", tmp_path))
    hub = 'config="stabilityai/stable-diffusion-xl-base-1.0", subfolder="vae")'
    assert f'vae=AutoencoderKL.from_single_file("better.safetensors", {hub}' in program


def test_a_card_names_all_that_a_teacher_was_made_of(make_trained, tmp_path):
    trained = make_trained("sd3")
    config = replace(trained.config, variant="fp16", vae="/here/better.safetensors", teacher_lora=("/a/style.x:0.5",))
    text = card(config, trained.info, "lora", tmp_path)
    for said in (", variant fp16)", ", with `style.x` merged in at 0.5", ", VAE `better.safetensors`"):
        assert said in text
    assert 'torch_dtype=torch.float32, variant="fp16")' in block(text)
    layout = f'config="{Path(config.teacher).name}", subfolder="vae")'
    assert f'pipe.vae = type(pipe.vae).from_single_file("better.safetensors", {layout}' in block(text)


def test_a_loras_card_says_what_it_goes_on_elsewhere(make_trained, tmp_path):
    trained = make_trained()
    given = {"vae": "/here/better.safetensors", "teacher_lora": ("/a/style.safetensors:0.5",)}
    info = replace(trained.info, resolution=768)
    (how,) = re.findall("\nThe teacher's checkpoint.*", card(replace(trained.config, **given), info, "lora", tmp_path))
    assert how.startswith(
        "\nThe teacher's checkpoint, VAE `better.safetensors`, `style.safetensors` at strength 0.5, the student's "
        "LoRA at strength 1, 768 x 768 pixels, sampler LCM, CFG 1"
    )


def test_what_a_full_students_card_says(make_trained, tmp_path):
    trained = make_trained("sd1", "full")
    text, teacher = card(trained.config, trained.info, "diffusers", tmp_path), Path(trained.config.teacher)
    for said in (
        f"`{teacher.name}` (`StableDiffusionPipeline`, weights {trained.info.base['sha256'][:12]})",
        "see the teacher's page",
        "`LCMScheduler` with `original_inference_steps=125`",
        "1: 999; 2: 999, 503; 4: 999, 751, 503, 255; 8: 999, 879, 751, 631, 503, 375, 255, 127",
        "ER-SDE with φ 5, order 2; jump 24 in 3 sub-steps; l2 loss; λ_adv 0.4, critic lora (paper)",
        "4, given as `guidance_scale`",
        "7 of batch 40",
        "the whole network",
        "    guidance_scale=4.0,\n",
        "| 2 | 999, 503 | sgm_uniform: 999, 500 | SGM Uniform: 999, 499 |",
        "`scott export RUN --to checkpoint` folds 4 in",
    ):
        assert said in text
    assert str(teacher.parent) not in text
    assert str(tmp_path) not in text
    assert "Measured" not in text


def test_a_lora_has_its_guidance_built_in_and_a_flow_has_sigmas(make_trained, tmp_path):
    trained = make_trained("sd3")
    text = card(trained.config, trained.info, "lora", tmp_path)
    for said in ("4, built in: draw with `guidance_scale=1.0`", "2: 1, 0.6;", "σ", "LoRA of rank 4, α 8"):
        assert said in text
    again = replace(trained.info, lora_variant="rslora")
    in_four_bits = replace(trained.config, quantize="nf4")
    text = card(in_four_bits, again, "lora", tmp_path)
    for said in ("rsLoRA (α over √rank) of rank 4, α 8", "frozen network in fp32, its weights in nf4"):
        assert said in text
    config = mini(train="lora")
    text = card(config, trained.info, "lora", tmp_path)
    assert "jump 100 in 1 sub-step, each used 3 times" in text
    assert "from_pretrained(TEACHER, torch_dtype=torch.float32)" in text
    assert "(clean; drawn fakes), after 60% of the steps; rates fall over the last 10% of the steps" in text
    assert (
        "each used 3 times; l2 loss weighted by snr+1; λ_adv for a gradient of 0.6 times L_CD's, critic heads" in text
    )


@pytest.mark.parametrize(
    ("family", "node"),
    [
        ("sd3", "ModelSamplingSD3 at shift 1.5"),
        ("flux", "ModelSamplingAuraFlow at shift"),
        ("chroma", "ModelSamplingAuraFlow at shift"),
        ("flux2-klein", "ModelSamplingAuraFlow at shift"),
        ("qwen-image", "ModelSamplingAuraFlow at shift"),
        ("z-image", "ModelSamplingAuraFlow at shift"),
    ],
)
def test_a_flows_card_has_the_node_and_the_sigmas_of_its_size(make_trained, family, node):
    config, info = (trained := make_trained(family)).config, trained.info
    _, how, table = elsewhere(config, info, "lora")
    assert node in table
    assert ("FluxGuidance at 4," in how) == (family == "flux")
    shift = float(re.search(r"at shift ([\d.]+)", table)[1])
    for row, wanted in zip(table.splitlines()[2:], info.times.values(), strict=True):
        manual, simple = (cell.strip().split(", ") for cell in row.split("|")[2:4])
        assert [float(sigma) for sigma in manual] == [*wanted, 0]
        if family != "sd3" or len(wanted) <= 2:
            assert [float(sigma) for sigma in simple] == pytest.approx(wanted, abs=2e-3)
            assert [float(sigma) for sigma in simple] == pytest.approx(flow_sigmas(shift, len(wanted)), abs=1e-4)
    assert "scott export RUN --to lora" in "".join(elsewhere(config, info, "diffusers"))
    assert "for diffusers" in elsewhere(config, replace(info, train="full"), "diffusers")[1]


@pytest.mark.parametrize(
    ("pipeline", "mu", "own"),
    [("FluxPipeline", 1.15, True), ("FluxPipeline", 0.63, False), ("ChromaPipeline", 1.15, False)],
)
def test_no_node_is_needed_where_comfyuis_own_shift_is_the_students(make_trained, pipeline, mu, own):
    """FLUX's at 1024 px, and not at 512."""
    grid, trained = JumpGrid(FlowSchedule(math.exp(mu), evenly=True)), make_trained("flux")
    times = {str(steps): network_times(grid, steps) for steps in (1, 2, 4, 8)}
    _, how, table = elsewhere(trained.config, replace(trained.info, times=times, pipeline=pipeline), "lora")
    assert f"ModelSamplingAuraFlow at shift {math.exp(mu):.2f}" in table
    assert ("behind the node that it names, or without one" in how) == own


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_a_student_of_v_is_for_comfyui_alone(make_trained, family):
    config, info = (trained := make_trained(family)).config, trained.info
    for one, kind in ((info, "lora"), (info, "kohya"), (replace(info, train="full"), "checkpoint")):
        _, how, table = elsewhere(config, one, kind)
        assert ("behind ModelSamplingDiscrete at v_prediction" in how) == (family == "sd2")
        assert ("it draws no student of v" in how) == (family == "sd2")
        assert ("A1111" in table) == (family == "sd1")


def test_a_student_of_clean_data_is_for_comfyui_alone(make_trained):
    trained = make_trained("sd1")
    _, how, table = elsewhere(trained.config, replace(trained.info, prediction="sample"), "lora")
    assert "it draws no student of x0" in how
    assert "behind ModelSamplingDiscrete at x0" in how
    assert "A1111" not in table


def test_what_no_program_draws_is_said_to_be_for_diffusers(make_trained):
    config, info = (trained := make_trained("pixart")).config, trained.info
    _, how, table = elsewhere(config, info, "lora")
    assert "A1111 does not read" in how
    assert "| 2 | 999, 503 | simple: 999, 499 |" in table or "| 2 | 999, 503 | sgm_uniform: 999, 500 |" in table
    assert "A1111" not in table
    of_sana = replace(info, pipeline="SanaPipeline", scheduler="FlowMatchLCMScheduler")
    for one, kind in (
        (of_sana, "lora"),
        (replace(info, train="full"), "diffusers"),
        (replace(info, lora_variant="dora"), "lora"),
    ):
        (_, sentence) = elsewhere(config, one, kind)
        assert sentence.endswith("this student is for diffusers.")
    assert elsewhere(config, info, "onnx") == []


def test_cards_take_up_what_was_measured(make_trained, tmp_path):
    trained = make_trained("sd1", "full")
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / STUDENT_INFO).write_text(trained.info.to_json())
    write_cards(tmp_path, trained.config)
    assert "Measured" not in (tmp_path / "card.md").read_text()
    row = Row("student-2", 2, 2, 0.1, 12.34, 0.8, 0.9, samples=100)
    Results([row], {"samples": 100, "split": "held-out"}).save(tmp_path / "evaluation.json")
    write_cards(tmp_path, trained.config)
    for file in (tmp_path / "card.md", tmp_path / "student" / "card.md"):
        assert "| student-2 | 2 | 2 | 0.1 | 12.3 |" in file.read_text()
        assert "samples 100, split held-out" in file.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["card.md", "evaluation.json", "student"]
    for updates, said in ((trained.info.updates - 1, False), (trained.info.updates, True)):
        Results([row], {"updates": updates}).save(tmp_path / "evaluation.json")
        write_cards(tmp_path, trained.config)
        assert ("| student-2 |" in (tmp_path / "card.md").read_text()) == said, "figures of another student"
    readme = (tmp_path / "student" / "README.md").read_text()
    assert readme == front_matter(trained.config, trained.info, "diffusers") + (tmp_path / "card.md").read_text()


def test_a_file_that_is_no_results_is_left_out_of_the_cards(make_trained, tmp_path, capfd):
    trained = make_trained("sd1", "full")
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / STUDENT_INFO).write_text(trained.info.to_json())
    Results([Row("student-2", 2, 2, 0.1, 12.34)], {"samples": 100}).save(tmp_path / "evaluation.json")
    for name, text in (("evaluation-mine.json", '{"fid": 12.3}'), ("results.json", "no JSON")):
        (tmp_path / name).write_text(text)
    write_cards(tmp_path, trained.config)
    assert "| student-2 |" in (tmp_path / "student" / "card.md").read_text()
    printed = "".join(capfd.readouterr().out.split())  # a long path breaks lines within words
    assert len(re.findall("isnoresultsfile,andisleftoutofthecards", printed)) == 2
    assert [one.meta for one in results_of(tmp_path, trained.info)] == [{"samples": 100}]


def test_a_card_says_what_a_student_started_as(make_trained, tmp_path):
    trained = make_trained("sd1", "full")

    def started(**given):
        text = card(replace(trained.config, **given), trained.info, "diffusers", tmp_path)
        return re.findall(r"\| started as \| (.*) \|", text)

    assert started() == []
    assert started(init="runs/a") == ["`runs/a`"]
    assert started(init="owner/student") == ["`owner/student`"]
    assert started(init=str(tmp_path / "lora.safetensors")) == ["`lora.safetensors`"]
    assert started(continue_from=str(tmp_path / "before")) == ["`before`, with its critic and optimizers"]


@pytest.mark.parametrize(
    ("given", "title"),
    [
        ({"teacher": "owner/model-1.5"}, "# model-1.5 in 1, 2, 4 or 8 steps, by SCott"),
        ({"teacher": "/here/my teacher", "method": "lcm"}, "# my teacher in 1, 2, 4 or 8 steps, by LCM"),
    ],
)
def test_a_cards_title_says_of_what_the_student_is(make_trained, tmp_path, given, title):
    trained = make_trained("sd1", "full")
    assert card(replace(trained.config, **given), trained.info, "diffusers", tmp_path).splitlines()[0] == title
    hub = card(trained.config, trained.info, "diffusers", tmp_path, hub=True, base="owner/base")
    assert hub.startswith("# base in 1, 2, 4 or 8 steps, by ")
    few = replace(trained.info, times={"1": [999]})
    assert card(trained.config, few, "diffusers", tmp_path).splitlines()[0].endswith(" in 1 step, by SCott")


@pytest.mark.parametrize("method", ["scott", "paper", "lcm"])
def test_a_card_names_the_method_that_the_student_was_made_by(make_trained, tmp_path, method):
    trained = make_trained("sd1", "full")
    text = card(replace(trained.config, method=method), trained.info, "diffusers", tmp_path)
    is_lcm = method == "lcm"
    assert ("latent consistency distillation (Luo et al. 2023, <https://arxiv.org/abs/2310.04378>)" in text) == is_lcm
    assert ("Distilled with SCott (Stochastic Consistency Distillation" in text) == (not is_lcm)


def test_a_path_that_has_moved_is_no_place_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("my/pictures", "my/teacher", "pictures"):
        (tmp_path / folder).mkdir(parents=True)
    named = ("my/pictures", "./pictures", "../pictures", "owner/pictures")
    config = with_paths(mini(data=named, teacher="my/teacher"))
    shutil.rmtree("my"), shutil.rmtree("pictures")
    assert (config.teacher, config.sources) == ("./my/teacher", ("./my/pictures", *named[1:]))
    assert [name for name in (config.teacher, *config.sources) if is_hub_id(name)] == ["owner/pictures"]
    assert with_paths(mini(data="owner/pictures")).data == "owner/pictures"


@pytest.mark.parametrize(
    ("teacher", "kind", "expected"),
    [
        ("owner/model", "lora", {"base_model": "owner/model", "base_model_relation": "adapter"}),
        ("owner/model", "diffusers", {"base_model": "owner/model", "base_model_relation": "finetune"}),
        ("mini", "diffusers", {"license": "apache-2.0"}),
        ("/somewhere/teacher", "kohya", {}),
    ],
)
def test_front_matter_is_yaml_of_what_is_known(make_trained, teacher, kind, expected):
    trained = make_trained("sd1")
    text = front_matter(replace(trained.config, teacher=teacher), trained.info, kind)
    start, yaml_text, end = text.split("---\n")
    assert start.strip() == end.strip() == ""
    fields = yaml.safe_load(yaml_text)
    tags = fields.pop("tags")
    assert ("lora" in tags) == (kind != "diffusers")
    assert fields == {"library_name": "diffusers", "pipeline_tag": "text-to-image"} | expected
    of_pixart = front_matter(trained.config, replace(trained.info, pipeline="PixArtAlphaPipeline"), kind)
    assert ('library_name: "peft"' in of_pixart) == (kind != "diffusers")


def test_several_sources_are_a_list_with_their_shares(make_trained, tmp_path):
    trained = make_trained("sd1")
    config = replace(trained.config, data=("owner/pictures", str(tmp_path / "cats")), weights=(3.0, 1.0))
    assert "| data | `owner/pictures` (75%), `cats` (25%) |" in card(config, trained.info, "lora", tmp_path)


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("---\nlicense: creativeml-openrail-m\ntags:\n- art\n---\n# A model\n", "creativeml-openrail-m"),
        ("---\ntags: x\nlicense: 'mit'\n---", "mit"),
        ("---\nlicense: mit # as its base\n---\n", "mit"),
        ("---\nlicense: [mit, other]\n---\n", "see the teacher's page"),
        ("---\nlicense: mit\ntags: [art\n---\n", "see the teacher's page"),
        ("---\nmit\n---\n", "see the teacher's page"),
        ("---\ntags: x\n---\nlicense: not here\n", "see the teacher's page"),
        ("# A model\n\n---\nlicense: nor here\n---\n", "see the teacher's page"),
        (None, "see the teacher's page"),
    ],
)
def test_the_licence_is_the_readmes(tmp_path, text, licence):
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    assert teacher_licence(str(tmp_path)) == licence


def test_the_licence_of_a_teacher_that_is_no_folder():
    assert teacher_licence("mini") == teacher_licence(str(TEACHER)) == "apache-2.0"
    assert (TEACHER.parent / "LICENSES.md").is_file(), "which its README names"
    assert teacher_licence("owner/model") == "see the teacher's page, <https://huggingface.co/owner/model>"


def test_what_a_student_was_made_for_survives_its_file(make_trained, tmp_path):
    info = make_trained("sdxl").info
    assert StudentInfo.read(tmp_path) is None
    (tmp_path / STUDENT_INFO).write_text(info.to_json())
    assert StudentInfo.read(tmp_path) == info
    assert torch.tensor(info.times["2"]).tolist() == [999, 503]
    later = json.loads(info.to_json()) | {"of_a_later_version": True}
    (tmp_path / STUDENT_INFO).write_text(json.dumps(later))
    assert StudentInfo.read(tmp_path) == info
    changes = ({"guidance_min": "a"}, {"resolution": -8}, {"pipeline": "NoPipeline"})
    odd = [json.dumps(later | change).encode() for change in changes]
    for other in (b'{"train": "lora"}', b"[]", b"\xff", b"[" * 100_000, *odd):
        (tmp_path / STUDENT_INFO).write_bytes(other)
        with pytest.raises(UserError, match="export it again"):
            StudentInfo.read(tmp_path)
