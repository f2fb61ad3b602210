"""The config files of published pipelines (`configs/`), laid out as the folders they come in, without the weights."""

import json
from pathlib import Path

NAMES = ("sd15", "sd21", "sdxl", "pixart", "pixart-1024", "sd3")


def write_configs(name, folder):
    """Write one pipeline's config files below `folder`, which is returned."""
    files = json.loads((Path(__file__).parent / "configs" / f"{name}.json").read_text())
    for path, config in files.items():
        if path != "source":
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(config))
    return folder
