"""Checkpoints that are whole or absent: safetensors and one JSON file in a folder that appears under its name last.

A checkpoint folder holds one `<part>.safetensors` per part (student, target, critic, their optimizers, ...) and
`state.json`, which has the others' SHA-256. It is written beside its final name, synced, and renamed, so that a crash
leaves the previous one.
"""

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from scott.errors import UserError
from scott.files import new_folder, sha256_of, sync, write_atomically

Parts = dict[str, dict[str, Tensor]]


def save_checkpoint(
    folder: Path, step: int, parts: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> Path:
    """Write `folder/step-XXXXXXXX` atomically and return its path; one that is there is of the same run, and stays.

    What a killed process left of another is deleted: its step may be one that is not saved again. Raises `NoRoom`
    as `room` does.
    """
    final = folder / _name(step)
    if final.is_dir():
        return final
    partial = folder / f".partial-{final.name}"
    for left in folder.glob(".partial-step-*"):
        shutil.rmtree(left, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    with new_folder(partial):
        hashes = {}
        for name, tensors in parts.items():
            file = partial / f"{name}.safetensors"
            # safetensors refuses views of shared storage; a checkpoint wants values, not aliasing
            save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, file)
            hashes[file.name] = sha256_of(file)
        (partial / "state.json").write_text(json.dumps({**state, "step": step, "sha256": hashes}, indent=1))
        for written in [*partial.iterdir(), partial]:
            sync(written)
        partial.rename(final)
        sync(folder)
    return final


def is_saved(folder: Path, step: int) -> bool:
    return (folder / _name(step)).is_dir()


def _name(step: int) -> str:
    return f"step-{step:08d}"


def load_checkpoint(path: Path) -> tuple[Parts, dict[str, Any]]:
    """The parts and the state of one checkpoint folder; `UserError` when it cannot be read or a file has changed."""
    state = checkpoint_state(path)
    state.pop("sha256", None)
    return {file.stem: checkpoint_part(path, file.stem) for file in sorted(path.glob("*.safetensors"))}, state


def checkpoint_part(path: Path, name: str) -> dict[str, Tensor]:
    """The tensors of one part; `UserError` when they cannot be read or are not what was written."""
    file = path / f"{name}.safetensors"
    with readable(path):
        if sha256_of(file) != checkpoint_state(path)["sha256"][file.name]:
            raise ValueError(f"{file.name} is not what was written, by its SHA-256")
        return load_file(file)


def checkpoint_state(path: Path) -> dict[str, Any]:
    """What a checkpoint holds besides tensors; `UserError` when it cannot be read."""
    with readable(path):
        return dict(json.loads((path / "state.json").read_text()))


@contextmanager
def readable(path: Path, way_out: str = "resume from the one before") -> Iterator[None]:
    """What is read within of a checkpoint is there and of its kind, or a `UserError` says that it is not."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, SafetensorError) as error:
        why = repr(error) if isinstance(error, LookupError) else error
        raise UserError(f"checkpoint {path} cannot be read ({why}); delete it to {way_out}") from None


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints in `folder`, oldest first."""
    return sorted(folder.glob(f"step-{'[0-9]' * 8}"))


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in `folder`, or None."""
    return max(checkpoints(folder), default=None)


def checkpoint_step(path: Path) -> int:
    """The number of steps that had been made when `path` was written."""
    return int(path.name.removeprefix("step-"))


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints and the best one."""
    best = Best.read(folder)
    for old in checkpoints(folder)[:-keep]:
        if best is None or checkpoint_step(old) != best.step:
            old.unlink() if old.is_symlink() else shutil.rmtree(old)  # as of one that was moved to another disk


@dataclass(frozen=True)
class Best:
    """Which checkpoint of a run has the best value of a metric, as `best.json` beside the checkpoints says."""

    step: int
    metric: str
    value: float
    how: dict[str, Any] = field(default_factory=dict)
    """What the value depends on besides; empty where it is not known."""

    def is_best(self, folder: Path) -> bool:
        """Whether it is better than the one of the same metric, measured alike, if that is still there: FID low, all
        else high."""
        other = Best.read(folder)
        if not math.isfinite(self.value):
            return False
        if other is None or other.metric != self.metric or (other.how and other.how != self.how):
            return True
        return self.value < other.value if self.metric == "fid" else self.value > other.value

    def write(self, folder: Path) -> None:
        write_atomically(folder / "best.json", json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> "Best | None":
        """Of a run's `checkpoints` folder; None before the first validation, or when its checkpoint was deleted."""
        file = folder / "best.json"
        if not file.is_file():
            return None
        with readable(file, "have the best found anew"):
            best = cls(**json.loads(file.read_text()))
            return best if (folder / _name(best.step)).is_dir() else None


def best_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that `best.json` names, or None."""
    best = Best.read(folder)
    return folder / _name(best.step) if best else None
