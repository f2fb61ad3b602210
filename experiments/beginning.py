"""A run that goes on where another has made its first updates, so that what runs have in common is computed once.

Up to the first update with a critic, and while their rates are the same, two runs whose other settings and data agree
make the same student, EMA and optimizer, bit for bit: LCM's and ours.
"""

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.runs import Report, Training

from scott.errors import UserError
from scott.files import write_atomically
from scott.training.adversary import Adversary
from scott.training.checkpoint import checkpoint_step, checkpoints, latest_checkpoint, load_checkpoint, save_checkpoint
from scott.training.config import DistillConfig
from scott.training.metrics import MetricsLog, read_metrics

LATER = {*Adversary.__dataclass_fields__, "method", "max_steps", "decay"}
"""What may count from some update on only."""
LEARNT = ("student", "target", "student_optimizer")
"""Parts of a checkpoint that updates without a critic change."""


class _Begun(Exception):
    """The first update is saved."""


def common_updates(one: DistillConfig, other: DistillConfig) -> int:
    """The number of first updates that are the same of both, given the same data."""
    mine, theirs = one.decisive(), other.decisive()
    if any(mine.get(name) != theirs.get(name) for name in mine.keys() | theirs.keys() if name not in LATER):
        return 0
    least = min(run.first_with_critic if run.has_critic else run.max_steps for run in (one, other))
    return next((n for n in range(least) if one.rate_factor(n) != other.rate_factor(n)), least)


def begin(run: Training, others: Sequence[Path], report: Report) -> int:
    """Give a run that has not begun the checkpoint of another of the same data which is furthest on its way.

    Log and CPU seconds up to there are the other's. Returns its update; 0 where there is none, and the run has yet to
    begin, or has begun.

    Raises:
        UserError: the other's data or teacher are not the run's.
    """
    config = run.config
    if latest_checkpoint(config.out / "checkpoints"):
        return 0
    found = [(step, path) for other in others for step, path in _usable(config, other)]
    if not found:
        return 0
    step, theirs = max(found)
    parts, state = _first(run, report)
    other_parts, other_state = load_checkpoint(theirs)
    if wrong := [name for name in ("data", "teacher", "schedule") if state[name] != other_state[name]]:
        raise UserError(f"{theirs} is of a run on another {wrong[0]} than {config.out}; make them of the same")
    parts |= {name: other_parts[name] for name in LEARNT}
    folder, source = config.out / "checkpoints", theirs.parent.parent
    both = len(state["spread"])  # of a run whose critic is shown drawn samples there are twice as many
    spread = [*other_state["spread"], *state["spread"][len(other_state["spread"]) :]][:both]
    if DistillConfig.load(source / "config.json").drawn_timesteps != config.drawn_timesteps:  # of other times
        spread = state["spread"]
    (config.out / "metrics.jsonl").unlink()
    shutil.rmtree(folder)  # a run that is stopped here begins anew
    spent = json.loads((source / "cpu_seconds.json").read_text())
    kept = {done: seconds for done, seconds in spent.items() if int(done) <= step}
    write_atomically(config.out / "cpu_seconds.json", json.dumps(kept))
    log = MetricsLog(config.out / "metrics.jsonl")
    for record in read_metrics(source / "metrics.jsonl"):
        if record["step"] <= step:
            log.write(int(record["step"]), record)
    other_state = {name: value for name, value in other_state.items() if name in state}
    save_checkpoint(folder, step, parts, state | other_state | {"spread": spread})
    return step


def _usable(config: DistillConfig, other: Path) -> list[tuple[int, Path]]:
    """The other's checkpoints within what both have in common."""
    file = other / "config.json"
    common = common_updates(config, DistillConfig.load(file)) if file.is_file() else 0
    there = [(checkpoint_step(path), path) for path in checkpoints(other / "checkpoints")]
    return [(step, path) for step, path in there if 1 < step <= common]


def _first(run: Training, report: Report) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parts and state of the run after its first update, which has made what its critic starts from."""

    def first(name: str, done: int, total: int, terms: dict[str, float]) -> None:
        report(name, done, total, terms)
        if name == "distil" and done == 2:  # the first is saved
            raise _Begun

    config = run.config
    once = replace(run, config=replace(config, checkpoint_every=1))
    with suppress(_Begun):
        once.train(first)
    saved = latest_checkpoint(config.out / "checkpoints")
    assert saved is not None
    return load_checkpoint(saved)
