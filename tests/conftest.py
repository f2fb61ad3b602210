"""A whole pipeline of each family, small enough to run a test in, and backbones made of them."""

import copy
import functools
import gc
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.utils.logging import disable_progress_bar, set_verbosity_error
from hypothesis import HealthCheck, settings
from peft import LoraConfig, get_peft_model_state_dict
from tests.tiny.families import TINY

from scott.cli import main
from scott.commands import validation
from scott.diffusion import JumpGrid
from scott.teachers import load_backbone

TESTS = Path(__file__).parent
SLOW = ("training/test_processes.py", "golden/test_golden.py", "training/test_stopped.py")
SLOW += ("training/test_trainer.py", "test_pages_run.py", "recipes/test_recipes.py", "training/test_budget.py")
SLOW += ("commands/test_demo.py", "app/test_browser.py", "test_notebooks.py", "test_cli_export.py")
SLOW += (
    "test_benchmarks.py",
    "recipes/test_real_scale.py",
    "teachers/test_families.py",
    "teachers/test_flow_families.py",
    "test_cli.py",
)
FEWER_SAMPLES = {"PROMPTS": 2, "FEW_STEPS": (2,), "TEACHER_STEPS": 2}
disable_progress_bar()
set_verbosity_error()
FUZZ = settings(deadline=None, suppress_health_check=list(HealthCheck))  # how long anything takes is no test's business
settings.register_profile("scott", FUZZ, max_examples=40)
settings.register_profile("thorough", FUZZ, max_examples=1000)  # pytest --hypothesis-profile thorough
settings.load_profile("scott")
gc.disable()  # until all tests are imported, of which nothing is garbage


def pytest_collection_modifyitems(items):
    """Slow files first: whoever is free last then has a short one left."""
    rank = {TESTS / name: place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_collection_finish():
    """What was imported stays, and is not looked through again whenever garbage is collected: every 20,000 new objects,
    of which a copy of a backbone has as many, not every 700."""
    gc.set_threshold(20_000)
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def what_is_there_is_no_garbage():
    """As a file of tests begins: what the session made and imported since is not looked through again either, by the
    collections that scott asks for as a run drops its text encoders and each export its network."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def few_samples_on_the_way():
    """Of a run's student, and of its teacher beside them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, fewer in FEWER_SAMPLES.items():
            patch.setattr(validation, name, fewer)
        yield


@pytest.fixture
def command_line(monkeypatch, capfd):
    """`command_line(*arguments)` runs scott in this process: (exit code, standard output, standard error)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["scott", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def scott(command_line):
    """`scott(*arguments)`, the same: (exit code, what it printed on either stream)."""

    def run(*arguments):
        code, out, err = command_line(*arguments)
        return code, out + err

    return run


@pytest.fixture(scope="session")
def teacher_folders(tmp_path_factory):
    """family → folder of a tiny pipeline of `tests.tiny`, made when it is asked for. Not to be written to."""

    class Folders(dict):
        def __missing__(self, family):
            self[family] = tmp_path_factory.mktemp(family)
            with torch.random.fork_rng(devices=[]):  # a test that asks for it may have set its seed
                TINY[family](self[family])
            return self[family]

    return Folders()


@pytest.fixture(scope="session")
def style_lora(teacher_folders, tmp_path_factory):
    """`style_lora(family)`: a LoRA file of rank 2 on attention, as diffusers' own training scripts save it."""

    @functools.cache
    def make(family):
        pipe = DiffusionPipeline.from_pretrained(teacher_folders[family])
        part = "unet" if hasattr(pipe, "unet") else "transformer"
        torch.manual_seed(3)
        network = getattr(pipe, part)
        network.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
        folder = tmp_path_factory.mktemp("style")
        pipe.save_lora_weights(folder, **{f"{part}_lora_layers": get_peft_model_state_dict(network)})
        return folder / "pytorch_lora_weights.safetensors"

    return make


@pytest.fixture(params=["sd1", "sd2", "sdxl", "pixart", "sd3"])
def family(request):
    """Runs the test once for every family."""
    return request.param


@pytest.fixture(scope="session")
def sd_folders(teacher_folders):
    """prediction type → folder. Not to be written to."""
    return {"epsilon": teacher_folders["sd1"], "v_prediction": teacher_folders["sd2"]}


@pytest.fixture(scope="session")
def make_backbone(teacher_folders):
    """`make_backbone(train=None, critic_rank=0, family="sd1", critic="lora", dtype=torch.float32)`: a fresh one, alike
    each time."""

    def copied(backbone):
        # what no test writes to is shared
        frozen = (p for name, p in backbone.pipeline.components.items() if name.startswith(("vae", "text", "tok")))
        memo = {id(part): part for part in frozen if part is not None}
        # modules' tables of hooks, nearly all empty: made beforehand, they take a third less time
        for part in (backbone.network, *backbone.copies.values(), backbone.critic_model):
            for module in part.modules() if part is not None else ():
                memo |= {id(v): type(v)() for v in vars(module).values() if isinstance(v, dict | set) and not v}
        return copy.deepcopy(backbone, memo)

    @functools.cache
    def original(train, critic_rank, family, critic, dtype):
        if not train and not critic_rank:
            return load_backbone(teacher_folders[family], dtype)
        backbone = copied(original(None, 0, family, "lora", dtype))
        torch.manual_seed(1)
        if train:
            backbone.add_student(train, rank=4, alpha=4.0)
        if critic_rank:
            backbone.add_critic(critic_rank, critic)
        return backbone

    def make(train=None, critic_rank=0, family="sd1", critic="lora", dtype=torch.float32):
        return copied(original(train, critic_rank, family, critic, dtype))

    return make


@pytest.fixture(scope="session")
def inputs():
    """`inputs(backbone, seed=0)`: two states, their times (the last and a middle one) and their condition."""

    def make(backbone, seed=0):
        generator = torch.Generator().manual_seed(seed)
        cond = backbone.encode_prompts(["a cat", "dog"]) | {"guidance": torch.tensor([3.0, 7.5])}
        x = torch.randn(2, *backbone.latent_shape, generator=generator)
        return x, JumpGrid(backbone.schedule).times[[-1, 34]], cond

    return make


@pytest.fixture(scope="session")
def perturb():
    """`perturb(parameters, seed)` moves each parameter by N(0, 0.05²), in place."""

    def move(parameters, seed=0):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in parameters.values():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)

    return move
