"""Prepare real pictures and train on them with two processes, killed at random and started again; compare the bits."""

import hashlib
import importlib
import json
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import tyro
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from scott.files import write_atomically
from scott.mini.scenes import Scenes
from scott.training.checkpoint import latest_checkpoint
from scott.training.metrics import read_metrics

HERE = Path(__file__).parent
TIMES = ("seconds_", "images_per_second", "memory_gb")
console = Console()


@dataclass
class NothingLost:
    """Write results.json: how often each command was killed, where, and whether the same bits came out."""

    kills: int = 5
    pictures: int = 300
    steps: int = 40
    seed: int = 0
    out: Path = HERE / "results.json"

    def run(self) -> None:
        rng = random.Random(self.seed)
        with TemporaryDirectory() as name:
            work = Path(name)
            photographs = make_folder(work / "pictures", self.pictures)
            prepared = self.prepare(work, rng)
            trained = self.train(work, rng)
        results: dict[str, Any] = {"pictures": self.pictures, "of_photographs": photographs, "processes": 2}
        results |= {"prepare": prepared, "train": trained}
        write_atomically(self.out, json.dumps(results, indent=2) + "\n")
        console.print_json(json.dumps(results))
        if not (prepared["same_bytes"] and trained["same_weights"] and trained["same_log"]):
            sys.exit("what was killed came out otherwise")

    def prepare(self, work: Path, rng: random.Random) -> dict[str, Any]:
        """Once without a break; once with SIGKILL after random times, until a call comes to its end."""

        def command(out: Path) -> list[str]:
            words = ["prepare", work / "pictures", "--teacher", "mini", "--out", out, "--shard-size", 20]
            return [*map(str, words)]

        began = time.monotonic()
        finish(start(command(work / "whole")))
        seconds = time.monotonic() - began
        kills = 0
        for _ in range(self.kills):
            process = start(command(work / "killed"))
            time.sleep(rng.uniform(0.5, 1) * seconds)
            kills += kill(process)
        finish(start(command(work / "killed")))
        whole, killed = (digests(work / name) for name in ("whole", "killed"))
        return {"kills": kills, "files": len(whole), "same_bytes": whole == killed}

    def train(self, work: Path, rng: random.Random) -> dict[str, Any]:
        """SIGKILL as soon as a random step is logged, five times over; then the command is left to finish."""

        def command(out: Path) -> list[str]:
            settings = {"--data": work / "whole", "--out": out, "--max-steps": self.steps, "--batch-size": 8}
            settings |= {"--log-every": 1, "--checkpoint-every": 3, "--sample-every": 1000, "--loader-workers": 2}
            return ["distill", "mini", *(str(word) for setting in settings.items() for word in setting)]

        finish(start(command(work / "run")))
        out, at = work / "killed-run", []
        for step in sorted(rng.sample(range(2, self.steps), self.kills)):
            process = start(command(out))
            while process.poll() is None and not any(r["step"] >= step for r in read_metrics(out / "metrics.jsonl")):
                time.sleep(rng.uniform(0.01, 0.2))
            if kill(process):
                at.append(max(record["step"] for record in read_metrics(out / "metrics.jsonl")))
        finish(start(command(out)))
        return {
            "steps": self.steps,
            "killed_after_steps": at,
            "same_weights": weights(work / "run") == weights(out),
            "tensors": len(weights(out)),
            "same_log": log(work / "run") == log(out),
        }


def make_folder(folder: Path, count: int) -> int:
    """Photographs that scikit-image, scikit-learn and matplotlib ship, whole and in quarters, and scenes up to `count`.

    Each has its caption. Returns how many are of photographs.
    """
    folder.mkdir()
    pairs: list[tuple[Image.Image, str]] = []
    for package in ("skimage", "sklearn", "matplotlib"):
        root = Path(next(iter(importlib.import_module(package).__path__)))
        for file in sorted(p for p in root.rglob("*") if p.suffix in {".png", ".jpg", ".jpeg"}):
            with Image.open(file) as opened:
                picture = opened.convert("RGB")
            if min(picture.size) >= 128:  # smaller ones are icons
                name = file.stem.replace("_", " ")
                x, y = (side // 2 for side in picture.size)
                quarters = {(i, j): picture.crop((i * x, j * y, i * x + x, j * y + y)) for i in (0, 1) for j in (0, 1)}
                pairs += [(picture, f"a photograph, {name}")]
                pairs += [(part, f"part {2 * j + i + 1} of a photograph, {name}") for (i, j), part in quarters.items()]
    pairs = pairs[:count]
    scenes = Scenes(count - len(pairs))
    for index, (picture, caption) in enumerate([*pairs, *(scenes[i] for i in range(len(scenes)))]):
        picture.save(folder / f"{index:03d}.png")
        (folder / f"{index:03d}.txt").write_text(caption, encoding="utf-8")
    return len(pairs)


def start(words: list[str]) -> "subprocess.Popen[str]":
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "scott.cli",
    ]
    return subprocess.Popen([*launcher, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: "subprocess.Popen[str]") -> None:
    _, said = process.communicate()
    if process.returncode:
        raise SystemExit(said)


def kill(process: "subprocess.Popen[str]") -> bool:
    """The launcher and all below it, at once. False where it had ended by itself; where by an error, that ends all."""
    if process.poll() is not None:
        finish(process)
        return False
    for one in [process, *psutil.Process(process.pid).children(recursive=True)]:
        one.kill()
    process.communicate()
    return True


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir()) if p.is_file()}


def weights(run: Path) -> dict[str, str]:
    """Of all tensors of the last checkpoint: weights, EMA and optimizers."""
    newest = latest_checkpoint(run / "checkpoints")
    assert newest is not None, "a run that has ended has one"
    return {
        f"{file.stem}.{name}": hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
        for file in sorted(newest.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def log(run: Path) -> list[dict[str, float]]:
    records = read_metrics(run / "metrics.jsonl")
    return [{name: value for name, value in r.items() if not name.startswith(TIMES)} for r in records]


if __name__ == "__main__":
    tyro.cli(NothingLost, description=__doc__).run()
