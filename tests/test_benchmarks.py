"""The benchmarks measure what they say: the plain way is LCM, the bare calls are the step's own, the keys are there."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from benchmarks import commits, harness, sample, step
from benchmarks.bare import bare_step
from benchmarks.models import MODELS, Model, random_data, sd50m
from benchmarks.plain import PlainLCM
from benchmarks.timing import interleaved

from scott.errors import UserError
from scott.recipes import configs
from scott.rng import generator_for
from scott.teachers import load_backbone
from scott.training.counting import counted
from scott.training.draws import Draws
from scott.training.step import Distillation

BATCH = 2


@pytest.fixture
def config(tmp_path):
    return configs.sd15(
        data="none", out=tmp_path, train="lora", lora_rank=4, critic_rank=4, batch_size=BATCH, precision="fp32"
    )


@pytest.fixture
def model(teacher_folders, config):
    return Model(lambda: load_backbone(teacher_folders["sd1"]), config, BATCH)


@pytest.fixture
def trained(make_backbone, perturb):
    """A backbone whose student, target and critic are each another model than the teacher."""
    backbone = make_backbone("lora", critic_rank=4)
    for seed, parameters in enumerate(
        (backbone.student_parameters(), backbone.target_parameters(), backbone.critic_parameters())
    ):
        perturb(parameters, seed)
    return backbone


def test_the_models_take_the_papers_step_whose_calls_the_floor_makes():
    for name, measured in MODELS.items():
        assert (measured.config.critic, measured.config.critic_fakes) == ("lora", "noised"), name
        assert (measured.config.adversarial_share, measured.config.jump_reuse) == (0, 1), name


def test_the_plain_step_has_our_loss_in_the_lcm_setting(model, trained):
    config = step.lcm(model.config)
    plain, data = PlainLCM(model.teacher().pipeline, config), random_data(trained, BATCH)
    plain.student.load_state_dict(dict(trained.adapters.merged_state("student")))
    plain.target.load_state_dict(dict(trained.adapters.merged_state("target")))
    distillation = Distillation.of(trained, config)
    drawn = Draws.make(data.encoded.mean.shape, distillation.grid, config, generator_for(0))
    for t_n in ([19, 999], [379, 579]):  # jumps from 19 end on clean data
        draws = dataclasses.replace(drawn, t_n=torch.tensor(t_n))
        ours = distillation.step(data.encoded, draws)
        theirs = plain.loss(data.pixels, data.prompts, draws)
        assert theirs.item() > 1e-4
        assert theirs.item() == pytest.approx(ours["consistency"].item(), rel=1e-4)


def test_a_plain_step_trains_the_student_moves_the_target_and_leaves_the_teacher(model):
    plain, data = PlainLCM(model.teacher().pipeline, step.lcm(model.config)), random_data(model.teacher(), BATCH)
    before = {name: value.clone() for name, value in plain.teacher.state_dict().items()}
    grid = plain.config.make_grid(model.teacher().schedule)
    plain.step(data.pixels, data.prompts, Draws.make(data.encoded.mean.shape, grid, plain.config, generator_for(0)))
    for name, value in before.items():
        student, target = plain.student.state_dict()[name], plain.target.state_dict()[name]
        assert torch.equal(plain.teacher.state_dict()[name], value)
        torch.testing.assert_close(target - value, (1 - plain.config.ema_decay) * (student - value), atol=1e-7, rtol=0)
    assert any(not torch.equal(plain.student.state_dict()[name], value) for name, value in before.items())


def test_the_floor_makes_the_network_calls_of_the_step(trained, config):
    """Every block runs as often, on as many samples and under the same adapter, in the step and in its floor."""
    data = random_data(trained, BATCH).encoded
    distillation = Distillation.of(trained, config)
    draws = Draws.make(data.mean.shape, distillation.grid, config, generator_for(0))
    seen = []
    for name, module in trained.network.named_modules():
        if name.count(".") == 1 and "blocks" in name:
            module.register_forward_pre_hook(
                lambda module, given, options, name=name: seen.append(
                    (name, len((*given, *options.values())[0]), trained.adapters.active, torch.is_grad_enabled())
                ),
                with_kwargs=True,
            )
    distillation.step(data, draws)
    ours = sorted(map(str, seen))
    seen.clear()
    bare_step(trained, data.mean, data.cond, distillation.uncond, config.substeps)
    assert len(ours) > 20
    assert sorted(map(str, seen)) == ours


def test_network_calls_of_the_step(trained, config):
    distillation, data = Distillation.of(trained, config), random_data(trained, BATCH).encoded
    with counted(trained) as counts:
        distillation.step(data, Draws.make(data.mean.shape, distillation.grid, config, generator_for(0)))
    # teacher 3 x 2, target 1, student 1 + 2, critic on fake and data 1 + 1, towards the student 2, its own 2 decoders
    assert step.network_calls(counts.calls(), BATCH) == {"scott": 16, "plain": 6}


def test_resident_bytes_count_each_weight_once(model, trained):
    def size(parameters):
        return 4 * sum(p.numel() for p in parameters)

    teacher = model.teacher()
    models = (trained.student_parameters(), trained.target_parameters(), trained.critic_parameters())
    expected = size(teacher.network.parameters())
    expected += sum(size(parameters.values()) for parameters in models)
    assert step.resident_bytes(trained) == expected
    plain = PlainLCM(teacher.pipeline, step.lcm(model.config))
    assert step.plain_bytes(plain) == 3 * size(teacher.network.parameters()) + size(
        [*teacher.vae.parameters(), *teacher.pipeline.text_encoder.parameters()]
    )


@pytest.mark.parametrize(
    ("benchmark", "keys"),
    [
        (step, {"step_over_floor", "adapter_overhead", "per_call_over_plain", "resident_weight_ratio"}),
        (sample, {"two_step_over_bare"}),
    ],
)
def test_json_has_the_keys(benchmark, keys, model, monkeypatch, capsys):
    monkeypatch.setattr(harness, "MODELS", {"tiny": model})
    harness.main(benchmark.measure, "", ["--json", "--repeats", "1", "--batch-size", "1"])
    figures = json.loads(capsys.readouterr().out)
    assert all(figures[key] > 0 for key in keys)
    assert (figures["model"], figures["batch_size"], figures["repeats"]) == ("tiny", 1, 1)


def test_a_line_a_model_or_a_table(monkeypatch, capsys):
    monkeypatch.setattr(harness, "MODELS", {"one": 1.0, "two": 2.0})

    def measure(model, batch_size, repeats):
        return {"two_step_over_bare": model, "seconds": {"student_2": 0.123456}}

    harness.main(measure, "", ["--json"])
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(figures["model"], figures["two_step_over_bare"]) for figures in printed] == [("one", 1.0), ("two", 2.0)]
    harness.main(measure, "", ["--model", "two"])
    table = capsys.readouterr().out
    assert all(text in table for text in ("model two", "two_step_over_bare", "seconds.student_2", "0.1235"))
    assert "model one" not in table


def test_an_unknown_model_is_refused_with_the_known_ones():
    with pytest.raises(SystemExit, match="'mini', 'sd50m', 'all'"):
        harness.main(step.measure, "", ["--model", "sd60m"])


def test_a_checkout_beside_another(tmp_path):
    """Both make their steps; how long they take is no test's business."""
    here = Path(commits.__file__).parents[1]
    figures = commits.measure(commits.Options(here, batch_size=1, repeats=1, threads=1))
    assert set(figures) == {"new_over_old", "new_seconds", "old_seconds"}
    assert min(figures.values()) > 0
    with pytest.raises(UserError, match=r"has no benchmarks/step\.py; give a checkout of scott"):
        commits.measure(commits.Options(tmp_path))


def test_rounds_alternate_and_the_first_is_not_counted():
    order = []
    times = interleaved({name: lambda name=name: order.append(name) for name in "ab"}, 2)
    assert "".join(order) == "ababba"
    assert {name: len(values) for name, values in times.seconds.items()} == {"a": 2, "b": 2}


def test_ratios_are_medians_of_rounds():
    times = interleaved({}, 1)
    times = dataclasses.replace(times, seconds={"a": [2.0, 30.0, 8.0], "b": [1.0, 10.0, 2.0]})
    assert times.ratio("a", "b") == 3.0


def test_the_fifty_million_network_has_the_shape_of_stable_diffusion():
    backbone = sd50m()
    count = sum(p.numel() for p in backbone.network.parameters())
    assert 45e6 < count < 55e6
    assert backbone.latent_shape == (4, 32, 32)
    assert backbone.resolution == 256
    assert backbone.encode_prompts(["a cat"])["text"].shape == (1, 77, 192)
