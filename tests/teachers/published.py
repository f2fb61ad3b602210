"""The config files of published pipelines, laid out as the folders they come in, without the weights.

They are in `configs/` here and in scott's own, which single files are read by. A file that is another pipeline's but
for a few values names that pipeline as `like`, and which file as `like_file`.
"""

import json
from pathlib import Path

from scott.teachers.single_file import CONFIGS

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
    folders = (CONFIGS, Path(__file__).parent / "configs")
    (file,) = (folder / f"{name}.json" for folder in folders if (folder / f"{name}.json").is_file())
    files = json.loads(file.read_text())
    for path, config in files.items():
        if "like" in config and path != "source":
            other = published(config.pop("like"))[config.pop("like_file", path)]
            files[path] = other | config
    return files
