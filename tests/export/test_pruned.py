"""U-Nets that are pruned: BK-SDM, which has no middle block, and SSD-1B, with transformers of other depths besides."""

import pytest
from tests.export.conftest import write
from tests.tiny.parts import tiny_unet
from tests.tiny.stable import tiny_sd, tiny_sdxl

from scott.errors import UserError
from scott.export.ldm import unet_names
from scott.export.single_file import read_checkpoint, save_checkpoint
from scott.teachers import load_backbone

PRUNED = {
    "bk-sdm": {"mid_block_type": None},
    "ssd-1b": {
        "mid_block_type": None,
        "transformer_layers_per_block": [1, 1],
        "reverse_transformer_layers_per_block": [1, [2, 1]],
    },
}


@pytest.fixture(params=PRUNED)
def trained(request, make_trained, tmp_path):
    """A LoRA student of one of them, whose run names its teacher."""
    folder, changes = tmp_path / "teacher", PRUNED[request.param]
    if request.param == "bk-sdm":
        tiny_sd(folder, **changes)
    else:
        tiny_sdxl(folder, **changes)
    return make_trained("sd1" if request.param == "bk-sdm" else "sdxl", backbone=load_backbone(folder), teacher=folder)


@pytest.mark.parametrize("kind", ["diffusers", "lora", "checkpoint"])
def test_a_student_of_a_pruned_unet_is_read_back(trained, tmp_path, kind):
    if kind != "checkpoint":
        write(trained, tmp_path / kind, kind)
        return
    (tmp_path / kind).mkdir()
    expected = trained.expected()
    save_checkpoint(trained, tmp_path / kind)
    read_checkpoint(tmp_path / kind, expected)


def test_layers_that_differ_from_block_to_block_have_no_original_names():
    network = tiny_unet(layers_per_block=[1, 2])
    with pytest.raises(UserError, match=r"no names for \[1, 2\] layers a block; use --to diffusers"):
        unet_names(network, [*network.state_dict()])
