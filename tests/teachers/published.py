"""The config files of published pipelines, laid out as the folders they come in, without the weights.

They are in `configs/` here and in scott's own, which single files are read by.
"""

import json
from pathlib import Path

from scott.teachers import single_file

NAMES = ("sd15", "sd21", "sdxl", "pixart", "pixart-1024", "sd3", "sd35-medium", "sd35-large", "flux")
NAMES += ("chroma", "flux2-klein", "qwen-image", "z-image", "sana")


def write_configs(name, folder):
    """Write one pipeline's config files below `folder`, which is returned."""
    for path, config in published(name).items():
        if path != "source":
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(config))
    return folder


def published(name):
    """Path → content of one pipeline's config files."""
    return single_file.published(name, Path(__file__).parent / "configs")
