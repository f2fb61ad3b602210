"""Each metric beside the same by hand, and the protocols' commands with a random Inception of that format."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scott.evaluation import Results

pytestmark = pytest.mark.timeout(900)  # a minute of one core, on a machine that may be busy
ROOT = Path(__file__).parents[2]
PACKAGES = ROOT / "build" / "reference"
SCRIPT = """
import json, sys
from pathlib import Path
import torch
from benchmarks import metrics
torch.set_num_threads(1)
folder = Path(sys.argv[1])
commands = json.loads(sys.argv[2])
(folder / "metrics.json").write_text(json.dumps(metrics.main(metrics.Options(layers=1, small=True), folder)))
for words in commands:
    metrics.scott(*words)
"""
"""A process of its own, since both packages import torchvision, whose wheel on PyPI is built for CUDA's torch."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, teacher_folders, coco2017, coco2014, mjhq):
    """Where metrics.json is, and results by protocol."""
    assert (PACKAGES / "torch_fidelity").is_dir(), "make build/reference/.installed"
    folder = tmp_path_factory.mktemp("reference")
    few = ["--samples", 10, "--steps", 1, "--guidance", 1, "--bootstrap", 2, "--models", "inception"]
    data = {"coco2017-5k": coco2017, "coco2014-30k": coco2014, "mjhq-5k": mjhq}
    commands = [
        [
            *("evaluate", teacher_folders["sd1"], "--protocol", name, "--data", file, *few, folder / "inception.pth"),
            *("--out", folder / f"{name}.json", "--metrics", "fid", "coverage"),
        ]
        for name, file in data.items()
    ]
    environment = {"PYTHONPATH": os.pathsep.join(map(str, (ROOT / "src", ROOT, PACKAGES))), "XDG_CACHE_HOME": folder}
    arguments = [folder, json.dumps(commands, default=str)]
    run = [str(part) for part in (sys.executable, "-c", SCRIPT, *arguments)]
    done = subprocess.run(run, capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def test_metrics_are_those_made_by_hand(folder):
    """Inception's to rounding; the others round to 8 bits after their resize, which ours does not."""
    found = json.loads((folder / "metrics.json").read_text())
    for name, (network, ours, theirs) in found.items():
        tolerance = 1e-6 if network in ("Inception-v3", "60 x 12 normals") and "fid-clean" not in name else 0.01
        assert ours == pytest.approx(theirs, rel=tolerance), name


@pytest.mark.parametrize(("protocol", "floor"), [("coco2017-5k", False), ("coco2014-30k", True), ("mjhq-5k", True)])
def test_the_commands_run_to_their_end(folder, protocol, floor):
    results = Results.load(folder / f"{protocol}.json")
    assert (results.rows[0].name == "real-vs-real") == floor
    row = results.rows[-1]
    assert (row.name, row.samples, row.network_calls) == ("sd10-ddim-1", 10, 1)
    assert row.metrics["fid"].interval[0] < row.fid < row.metrics["fid"].interval[1]
    assert "10 samples do not fill the covariance of 2,048 features" in row.remark
    kind = "Inception-v3 2015 of torch-fidelity: 8 bits, to 299 (bilinear of TensorFlow 1)"
    assert results.meta["networks"]["features"].startswith(kind)
