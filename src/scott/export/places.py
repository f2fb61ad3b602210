"""How a card names where things are: paths of this machine by their last part, what is on the hub by its id."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from scott.evaluation import Results
from scott.files import without_secrets
from scott.teacher_source import SINGLE_FILE
from scott.training.config import DistillConfig

HUB_ID = re.compile(r"(?!\.\.?/)[\w.-]+/[\w.-]+")
_FOLDERS = re.compile(r"(?<![\w.~%/-])/(?:[^\s/:]+/)*(?=[\w.])")
"""Of an absolute path within a text, such as `zip::/folder/file.zip`: all but its last part."""
_BEFORE = re.compile(r".*::|open_clip:(?:[^@]*@|[\w-]+:)?", re.DOTALL)
"""What stands before a place: links of a chain, a CLIP's kind."""
_PLACES = ("target", "data", "floor data", "names", "lora", "teacher", "models", "files")
"""What results were measured of, on and with, by its place."""


def is_hub_id(name: str) -> bool:
    """Whether a teacher or data are named by their place on the hub, and are no folder here."""
    return bool(HUB_ID.fullmatch(name)) and not Path(name).exists()


def placed(name: str) -> str:
    """A text as a card has it: an absolute path, which it is or holds, by its last part; a URL without what may be a
    password or a key."""
    name = without_secrets(name.replace("file://", ""))
    return Path(name).name if Path(name).is_absolute() else _FOLDERS.sub("", name)


def without_paths(config: DistillConfig) -> DistillConfig:
    """Paths of this machine are made absolute, of which a card shows the last part."""
    vae, layout, init, before = (
        name and _absolute(name) for name in (config.vae, config.teacher_config, config.init, config.continue_from)
    )
    merged = tuple(f"{file.resolve()}:{scale:g}" for file, scale in config.loras)
    return replace(
        config,
        teacher=_absolute(config.teacher),
        data=tuple(map(_absolute, config.sources)),
        teacher_lora=merged,
        vae=vae,
        teacher_config=layout,
        init=init,
        continue_from=before,
    )


def placed_results(results: Results, *, hub: bool = False) -> Results:
    """Results whose conditions name places as a card does; with `hub`, relative paths by their last part too."""
    meta = {name: _placed_in(value, hub and name in _PLACES) for name, value in results.meta.items()}
    return replace(results, meta=meta)


def _placed_in(value: Any, hub: bool) -> Any:
    if isinstance(value, Mapping):
        return {name: _placed_in(one, hub) for name, one in value.items()}
    if isinstance(value, list):
        return [_placed_in(one, hub) for one in value]
    return placed(_absolute(value) if hub else value) if isinstance(value, str) else value


def _absolute(name: str) -> str:
    """A path of this machine, which need not be there any more, as an absolute one; other names as they are."""
    start = found.end() if (found := _BEFORE.match(name)) else 0
    place = Path(name[start:])
    elsewhere = "://" in name[start:] or (is_hub_id(name[start:]) and place.suffix not in SINGLE_FILE)
    is_path = place.exists() or len(place.parts) > 1
    return name[:start] + str(place.resolve()) if is_path and not elsewhere else name
