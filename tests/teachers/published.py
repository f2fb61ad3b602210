"""The config files of published pipelines (`configs/`), laid out as the folders they come in, without the weights.

A file that is another pipeline's but for a few values names that pipeline as `like`, and which file as `like_file`.
"""

import json
from pathlib import Path

NAMES = ("sd15", "sd21", "sdxl", "pixart", "pixart-1024", "sd3", "sd35-medium", "sd35-large", "flux")
NAMES += ("chroma", "flux2-klein", "qwen-image", "z-image", "sana")


def write_configs(name, folder):
    """Write one pipeline's config files below `folder`, which is returned."""
    for path, config in _read(name).items():
        if path != "source":
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(config))
    return folder


def _read(name):
    files = json.loads((Path(__file__).parent / "configs" / f"{name}.json").read_text())
    for path, config in files.items():
        if "like" in config and path != "source":
            other = _read(config.pop("like"))[config.pop("like_file", path)]
            files[path] = other | config
    return files
