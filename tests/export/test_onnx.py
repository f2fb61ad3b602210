"""ONNX exports answer as torch does, part by part, and draw the same picture without torch's networks."""

import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from PIL import Image

from scott.commands.sample import load_student
from scott.errors import UserError
from scott.export import onnx, snippet
from scott.export.info import STUDENT_INFO
from scott.export.onnx import write_onnx
from scott.export.onnx_runtime import load_onnx, open_session, require_onnx
from scott.export.trained import difference
from scott.recipes.configs import mini
from scott.samplers import StudentSampler


def test_onnxruntime_draws_the_student(small_student, tmp_path, monkeypatch):
    """SDXL's full student has every input there is: two encoders, pooled text, sizes, ω."""
    folder, backbone, grid, info = small_student("sdxl", "full")
    assert write_onnx(folder, tmp_path / "onnx") == info
    assert not list((tmp_path / "onnx").rglob("*.safetensors"))
    for file in (tmp_path / "onnx").rglob("*.onnx"):
        assert not [path for path in (sys.prefix, torch.__file__, onnx.__file__) if path.encode() in file.read_bytes()]
    names = {
        file.parent.name: [
            {value.name: value.shape for value in values} for values in (session.get_inputs(), session.get_outputs())
        ]
        for file in (tmp_path / "onnx").rglob("model.onnx")
        for session in [open_session(file)]
    }
    unet, unet_outputs = names["unet"]
    assert unet.keys() == {"sample", "timestep", "encoder_hidden_states", "timestep_cond", "text_embeds", "time_ids"}
    assert unet["timestep"] == [], "one for all pictures, as optimum gives it"
    assert [isinstance(size, str) for size in unet["sample"]] == [True, False, True, True], "free but for channels"
    assert unet_outputs.keys() == {"out_sample"}
    assert names["text_encoder"][1].keys() == {"last_hidden_state", "hidden_states.0"}
    assert names["text_encoder_2"][1].keys() == {"text_embeds", "last_hidden_state", "hidden_states.0"}
    assert [set(part) for part in names["vae_decoder"]] == [{"latent_sample"}, {"sample"}]
    assert [set(part) for part in names["vae_encoder"]] == [{"sample"}, {"latent_sample", "latent_parameters"}]
    read = load_onnx(tmp_path / "onnx")
    for prompts in (["a dog"], ["a dog", "", "cat"]):
        samplers = [StudentSampler(either, either.teacher, grid, 2, 4.0) for either in (backbone, read)]
        expected, got = (sampler.latents(prompts, 3) for sampler in samplers)
        assert difference(expected, got) < 1e-3
        assert (backbone.decode(expected) - read.decode(expected)).abs().max() < 1e-3

    monkeypatch.chdir(tmp_path)
    (tmp_path / "onnx" / STUDENT_INFO).write_text(info.to_json())
    monkeypatch.setattr(snippet, "EXAMPLE", "a dog")  # tiny tokenizers take no more
    exec(snippet.snippet(mini(), info, "onnx", tmp_path / "onnx"), {})
    assert Image.open("picture.png").size == (backbone.resolution,) * 2
    monkeypatch.setattr(huggingface_hub, "snapshot_download", {"me/student": str(tmp_path / "onnx")}.get)
    Path("picture.png").unlink()
    exec(snippet.snippet(mini(), info, "onnx", Path("me/student"), hub=True), {})
    assert Image.open("picture.png").size == (backbone.resolution,) * 2
    with pytest.raises(UserError, match="scott sample --engine onnx draws with"):
        load_student(str(tmp_path / "onnx"))
    with pytest.raises(UserError, match="no ONNX export"):
        load_student(str(folder), "onnx")


def test_a_transformer_that_squeezes_nothing_and_reshapes_by_anothers_batch(make_backbone, tmp_path):
    """PixArt's does both, and is called with a dictionary of what is not there."""
    backbone = make_backbone(family="pixart")
    network = type(backbone.network).from_config({**backbone.network.config, "num_layers": 1}).eval()
    cond = backbone.encode_prompts(["a cat", ""])
    call = {"hidden_states": torch.randn(2, *backbone.latent_shape), "encoder_hidden_states": cond["text"]}
    call |= {"timestep": torch.tensor([999, 3]), "encoder_attention_mask": cond["mask"]}
    call |= {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
    graph = onnx._Graph(network, call, ["out_hidden_states"])
    assert graph.inputs == ["hidden_states", "encoder_hidden_states", "timestep", "encoder_attention_mask"]
    answers = graph.answers()
    onnx._export(graph, tmp_path / "model.onnx")
    onnx._check_part(tmp_path / "model.onnx", answers, "transformer")


def test_a_part_that_answers_otherwise_is_refused(small_student, tmp_path, monkeypatch):
    export = onnx._export

    def move_then_export(graph, file, dtype):
        if file.parent.name != "text_encoder":
            return
        with torch.no_grad():
            next(graph.parameters()).add_(torch.randn(next(graph.parameters()).shape))
        export(graph, file, dtype)

    monkeypatch.setattr(onnx, "_export", move_then_export)
    with pytest.raises(UserError, match="text_encoder under onnxruntime is off"):
        write_onnx(small_student("sd1", "lora")[0], tmp_path / "onnx")


def test_a_missing_package_is_one_line(monkeypatch):
    require_onnx()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"^ONNX needs onnxruntime \(.*\); pip install onnx onnxscript onnxruntime$"):
        require_onnx()
