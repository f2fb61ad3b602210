"""A run with a student, the page that shows it, and a browser at that page."""

import os
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from scott.app import draw_view
from scott.app.models import Models
from scott.app.page import build, serve
from scott.commands import prepare, validation
from scott.commands.distill import run
from scott.commands.plan import planned
from scott.recipes.configs import mini
from scott.training.config import PROMPTS
from scott.training.metrics import WARNINGS

WARNING = "step 2: the critic tells nothing"
FEWER, MORE = (25, 50) if "SCOTT_APP_PICTURES" in os.environ else (3, 5)
"""Steps of the teacher: those that the page offers, or such as take no time."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of one student in the working directory: a finished one that SCOTT_APP_RUN names or that is made here, its
    copy with a warning, and one whose files are broken."""
    first, second, broken = Path("runs/demo"), Path("runs/other"), Path("runs/older")
    ready = os.environ.get("SCOTT_APP_RUN")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("app"))
        if ready:
            shutil.copytree(ready, first)
        else:
            patch.setattr(prepare, "MINI_SCENES", 48)
            patch.setattr(validation, "PROMPTS", PROMPTS)  # a grid that is wider than a phone
            steps = {"max_steps": 2, "sample_every": 1, "log_every": 1, "batch_size": 2, "tracker": "none"}
            run(mini(out=first, **steps), lambda *_: None)
        shutil.copytree(first, second)
        (second / WARNINGS).write_text(f"{WARNING}\n")
        shutil.copytree(first, broken)
        (broken / "metrics.jsonl").write_bytes(b"\xff\xfe no UTF-8")
        next((broken / "student" / "unet").glob("*.safetensors")).write_bytes(b"cut short")
        yield first, second, broken


@pytest.fixture(scope="module")
def address(runs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draw_view, "TEACHER_STEPS", [FEWER, MORE])
        page = build(Models([str(run) for run in runs]), planned)
    yield serve(page, "127.0.0.1", None)
    page.close()


@pytest.fixture(scope="module")
def browser():
    """Chromium by its path: SCOTT_BROWSER, which CI sets, or the one that is installed."""
    path = os.environ.get("SCOTT_BROWSER") or shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium; install it, or name a browser in SCOTT_BROWSER")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(browser, address):
    """The page, loaded and drawn once; what it asked for is in `page.requests`, its errors in `page.errors`."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(90_000)
    page.requests, page.errors = [], []
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(address)
    page.get_by_alt_text(f"in {MORE} steps").wait_for()
    return page
