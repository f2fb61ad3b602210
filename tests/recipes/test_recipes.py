"""Every recipe's models at their real size, on the meta device; and each recipe run on a tiny pipeline."""

import dataclasses
import gc
import json
import re
from functools import cache

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.recipes.needs import PUBLISHED, TABLE, drawing, equipped, page_of, page_row, row, smaller
from tests.teachers.published import write_configs
from torch import nn

from scott.commands import validation
from scott.commands.distill import config_of, run
from scott.commands.sample import load_student
from scott.mini import embedded
from scott.mini.embedded import TEACHER
from scott.recipes import RECIPES
from scott.samplers import StudentSampler
from scott.teachers import load_backbone
from scott.teachers.skeleton import skeleton
from scott.training.budget import budget_of

COUNTED = {
    # (recipe, configs): (network, student's LoRA, its layers, critic with its head, its layers), all at rank 64
    # networks: see tests/teachers/test_skeleton.py; the rest counted here, and by hand in `low_rank_size`
    ("sd15", "sd15"): (859_520_964, 64_159_744, 256, 30_581_057, 111),
    ("realistic-vision", "sd15"): (859_520_964, 64_159_744, 256, 30_581_057, 111),
    ("sd15", "sd21"): (865_910_724, 64_684_032, 256, 30_875_969, 111),
    ("sdxl", "sdxl"): (2_567_463_684, 194_478_080, 771, 62_275_905, 317),
    ("pixart", "pixart"): (610_856_096, 53_673_984, 280, 26_838_145, 140),
    ("pixart", "pixart-1024"): (611_349_152, 53_673_984, 280, 26_838_145, 140),
    ("sd3", "sd3"): (2_028_328_000, 83_755_008, 285, 41_289_217, 141),
    ("sd35-medium", "sd35-medium"): (2_243_171_520, 93_978_624, 337, 42_075_649, 145),
    ("sd35-large", "sd35-large"): (8_056_627_520, 211_058_688, 453, 104_597_889, 225),
    ("flux", "flux"): (11_901_408_320, 261_488_640, 418, 96_930_817, 145),
    ("chroma", "chroma"): (8_899_983_424, 261_488_640, 418, 96_930_817, 145),
    ("flux2-klein", "flux2-klein"): (3_875_544_576, 96_337_920, 100, 38_341_633, 26),
    ("qwen-image", "qwen-image"): (20_430_401_088, 424_673_280, 720, 212_339_713, 360),
    ("z-image", "z-image"): (6_154_908_736, 158_760_960, 238, 70_045_441, 105),
    ("sana", "sana"): (1_604_462_752, 73_113_600, 200, 36_559_041, 100),
}

EMBEDDINGS = (
    r"time_emb_proj|time_embedding|add_embedding|adaln_single|caption_projection|time_text_embed|pos_embed|x_embedder"
    r"|img_in|txt_in|img_mod|txt_mod|all_x_embedder|t_embedder|cap_embedder|adaLN_modulation|all_final_layer"
    r"|patch_embed|time_embed|conv_depth|time_guidance_embed|distilled_guidance_layer|\w+_stream_modulation(_\w+)?"
)
NOT_ADAPTED = re.compile(
    rf"conv_in\b|conv_out\b|(^|\.)({EMBEDDINGS})|^proj_out|context_embedder|\.norm\d?\b|\.norm\d_|^norm_out"
)
"""All that a student's LoRA leaves out: input and output layers, and what embeds times, sizes and text."""
FEED_FORWARD = re.compile(r"\.ff(_context)?\.|\.proj_(in|out)$")


def size(parameters):
    return sum(parameter.numel() for parameter in parameters.values())


def low_rank_size(layers, rank):
    """r (fan in + out) a layer: A is (r, in) or (r, in, k, k), and B (out, r)."""
    return sum(rank * (layer.weight[0].numel() + layer.weight.shape[0]) for layer in layers.values())


def layers_of(network):
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}


@pytest.fixture(scope="module")
def at_real_size(tmp_path_factory):
    """`at_real_size(recipe, configs)`: folder, config, and a backbone with its student and critic."""

    @cache
    def make(recipe, configs):
        folder = write_configs(configs, tmp_path_factory.mktemp(configs))
        made = folder, *equipped(recipe, folder)
        gc.collect()
        gc.freeze()  # hundreds of thousands of objects, which each later collection would look through
        return made

    yield make
    make.cache_clear()
    gc.unfreeze()


def test_every_recipe_is_counted_here():
    assert {recipe for recipe, _ in COUNTED} | {"mini"} == set(RECIPES)
    assert set(PUBLISHED) | {"mini"} == set(RECIPES)


@pytest.mark.parametrize(("recipe", "configs"), COUNTED, ids=map("-".join, COUNTED))
def test_what_a_recipe_trains_at_its_real_size(recipe, configs, at_real_size):
    folder, config, backbone = at_real_size(recipe, configs)
    plain = skeleton(folder)
    assert (config.train, config.lora_rank, config.critic, config.critic_rank) == ("lora", 64, "lora", 64)
    student, critic = backbone.student_parameters(), backbone.critic_parameters()
    network = plain.network.num_parameters()
    counts = (network, size(student), len(student) // 2, size(critic), (len(critic) - 2) // 2)
    assert counts == COUNTED[recipe, configs]
    if configs == "sd15":
        assert 0.034 <= size(critic) / network <= 0.038, "the paper's 3.6 %"

    wanted = {name: layer for name, layer in layers_of(plain.network).items() if not NOT_ADAPTED.search(name)}
    assert adapted(student) == wanted.keys()
    assert size(student) == low_rank_size(wanted, 64)
    decoder = {name: layer for name, layer in wanted.items() if name.startswith(plain.decoder_prefixes)}
    if plain.part == "unet":  # the paper's critic: attention and convolutions
        decoder = {name: layer for name, layer in decoder.items() if not FEED_FORWARD.search(name)}
    assert adapted(critic) == decoder.keys()
    last = plain.network.get_submodule(plain.output_layer)
    features = last.in_channels if plain.part == "unet" else last.in_features
    assert size(critic) == low_rank_size(decoder, 64) + features + 1
    assert {p.device.type for p in [*student.values(), *critic.values()]} == {"meta"}
    assert {p.dtype for p in [*student.values(), *critic.values()]} == {torch.float32}
    assert backbone.network.dtype == config.dtype


def adapted(parameters):
    return {name.removesuffix(".lora_A.weight") for name in parameters if name.endswith(".lora_A.weight")}


@pytest.mark.parametrize("recipe", sorted(PUBLISHED.keys() - {"realistic-vision"}))
def test_a_recipes_run_fits_a_card_of_80_gb(recipe, at_real_size):
    """2 GB are left for what CUDA itself takes. No recipe has more passes than it needs. docs/teachers.md and the page
    of its family say so, with how its student is drawn."""
    _, config, backbone = at_real_size(recipe, PUBLISHED[recipe])
    budget = budget_of(backbone, config)
    assert budget.peak <= 78e9
    assert row(recipe, config, backbone, budget) in TABLE.read_text().splitlines()
    overview = re.search(rf"^\| \[`{recipe}`.*$", TABLE.read_text(), re.MULTILINE)[0]
    page = page_of(recipe).read_text()
    assert f"| {budget.parameters:,} |" in overview
    assert f"{budget.parameters:,}" in page
    assert f" {smaller(config)[0]}\n" in page
    assert f"\n\n{drawing(recipe, config, backbone)}\n\n" in page
    assert f"\n{page_row(recipe, config, backbone, budget)}\n" in page
    if config.gradient_accumulation > 1:
        rest = budget.total - budget.training["activations"]
        fewer = config.gradient_accumulation // 2
        assert rest + budget.training["activations"] * config.gradient_accumulation / fewer > 78e9


def test_a_batch_of_ones_own_is_taken_in_as_few_passes_as_fit():
    passes = {size: RECIPES["qwen-image"](data="d", batch_size=size).gradient_accumulation for size in (1, 4, 6, 7, 64)}
    assert passes == {1: 1, 4: 1, 6: 2, 7: 7, 64: 16}
    assert RECIPES["qwen-image"](data="d", gradient_accumulation=8).gradient_accumulation == 8


def test_processes_share_the_rows_that_one_would_take_in_passes():
    passes = {count: config_of("qwen-image", {"data": "d"}, count)[1].gradient_accumulation for count in (1, 2, 8, 64)}
    assert passes == {1: 4, 2: 2, 8: 1, 64: 1}
    assert config_of("qwen-image", {"data": "d", "gradient_accumulation": 8}, 2)[1].gradient_accumulation == 8
    assert config_of("sd15", {"data": "d", "batch_size": 512}, 4)[1].gradient_accumulation == 4
    assert config_of("mini", {}, 2)[1].gradient_accumulation == 1


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_a_full_student_is_the_whole_network_and_a_unets_takes_omega(recipe, at_real_size):
    *_, backbone = at_real_size(recipe, PUBLISHED[recipe])
    # ω is embedded in 256 numbers, which join those of the time in the width of the first block
    extra = 256 * backbone.network.config.block_out_channels[0] if backbone.part == "unet" else 0
    assert backbone.takes_guidance == (backbone.part == "unet" or backbone.teacher_calls == 1)
    assert backbone.full_student().num_parameters() == COUNTED[recipe, PUBLISHED[recipe]][0] + extra


def test_the_embedded_teachers_recipe():
    plain = skeleton(TEACHER)
    ours, with_heads = equipped("mini", TEACHER)
    assert (ours.train, ours.critic, adapted(with_heads.critic_parameters())) == ("full", "heads", set())
    config, backbone = equipped("mini", TEACHER, method="paper", critic_rank=16)
    assert (config.train, config.critic, config.critic_rank) == ("full", "lora", 16)
    width = plain.network.config.block_out_channels[0]
    assert size(backbone.student_parameters()) == plain.network.num_parameters() + 256 * width
    layers = layers_of(plain.network)
    decoder = {name: layers[name] for name in adapted(backbone.critic_parameters())}
    assert size(backbone.critic_parameters()) == low_rank_size(decoder, 16) + width + 1


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for index, caption in enumerate(["a cat", "dog", "red", ""]):
        Image.effect_noise((64, 64), 60.0 + index).convert("RGB").save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(caption)
    return folder


TINY = {"mini": None, "sd15": "sd1", "sdxl": "sdxl", "pixart": "pixart", "sd3": "sd3"}


FLOWS = {name: name for name in ("flux", "chroma", "flux2-klein", "qwen-image", "z-image", "sana", "sd35-large")}
FLOWS |= {"sd35-medium": "sd35"}


@pytest.mark.parametrize("train", ["lora", "full"])
def test_realistic_vision_is_sd15_of_another_teacher(train):
    """Whose tiny networks would run the same."""
    ours, other = (dataclasses.asdict(RECIPES[name](data="d", train=train)) for name in ("realistic-vision", "sd15"))
    assert {name for name in ours if ours[name] != other[name]} == {"teacher", "out"}


@pytest.mark.parametrize(("recipe", "family"), [*TINY.items(), ("sd15", "sd2"), *FLOWS.items()])
def test_a_recipe_trains_and_samples(recipe, family, teacher_folders, pictures, tmp_path, monkeypatch):
    """Three steps (of later families one), the exports of every run, and a picture in two by the student that was
    saved, with the recipe's own settings but for sizes and rates.

    Warming up to 8e-6 would move a student by less than bf16 shows.
    """
    monkeypatch.setattr(validation, "PROMPTS", 1)
    monkeypatch.setattr(validation, "FEW_STEPS", (1, 2))
    steps = 1 if recipe in FLOWS else 3
    small = {"batch_size": 2, "max_steps": steps, "lora_rank": 4, "critic_rank": 4, "log_every": 1}
    small |= {"loader_workers": 0}  # with 2, the default: tests/training/test_trainer.py, test_stopped.py
    fast = {"learning_rate": 1e-2, "critic_learning_rate": 1e-2, "warmup_steps": 0}
    teacher = str(teacher_folders[family]) if family else "mini"
    small |= {"resolution": 64} if recipe in FLOWS else {}  # their pipelines' own are too many for a test
    config = RECIPES[recipe](teacher=teacher, data=str(pictures), out=tmp_path / "run", **small, **fast)
    run(config, lambda *_: None)

    log = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in log] == [*range(1, steps + 1), steps], "the last step is drawn too"
    for model in ("student", "target", "critic"):
        (file,) = config.out.glob(f"checkpoints/*/{model}.safetensors")
        assert all(bool(parameter.isfinite().all()) for parameter in load_file(file).values())
    omega = (config.guidance_min + config.guidance_max) / 2
    student = load_student(str(config.out))
    backbone, plain = student.backbone, load_backbone(embedded.teacher_folder(teacher))
    plain.resize(backbone.resolution)
    drawn = student.sampler(2, omega)(["a cat", "dog"], 0)
    untrained = StudentSampler(plain, plain.teacher, student.grid, 2, omega)(["a cat", "dog"], 0)
    assert drawn.shape == (2, 3, backbone.resolution, backbone.resolution)
    assert bool(drawn.isfinite().all())
    assert not torch.equal(drawn, untrained)
    index = json.loads((config.out / "student" / "model_index.json").read_text())
    assert index["_class_name"] == type(backbone.pipeline).__name__
    assert list((config.out / "student" / backbone.part).glob("*.safetensors"))
