"""How the tests of this room start a run."""

import pytest
from tests.training.runs import STEPS, source

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
        }
        config = DistillConfig(**(settings | changes))
        if backbone is None:
            critic = {"critic_rank": 2, "critic": config.critic} if config.has_critic else {}
            backbone = make_backbone(train, family=family, **critic)
        return distill(backbone, data or source(backbone), config, hooks), backbone

    return run
