"""Twenty steps of each form of training, six in half precision, log what their file says.

Tolerances are relative, to a floor of 1e-3. Another order of fp32 sums (the batch in two passes) moves a term by 2e-5
in these steps; in half precision, where each rounding is 1e-3 or 8e-3, by 1e-2 and 7e-2.
"""

import pytest
from tests.golden.runs import FOLDER, RUNS, as_text, from_text, run

TOLERANCE = {"fp32": 1e-3, "fp16": 5e-2, "bf16": 1e-1}


def test_every_run_has_its_file():
    assert {file.stem for file in FOLDER.glob("*.txt")} == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_logs_what_its_file_says(name):
    expected, got = from_text((FOLDER / f"{name}.txt").read_text()), from_text(as_text(run(name)))
    tolerance = TOLERANCE[RUNS[name].get("precision", "fp32")]
    assert len(got) == len(expected)
    for step, (mine, theirs) in enumerate(zip(got, expected, strict=True), 1):
        assert mine == pytest.approx(theirs, rel=tolerance, abs=1e-3 * tolerance), f"step {step}"
