"""One writer a folder, also of two that begin at the same moment."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from scott.data.locks import locked
from scott.errors import UserError


def test_two_launches_of_different_sizes_do_not_both_hold_a_folder(tmp_path, monkeypatch):
    """Neither goes on before both have looked."""
    looking, entered, glob = Barrier(2), [], Path.glob

    def together(folder, pattern):
        found = list(glob(folder, pattern))
        looking.wait(timeout=60)
        return found

    def hold(part):
        try:
            with locked(tmp_path, part):
                entered.append(part)
                done.wait(timeout=60)
        except UserError:
            done.wait(timeout=60)

    done = Barrier(2)
    monkeypatch.setattr(Path, "glob", together)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(hold, ("0-of-1", "0-of-8")))
    assert len(entered) < 2
