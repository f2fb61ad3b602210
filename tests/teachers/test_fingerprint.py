"""A fingerprint follows the weights: not their name, their dtype or their device."""

import pytest
import torch
from diffusers import DiffusionPipeline
from tests.tiny.stable import tiny_sd

from scott.teachers.fingerprint import differing, fingerprints, pipeline_version


def test_every_family_has_one_of_each_encoder(make_backbone, family):
    found = fingerprints(make_backbone(family=family))
    encoders = {"sd1": 1, "sd2": 1, "pixart": 1, "sdxl": 2, "sd3": 3}[family]
    assert set(found) == {"vae", *(f"text_encoder{suffix}" for suffix in ["", "_2", "_3"][:encoders])}
    assert all(entry["class"] and len(entry["sha256"]) == 64 for entry in found.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_weights_are_loaded_in_does_not_matter(make_backbone, dtype):
    here, there = fingerprints(make_backbone()), fingerprints(make_backbone(dtype=dtype))
    assert not any(differing(here[part], there[part]) for part in here)
    assert (here["text_encoder"]["sha256"] == there["text_encoder"]["sha256"]) or dtype == torch.float16


def test_weights_that_were_stored_as_halves_are_the_same(tmp_path):
    from scott.teachers import load_backbone

    backbone = load_backbone(tiny_sd(tmp_path / "sd"))
    before = fingerprints(backbone)
    backbone.pipeline.vae.half().float()
    after = fingerprints(backbone)
    assert before["vae"]["sha256"] != after["vae"]["sha256"]
    assert not differing(before["vae"], after["vae"])
    older = {key: value for key, value in before["vae"].items() if key != "half"}
    assert differing(older, after["vae"])
    assert not differing(older, before["vae"])


CHANGES = {
    "a weight": ("text_encoder", lambda p: next(p.text_encoder.parameters()).mul_(1.1)),
    "a sign": ("text_encoder", lambda p: next(p.text_encoder.parameters()).neg_()),
    "the VAE": ("vae", lambda p: next(p.vae.parameters()).mul_(1.1)),
    "the scaling": ("vae", lambda p: p.vae.register_to_config(scaling_factor=0.5)),
    "the prompt's length": ("text_encoder", lambda p: setattr(p.tokenizer, "model_max_length", 12)),
}


@pytest.mark.parametrize(("part", "change"), CHANGES.values(), ids=CHANGES.keys())
def test_a_change_is_seen(tmp_path, part, change):
    from scott.teachers import load_backbone

    backbone = load_backbone(tiny_sd(tmp_path / "sd"))
    before = fingerprints(backbone)
    with torch.no_grad():
        change(backbone.pipeline)
    after = fingerprints(backbone)
    assert {name for name in before if differing(before[name], after[name])} == {part}


DRAWN_BY = {name: change for name, (_, change) in CHANGES.items() if name != "the prompt's length"} | {
    "the network": lambda p: next(p.unet.parameters()).mul_(1.1),
    "the schedule": lambda p: p.scheduler.register_to_config(beta_end=0.02),
    "the scheduler's way": lambda p: p.scheduler.register_to_config(timestep_spacing="linspace"),
}


@pytest.mark.parametrize("change", DRAWN_BY.values(), ids=DRAWN_BY.keys())
def test_a_pipeline_is_all_that_it_draws_by(tmp_path, change):
    folder = tiny_sd(tmp_path / "sd")
    pipeline, again = (DiffusionPipeline.from_pretrained(folder) for _ in range(2))
    before = pipeline_version(pipeline)
    assert pipeline_version(again) == before
    with torch.no_grad():
        change(pipeline)
    assert pipeline_version(pipeline) != before


def test_a_part_that_is_missing_differs():
    there = {"class": "T5", "dtype": "float32", "sha256": "1", "signs": "1"}
    assert differing(None, there)
    assert differing(there, None)
    assert not differing(None, None)
