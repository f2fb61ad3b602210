"""Run with an older diffusers and transformers: open every export that a list names, as its user would, and draw.

    PYTHONPATH=build/older python tests/export/older.py FOLDER

FOLDER/exports.json is a list of {"name", "kind", "folder", "teacher", "options", "expected"}; each
`expected` is a safetensors file with what the new versions draw in 2 steps: "latents", and the "picture" of
them. Writes off.json: the versions, and {name and which: largest difference over the standard deviation}.
"""

import json
import sys
from pathlib import Path

import diffusers
import peft
import torch
import transformers
from diffusers import DiffusionPipeline
from safetensors.torch import load_file


def read(kind, folder, teacher):
    """The pipeline with the student in it."""
    if kind == "onnx":
        from optimum.onnxruntime import ORTDiffusionPipeline

        return ORTDiffusionPipeline.from_pretrained(folder, provider="CPUExecutionProvider")
    if kind == "diffusers":
        return DiffusionPipeline.from_pretrained(folder)
    pipe = DiffusionPipeline.from_pretrained(teacher)
    scheduler = type(pipe.scheduler).from_pretrained(folder, subfolder="scheduler")
    if kind == "checkpoint":
        (file,) = Path(folder).glob("*.safetensors")
        pipe = type(pipe).from_single_file(str(file), config=teacher)
    pipe.scheduler = scheduler
    if kind == "checkpoint":
        return pipe
    if hasattr(pipe, "load_lora_weights"):
        (file,) = Path(folder).glob("*.safetensors")
        pipe.load_lora_weights(folder, weight_name=file.name)
    else:
        pipe.transformer = peft.PeftModel.from_pretrained(pipe.transformer, folder)
    return pipe


def main(folder):
    diffusers.utils.logging.disable_progress_bar()
    versions = {module.__name__: module.__version__ for module in (diffusers, transformers, peft)}
    found = {}
    for export in json.loads((folder / "exports.json").read_text()):
        pipe = read(export["kind"], export["folder"], export["teacher"])
        pipe.set_progress_bar_config(disable=True)
        expected = load_file(export["expected"])
        for kind, wanted in expected.items():
            drawn = pipe(
                "a cat",
                num_inference_steps=2,
                generator=torch.manual_seed(0),
                output_type={"latents": "latent", "picture": "pt"}[kind],
                **export["options"],
            ).images
            off = (torch.as_tensor(drawn) - wanted).abs().max() / wanted.std()
            found[f"{export['name']} {kind}"] = off.item()
    assert "scott" not in sys.modules
    (folder / "off.json").write_text(json.dumps({"versions": versions, "off": found}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
