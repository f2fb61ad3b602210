"""A VAE's latents as the network sees them: the pipelines' own formulas, whatever statistics the VAE has."""

import pytest
import torch
from diffusers import AutoencoderKLFlux2, Flux2Pipeline
from tests.tiny.parts import tiny_vae

from scott.errors import UserError
from scott.teachers.encoders import LatentNormaliser
from scott.teachers.fingerprint import differing, fingerprints

MEAN, STD = [0.5, -1.0, 2.0, 0.0], [1.0, 0.5, 2.0, 3.0]


def test_a_vae_with_statistics_by_channel_is_decoded_as_sdxls_pipeline_does(make_backbone):
    pipeline = make_backbone(family="sdxl").pipeline
    before = fingerprints(make_backbone(family="sdxl"))["vae"]
    torch.manual_seed(0)
    pipeline.register_modules(vae=tiny_vae(latents_mean=MEAN, latents_std=STD))
    backbone = type(make_backbone(family="sdxl"))(pipeline)
    latents = torch.randn(1, *backbone.latent_shape)
    denormalised = latents * torch.tensor(STD).view(1, 4, 1, 1) / pipeline.vae.config.scaling_factor
    stock = pipeline.vae.decode(denormalised + torch.tensor(MEAN).view(1, 4, 1, 1)).sample
    torch.testing.assert_close(backbone.decode(latents), (stock / 2 + 0.5).clamp(0, 1))
    # and back: an image's latents have zero mean and unit deviation where the VAE's statistics are its own
    posterior = pipeline.vae.encode(2 * torch.rand(1, 3, 64, 64) - 1).latent_dist
    normaliser = backbone.normaliser
    torch.testing.assert_close(normaliser.restore(normaliser.normalise(posterior.mean)), posterior.mean)
    torch.testing.assert_close(
        normaliser.deviation(posterior.std),
        posterior.std / torch.tensor(STD).view(1, 4, 1, 1) * pipeline.vae.config.scaling_factor,
    )
    assert differing(before, fingerprints(backbone)["vae"])


def test_a_vae_with_a_batch_norm_is_normalised_as_flux2s_pipeline_does():
    torch.manual_seed(0)
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    ).eval()
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    z = torch.randn(2, 4, 6, 8)
    folded = Flux2Pipeline._patchify_latents(z)
    std = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
    expected = (folded - vae.bn.running_mean.view(1, -1, 1, 1)) / std
    normaliser = LatentNormaliser.of(vae)
    assert normaliser.patch == 2
    torch.testing.assert_close(normaliser.normalise(z), expected)
    torch.testing.assert_close(normaliser.restore(expected), z)


@pytest.mark.parametrize("shift", [None, 0.1])
def test_a_factor_and_a_shift(shift):
    vae = tiny_vae(shift_factor=shift, scaling_factor=0.5)
    z = torch.randn(2, 4, 3, 3)
    assert torch.equal(LatentNormaliser.of(vae).normalise(z), (z - (shift or 0.0)) * 0.5)
    assert torch.equal(LatentNormaliser.of(vae).restore(z), z / 0.5 + (shift or 0.0))


def test_pictures_go_through_the_vae_so_many_at_a_time(make_backbone, monkeypatch):
    """Whole rows of them, whatever is asked for at once, and at least one."""
    backbone = make_backbone()
    pixels = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    whole = backbone.encode_images(pixels)
    drawn, passes = backbone.decode(whole[0]), []
    encode, decode = backbone.vae.encode, backbone.vae.decode
    monkeypatch.setattr(backbone.vae, "encode", lambda x: passes.append(len(x)) or encode(x))
    monkeypatch.setattr(backbone.vae, "decode", lambda x: passes.append(len(x)) or decode(x))
    for most, expected in ((2 * 64**2, [2, 2, 1]), (64**2 - 1, [1] * 5)):
        monkeypatch.setattr(backbone, "pixels_at_once", most, raising=False)
        for made, of in ((backbone.encode_images(pixels), whole), (backbone.decode(whole[0]), drawn)):
            torch.testing.assert_close(made, of)
        assert passes == expected * 2
        passes.clear()


@pytest.mark.parametrize("prompts", ["a cat", []])
def test_prompts_are_a_list_of_one_or_more(make_backbone, prompts):
    """A text is a sequence of texts, too: of its letters."""
    with pytest.raises(UserError, match=r"got prompts .*; expected a list"):
        make_backbone().encode_prompts(prompts)


def test_pixels_in_whole_numbers_are_refused(make_backbone):
    """2 x − 1 of them would overflow."""
    with pytest.raises(UserError, match=r"got pixels in torch\.uint8"):
        make_backbone().encode_images(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
