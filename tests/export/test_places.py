"""No card has a path of the machine it was made on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from scott.evaluation import Figure, Results, Row
from scott.export.card import card
from scott.files import without_secrets

META = {
    "target": "{}/runs/mine",
    "data": "zip://all.json::file://{}/pictures.zip",
    "floor data": "file://{}/others",
    "names": "{}/my lists/names.txt",
    "lora": "{}/style.safetensors",
    "teacher": "{}/teacher",
    "models": {"inception": "{}/pt.pth", "clip": "open_clip:ViT-B-32@{}/clip.pt"},
    "networks": {"features": "open_clip local-dir:{}/clip: shorter side to 224"},
}
"""Conditions with paths of a folder."""


@pytest.mark.parametrize("hub", [False, True])
def test_no_card_has_a_path_of_this_machine(make_trained, tmp_path, hub):
    trained, here = make_trained("sd1", "full"), f"{tmp_path}/home"
    config = replace(trained.config, data=("zip://a::" + here + "/b.zip", f"file://{here}/cats"), init=f"{here}/runs/a")
    meta = json.loads(json.dumps(META).replace("{}", here))
    row = Row("student-2", 2, 2, 0.1, metrics={"fid": Figure(12.3)})
    text = card(config, trained.info, "diffusers", tmp_path / "student", [Results([row], meta)], hub=hub)
    assert str(tmp_path) not in text
    for said in (
        "`zip://a::b.zip` (50%), `cats` (50%) |",
        "| started as | `a` |",
        "target mine, data zip://all.json::pictures.zip, floor data others, names names.txt, lora style.safetensors, "
        "teacher teacher, models {'inception': 'pt.pth', 'clip': 'open_clip:ViT-B-32@clip.pt'}, networks",
        "Features: open_clip local-dir:clip: shorter side to 224.",
    ):
        assert said in text


@pytest.mark.parametrize("hub", [False, True])
def test_no_card_has_what_opens_a_place(make_trained, tmp_path, hub):
    """Nor the user's name; of buckets `?` is a pattern."""
    trained = make_trained("sd1", "full")
    data = ("https://bob:hunter2@host/{000..009}.tar?X-Amz-Signature=KEY", "s3://bucket/0?.tar", "pictures/0?.png")
    meta = {"data": "zip://a.json::https://host/x.zip?token=KEY&more=1", "target": "student"}
    config = replace(trained.config, data=data)
    text = card(config, trained.info, "diffusers", tmp_path / "student", [Results([], meta)], hub=hub)
    assert not any(secret in text for secret in ("bob", "hunter2", "KEY", "more=1"))
    for said in (
        "https://host/{000..009}.tar`",
        "`s3://bucket/0?.tar`",
        "0?.png`",
        "data zip://a.json::https://host/x.zip",
    ):
        assert said in text
    assert without_secrets("got https://u:p@h/a?k=1 and b?") == "got https://h/a and b?"


def test_a_hubs_card_has_no_relative_path_and_keeps_what_is_on_the_hub(make_trained, tmp_path, monkeypatch):
    """A path that is there no more too, where it cannot be a hub id."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my" / "pictures").mkdir(parents=True)
    trained = make_trained("sd1", "full")
    data = ("my/pictures", "gone/by/now", "tars/{0..9}.tar", "owner/set", "http://host/x.tar", "s3://bucket/y.tar")
    config = replace(trained.config, data=data, init="../runs/a", vae="vaes/better.safetensors")
    networks = {"features": "DINOv2 ViT-L/14 (a/b)"}
    meta = {"target": ".", "data": "my/pictures", "floor data": "owner/set", "lora": "loras/x.safetensors"}
    meta |= {"models": {"clip": "owner/clip", "clip-l": "open_clip:hf-hub:owner/clip", "inception": "./w/pt.pth"}}
    results = [Results([], meta | {"networks": networks, "samples": 100})]
    text = card(config, trained.info, "diffusers", Path("me/student"), results, hub=True)
    shares = ["pictures", "now", "{0..9}.tar", *data[3:]]
    for said in (
        f"| data | {', '.join(f'`{one}` (17%)' for one in shares)} |",
        "| started as | `a` |",
        ", VAE `better.safetensors` |",
        f"target {tmp_path.name}, data pictures, floor data owner/set, lora x.safetensors, models {{'clip': "
        "'owner/clip', 'clip-l': 'open_clip:hf-hub:owner/clip', 'inception': 'pt.pth'}, networks "
        f"{networks}, samples 100.",
    ):
        assert said in text
