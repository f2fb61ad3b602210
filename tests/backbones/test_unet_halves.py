"""Encoder and decoder, run apart, are the network's own forward pass, bit for bit."""

import pytest
import torch

from scott.backbones import adapters, unet_halves

DOWN = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
UP = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
NETWORKS = {
    "two levels": {},
    "sd2": {"use_linear_projection": True, "attention_head_dim": (2, 4)},
    "three levels": {
        "block_out_channels": (8, 16, 16),
        "down_block_types": DOWN,
        "up_block_types": UP,
        "layers_per_block": 2,
    },
    "plain middle": {"mid_block_type": "UNetMidBlock2D"},
}


def inputs(size):
    generator = torch.Generator().manual_seed(0)
    x, text = (torch.randn(shape, generator=generator) for shape in ((2, 4, *size), (2, 5, 32)))
    return x, torch.tensor([3, 871]), text


@torch.no_grad()
def assert_equal_forward(unet, x, t, text):
    whole = unet(x, t, text).sample
    halves = unet.conv_out(unet_halves.decode(unet, unet_halves.encode(unet, x, t, text)))
    assert torch.equal(halves, whole)


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (5, 8)], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_halves_are_the_whole(tiny_unet, name, size):
    assert_equal_forward(tiny_unet(**NETWORKS[name]), *inputs(size))


def test_halves_are_the_whole_with_the_critic_on(make_backbone, perturb):
    backbone = make_backbone("lora", critic_rank=4)
    plain = backbone.teacher(*inputs((8, 8))[:2], {"text": inputs((8, 8))[2]})
    perturb(backbone._lora("critic"))
    with adapters.adapter(backbone.unet, "critic"):
        for size in ((8, 8), (9, 7)):
            assert_equal_forward(backbone.unet, *inputs(size))
        changed = backbone.teacher(*inputs((8, 8))[:2], {"text": inputs((8, 8))[2]})
    assert not torch.equal(changed, plain)
