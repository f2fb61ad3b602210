"""How the tests of this room start a run."""

import pytest
from PIL import Image
from tests.tiny.stable import tiny_sd
from tests.training.launch import here
from tests.training.launch import start as start_process
from tests.training.runs import SPREAD_STEPS, STEPS, source

from scott.training.config import DistillConfig
from scott.training.trainer import distill


@pytest.fixture
def start(make_backbone):
    """Start `scott distill` once more, as a fresh process would: new networks, the same command."""

    def run(out, train="lora", hooks=None, data=None, backbone=None, family="sd1", **changes):
        settings = {
            "teacher": "tiny",
            "data": "random",
            "out": out,
            "train": train,
            "max_steps": STEPS,
            "batch_size": 2,
            "warmup_steps": 3,
            "learning_rate": 1e-3,
            "critic_learning_rate": 1e-3,
            "substeps": 1,
            "log_every": 1,
            "checkpoint_every": 2,
            "sample_every": 3,
            "loader_workers": 0,
            "tracker": "none",
        }
        config = DistillConfig(**(settings | changes))
        if backbone is None:
            critic = {"critic_rank": 2, "critic": config.critic} if config.has_critic else {}
            backbone = make_backbone(train, family=family, **critic)
        return distill(backbone, data or source(backbone), config, hooks), backbone

    return run


@pytest.fixture(scope="session")
def small_teacher(tmp_path_factory):
    """A pipeline whose U-Net has one block on each side, for runs in many processes."""
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    return tiny_sd(tmp_path_factory.mktemp("small"), block_out_channels=(32,), **blocks)


@pytest.fixture(scope="module")
def shards(small_teacher, tmp_path_factory):
    """Prepared shards of eleven pictures: epochs end within batches."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(11):
        Image.effect_noise((64, 64), 40.0 + 5 * index).convert("RGB").save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text("a cat" if index % 2 else "dog")
    out = tmp_path_factory.mktemp("data") / "shards"
    here("prepare", folder, "--teacher", small_teacher, "--out", out)
    return out


@pytest.fixture(scope="module")
def words(small_teacher, shards):
    """`words(out, *flags)`: the command, which exports nothing in this process."""

    def command(out, *flags):
        settings = {
            "--teacher": small_teacher,
            "--data": shards,
            "--out": out,
            "--max-steps": SPREAD_STEPS,
            "--batch-size": 4,
            "--precision": "fp32",
            "--lora-rank": 4,
            "--critic-rank": 2,
            "--learning-rate": 1e-3,
            "--critic-learning-rate": 1e-3,
            "--critic-start": 0.25,
            "--warmup-steps": 0,
            "--log-every": 1,
            "--checkpoint-every": 3,
            "--sample-every": 1000,
            "--loader-workers": 2,
            "--tracker": "none",
        }
        given = [str(word) for setting in settings.items() for word in setting]
        return ["distill", "sd15", *given, "--no-gradient-checkpointing", *flags]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scott.commands.distill.export_finished", lambda *given: None)
        yield command


@pytest.fixture(scope="module")
def distil(words):
    """`distil(out, *flags, processes=1)`: the command, started."""
    return lambda out, *flags, processes=1: start_process("scott.cli", *words(out, *flags), processes=processes)


@pytest.fixture(scope="module")
def one(words, tmp_path_factory):
    """The folder of an uninterrupted run of one process."""
    out = tmp_path_factory.mktemp("runs") / "one"
    here(*words(out))
    return out
