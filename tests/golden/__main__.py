"""`python -m tests.golden [NAME ...]` writes the files anew: after a change that is meant to change the numbers."""

import sys

from tests.golden.runs import FOLDER, RUNS, as_text, run

if __name__ == "__main__":
    for name in sys.argv[1:] or RUNS:
        (FOLDER / f"{name}.txt").write_text(as_text(run(name)))
