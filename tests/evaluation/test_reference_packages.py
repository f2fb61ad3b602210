"""Figures of torch-fidelity and open_clip, and the COCO command with a random Inception in the former's format."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scott.evaluation import Results

ROOT = Path(__file__).parents[2]
PACKAGES = ROOT / "build" / "reference"


@pytest.fixture(scope="module")
def told(tmp_path_factory, teacher_folders, coco2017):
    """What `reference_packages` prints, and the results that the command after it wrote."""
    assert (PACKAGES / "torch_fidelity").is_dir(), "make build/reference/.installed"
    folder = tmp_path_factory.mktemp("reference")
    command = [sys.executable, ROOT / "tests/evaluation/reference_packages.py", folder, teacher_folders["sd1"]]
    command += ["--protocol", "coco2017-5k", "--data", coco2017, "--samples", 10, "--steps", 1, "--guidance", 1]
    command += ["--metrics", "fid", "kid", "precision", "recall", "coverage", "--bootstrap", 2]
    command += ["--out", folder / "results.json"]
    places = [str(ROOT / "src"), str(PACKAGES)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places), "XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    printed = next(line for line in done.stdout.splitlines() if line.startswith("{"))
    return json.loads(printed), Results.load(folder / "results.json")


def test_features_are_the_packages_own(told):
    features = told[0]["features"]
    assert features["inception"] == 0
    assert features["inception-clean"] == 0
    assert max(features["open_clip images"], features["open_clip texts"]) < 1e-5


@pytest.mark.parametrize("metric", ["fid", "kid", "cmmd", "precision", "recall"])
def test_metrics_are_torch_fidelitys(told, metric):
    ours, theirs = told[0]["metrics"][metric]
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_the_coco_command_runs_to_its_end(told):
    results = told[1]
    (row,) = results.rows
    assert (row.name, row.samples, row.network_calls) == ("sd10-ddim-1", 10, 1)
    assert row.metrics.keys() == {"fid", "kid", "precision", "recall", "coverage"}
    assert row.fid > 0
    assert "10 samples do not fill the covariance of 2,048 features" in row.remark
    networks = results.meta["networks"]
    assert networks["features"].startswith(
        "Inception-v3 2015 of torch-fidelity: 8 bits, to 299 (bilinear of TensorFlow 1)"
    )
