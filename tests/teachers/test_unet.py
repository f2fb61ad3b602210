"""What is the U-Nets' own: their predictions, ω, and the paper's critic."""

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from scott.errors import UserError
from scott.teachers.lora import Adapters, lora_targets
from scott.teachers.sd import UNetBackbone


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_teacher_x0_is_what_ddim_predicts(make_backbone, inputs, teacher_folders, family):
    backbone = make_backbone(family=family)
    x, t, cond = inputs(backbone)
    scheduler = DDIMScheduler.from_pretrained(teacher_folders[family], subfolder="scheduler")
    scheduler.set_timesteps(1000)
    added = {"text_embeds": cond.get("pooled"), "time_ids": cond.get("time_ids")} if family == "sdxl" else None
    with torch.no_grad():
        x0 = backbone.teacher(x, t, cond)
        output = backbone.network(x, t, cond["text"], added_cond_kwargs=added).sample
    for i in range(2):
        row = slice(i, i + 1)
        expected = scheduler.step(output[row], int(t[i]), x[row]).pred_original_sample
        torch.testing.assert_close(x0[row], expected, rtol=1e-4, atol=1e-4)


# --- the paper's critic --------------------------------------------------------------------------------------


def test_the_papers_critic_is_3_6_percent_of_sd15():
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64,
            in_channels=4,
            out_channels=4,
            block_out_channels=(320, 640, 1280, 1280),
            layers_per_block=2,
            down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
            up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
            cross_attention_dim=768,
            attention_head_dim=8,
        )
        total = sum(p.numel() for p in unet.parameters())
        layers = lora_targets(unet, UNetBackbone.decoder_prefixes, UNetBackbone.critic_layers)
        adapters = Adapters(unet)
        adapters.add("critic", layers, 64, 64.0)
    assert total == 859_520_964
    assert 0.034 < sum(p.numel() for p in adapters.parameters("critic").values()) / total < 0.038


# --- ω -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_omega_reaches_a_full_student_as_the_stock_pipeline_feeds_it(make_backbone, inputs, perturb, family):
    backbone = make_backbone("full", family=family)
    x, t, cond = inputs(backbone)
    perturb(backbone.student_parameters())
    seen = []
    student = backbone.copies["student"]
    student.register_forward_pre_hook(lambda m, a, kw: seen.append(kw["timestep_cond"]), with_kwargs=True)
    with torch.no_grad():
        mine = backbone.student(x, t, cond)
        other = backbone.student(x, t, cond | {"guidance": torch.tensor([3.0, 8.0])})
    stock = backbone.pipeline.get_guidance_scale_embedding(torch.tensor([3.0, 7.5]) - 1, embedding_dim=256)
    assert torch.equal(seen[0], stock)
    torch.testing.assert_close(other[0], mine[0])
    assert not torch.allclose(other[1], mine[1])


def test_a_student_that_takes_omega_asks_for_it(make_backbone, inputs):
    backbone = make_backbone("full")
    x, t, cond = inputs(backbone)
    del cond["guidance"]
    with pytest.raises(UserError, match=r"give cond\['guidance'\]"):
        backbone.student(x, t, cond)


def test_the_guided_teacher_ignores_the_students_omega(make_backbone, inputs):
    backbone = make_backbone()
    x, t, cond = inputs(backbone)
    own = {name: value for name, value in cond.items() if name != "guidance"}
    uncond, drawn = backbone.unconditional(), []
    for low_memory in (False, True):
        guided = backbone.guided_teacher(uncond, 2.0, low_memory)
        assert torch.equal(guided(x, t, cond), guided(x, t, own))
        drawn.append(guided(x, t, cond))
    torch.testing.assert_close(*drawn, rtol=1e-4, atol=1e-5)


def test_a_second_student_is_refused(make_backbone):
    with pytest.raises(UserError, match="got full, and the backbone has a lora student"):
        make_backbone("lora").add_student("full")
