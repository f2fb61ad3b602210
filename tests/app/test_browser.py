"""The page as its reader meets it, in a real browser: what is typed, ticked and clicked, and what comes of it."""

import base64
import dataclasses
import io
import json
import math
import os
import re
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from PIL import Image
from tests.app.conftest import FEWER, MORE, WARNING

from scott.app import drawing
from scott.app.drawing import Drawer
from scott.app.models import Models
from scott.app.page import build, serve
from scott.commands.plan import planned
from scott.export.info import StudentInfo
from scott.recipes.configs import mini

OMEGA = mini().drawn_guidance
PROMPT = "a small green apple on a blue background"


@pytest.fixture(autouse=True)
def everything_is_fast(monkeypatch):
    """However slow the machine, what is drawn while typing does not depend on it."""
    monkeypatch.setattr(drawing, "LIVE_SECONDS", math.inf)


def shown(page, who, steps):
    """The figure of a student or teacher."""
    row = page.get_by_role("region", name=str(who), exact=True)
    return row.locator("figure").filter(has_text=re.compile(rf"^{steps} step"))


def opened(source):
    """The picture of an `img`, and what it says of itself."""
    picture = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    return np.asarray(picture.convert("RGB")).astype(int), json.loads(picture.info["parameters"])


def drawn(page, who, steps):
    return opened(shown(page, who, steps).locator("img").get_attribute("src"))


def seed_of(page):
    return int(page.get_by_label("Seed", exact=True).input_value())


def test_the_page_draws_as_it_loads_and_asks_nobody_else(page, runs):
    for who, counts in ((runs[0], {1: 1, 2: 2, 4: 4}), ("teacher mini", {FEWER: 2 * FEWER, MORE: 2 * MORE})):
        for steps, calls in counts.items():
            assert re.search(
                rf"{calls} calls?.*\d\.\d+ s, ω {OMEGA:g}", shown(page, who, steps).inner_text(), re.DOTALL
            )
            pixels, made = drawn(page, who, steps)
            assert made["prompt"] == PROMPT
            assert (made["seed"], made["steps"], made["guidance_scale"]) == (0, steps, OMEGA)
            assert pixels.std() > 5
    assert all(url.startswith(("http://127.0.0.1", "data:", "blob:")) for url in page.requests)
    assert not page.errors


def test_it_redraws_while_one_types_what_is_fast(page, runs, monkeypatch):
    prompt = page.get_by_label("Prompt").first
    monkeypatch.setattr(drawing, "LIVE_SECONDS", 0.0)
    prompt.press_sequentially(" now", delay=20)
    page.get_by_text("not drawn while you type").first.wait_for()
    monkeypatch.setattr(drawing, "LIVE_SECONDS", math.inf)
    prompt.fill(PROMPT)
    page.get_by_alt_text(f"{PROMPT}, drawn by teacher mini in {MORE} steps").wait_for()
    assert drawn(page, runs[0], 4)[1]["prompt"] == PROMPT
    assert seed_of(page) == 0


def test_what_is_drawn_is_downloaded_and_drawn_alike_by_diffusers(page, runs):
    for who, steps, kind in ((runs[0], 2, "student"), ("teacher mini", FEWER, "teacher")):
        figure = shown(page, who, steps)
        with page.expect_download() as download:
            figure.get_by_role("link", name="Download").click()
        assert download.value.suggested_filename.endswith(f"-{steps}-steps-seed-0.png")
        with Image.open(download.value.path()) as picture:
            made = json.loads(picture.info["parameters"])
            kept = np.asarray(picture.convert("RGB")).astype(int)
        assert made == {"prompt": PROMPT, "seed": 0, "steps": steps, "guidance_scale": OMEGA, kind: str(who)}
        figure.get_by_text("In diffusers").click()
        exec(compile(figure.locator("code").inner_text(), "snippet", "exec"), {})
        with Image.open("picture.png") as picture:
            assert np.abs(np.asarray(picture).astype(int) - kept).max() <= 1
        figure.get_by_text("In diffusers").click()


def test_a_locked_seed_stays_and_history_brings_an_older_one_back(page, runs):
    button, first = page.get_by_role("button", name="Draw", exact=True), drawn(page, runs[0], 2)[0]
    page.get_by_label("Lock the seed").check()
    button.click()
    page.get_by_role("radio", name=f"0: {PROMPT}", exact=True).wait_for()
    assert seed_of(page) == 0
    page.get_by_label("Lock the seed").uncheck()
    button.click()
    page.get_by_role("radio", name=re.compile(r"^[1-9]\d*: ")).wait_for()
    assert seed_of(page) != 0
    assert np.abs(drawn(page, runs[0], 2)[0] - first).max() > 1
    page.get_by_role("radio", name=f"0: {PROMPT}", exact=True).check()
    page.get_by_role("link", name=re.compile(f"Download .*{MORE} steps")).and_(
        page.locator('[download$="seed-0.png"]')
    ).wait_for()
    assert np.array_equal(drawn(page, runs[0], 2)[0], first)


def test_history_has_what_was_asked_for_and_not_what_is_typed_meanwhile(page, monkeypatch):
    prompt, picture, begun, released = page.get_by_label("Prompt").first, Drawer._picture, Event(), Event()

    def held(*given):
        begun.set()
        assert released.wait(60)
        return picture(*given)

    page.get_by_label("Lock the seed").check()
    prompt.fill("a large green apple")
    page.get_by_alt_text(f"a large green apple, drawn by teacher mini in {MORE} steps").wait_for()
    monkeypatch.setattr(Drawer, "_picture", held)
    page.get_by_role("button", name="Draw", exact=True).click()
    assert begun.wait(60)
    prompt.fill(PROMPT)
    released.set()
    page.get_by_role("radio", name=f"{seed_of(page)}: a large green apple", exact=True).wait_for()
    page.get_by_alt_text(f"{PROMPT}, drawn by teacher mini in {MORE} steps").wait_for()


def test_runs_stand_side_by_side_and_take_another_omega(page, runs):
    page.get_by_label(str(runs[1])).first.check()
    shown(page, runs[1], 4).wait_for()
    shown(page, "teacher mini", FEWER).wait_for()
    assert np.array_equal(drawn(page, runs[0], 2)[0], drawn(page, runs[1], 2)[0]), "one student under two names"
    page.get_by_label("Each student's own ω").uncheck()
    assert float(page.get_by_label("number input for Guidance ω").input_value()) == OMEGA
    page.get_by_label("number input for Guidance ω").fill("2.5")
    shown(page, runs[1], 4).get_by_text("ω 2.5").wait_for()
    page.get_by_label("Each student's own ω").check()
    shown(page, runs[1], 4).get_by_text("ω 2.5").wait_for(state="detached")
    page.get_by_label(str(runs[1])).first.uncheck()
    shown(page, runs[1], 4).wait_for(state="detached")


def test_a_student_of_fewer_omegas_is_drawn_at_the_nearest_of_its_own(page, runs):
    info = StudentInfo.read(runs[1] / "student")
    page.get_by_label("Each student's own ω").uncheck()
    page.get_by_label("number input for Guidance ω").fill("3")
    shown(page, runs[0], 4).get_by_text("ω 3").wait_for()
    page.get_by_label(str(runs[0])).first.uncheck()
    (runs[1] / "student" / "scott.json").write_text(dataclasses.replace(info, guidance_max=2.5).to_json())
    page.get_by_label(str(runs[1])).first.check()
    shown(page, runs[1], 4).get_by_text("ω 2.5").wait_for()
    page.wait_for_function("document.querySelector('[aria-label=\"number input for Guidance ω\"]').value == 2.5")
    page.get_by_label("Prompt").first.fill("a large green apple")
    page.get_by_alt_text(f"a large green apple, drawn by {runs[1]} in 4 steps").wait_for()
    assert page.locator(".toast-body").count() == 0
    (runs[1] / "student" / "scott.json").write_text(info.to_json())
    page.get_by_label("Each student's own ω").check()
    page.get_by_label(str(runs[1])).first.uncheck()
    page.get_by_label(str(runs[0])).first.check()
    page.get_by_label("Prompt").first.fill(PROMPT)
    shown(page, runs[0], 4).wait_for()


def test_what_cannot_be_done_is_a_sentence(page):
    prompt = page.get_by_label("Prompt").first
    prompt.fill("apple " * 40)
    page.get_by_role("alert").filter(has_text="40 tokens").wait_for()
    prompt.press("Enter")
    page.get_by_role("alert").filter(has_text="40 tokens").wait_for()
    assert page.locator(".toast-body").count() == 0, "it would be gone before it is read"
    assert "Traceback" not in page.content()
    prompt.fill(PROMPT)


def test_a_broken_run_is_a_sentence_that_stays_and_other_runs_are_drawn(page, runs):
    page.get_by_label(str(runs[2])).first.check()
    page.get_by_role("alert").filter(has_text="cannot be loaded").wait_for()
    assert drawn(page, runs[0], 4)[1]["prompt"] == PROMPT
    page.get_by_role("tab", name="Watch").click()
    page.get_by_label("Run", exact=True).click()
    page.get_by_role("option", name=str(runs[2])).click()
    page.get_by_role("alert").filter(has_text="metrics.jsonl").wait_for()
    page.get_by_label("Run", exact=True).click()
    page.get_by_role("option", name=str(runs[0])).click()
    page.get_by_role("row", name="time left").wait_for()
    page.get_by_role("tab", name="Draw").click()
    page.get_by_label(str(runs[2])).first.uncheck()
    shown(page, "teacher mini", MORE).wait_for()


NAMELESS = """() => [...document.querySelectorAll("input, button, textarea, select, [role=tab], img")]
    .filter(one => one.checkVisibility() && !one.labels?.length && !one.ariaLabel)
    .filter(one => !one.ariaLabelledByElements?.length && !one.alt && !one.innerText)
    .map(one => one.outerHTML.slice(0, 200))"""


def test_it_is_used_by_the_keyboard_and_read_aloud(page):
    """From the prompt to Draw by Tab, from view to view by Tab or arrows; controls have names, progress is said."""
    page.get_by_label("Prompt").first.focus()
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.innerText") == "Draw":
            break
    assert page.evaluate("document.activeElement.innerText") == "Draw"
    page.keyboard.press("Enter")
    page.get_by_role("status").filter(has_text="5 pictures drawn").wait_for()
    page.get_by_role("tab", name="Draw").focus()
    for view, keys in (("Watch", ["Tab", "Enter"]), ("Plan", ["ArrowRight"]), ("Draw", ["ArrowRight"])):
        for key in keys:
            page.keyboard.press(key)
        assert page.get_by_role("tab", name=view).get_attribute("aria-selected") == "true"
        assert page.evaluate(NAMELESS) == []


def test_sixteen_seeds_of_student_and_teacher(page, runs):
    page.get_by_label(str(MORE), exact=True).uncheck()
    page.get_by_role("radio", name="16", exact=True).check()
    for who in (f"{runs[0]}, 2 steps", f"teacher mini, {FEWER} steps"):
        figures = page.get_by_role("region", name=who).locator("figure")
        figures.filter(has_text=re.compile(r"seed \d+$")).nth(15).wait_for()
        seen = [opened(source)[0] for source in figures.locator("img").evaluate_all("all => all.map(one => one.src)")]
        assert len(seen) == 16
        assert min(np.abs(one - other).max() for one in seen for other in seen if one is not other) > 1
    page.get_by_role("radio", name="1", exact=True).check()
    page.get_by_label(str(MORE), exact=True).check()
    page.get_by_alt_text(f"in {MORE} steps").wait_for()


def test_a_run_is_watched(page, runs):
    page.get_by_role("tab", name="Watch").click()
    page.get_by_role("row", name="time left").wait_for()
    assert page.get_by_role("row", name="time left").inner_text().split()[2] == "0:00:00"
    assert page.get_by_role("img", name="Curves of the losses").locator("svg").count() == 1
    grids = sorted((runs[0] / "samples").glob("step-*.png"))
    page.get_by_role("heading", name=f"After step {int(grids[-1].stem[5:]):,}", exact=True).wait_for()
    page.get_by_label("number input for Validation").fill("0")
    page.get_by_role("heading", name=f"After step {int(grids[0].stem[5:])}", exact=True).wait_for()
    page.get_by_label("Run", exact=True).click()
    page.get_by_role("option", name=str(runs[1])).click()
    page.get_by_role("alert").filter(has_text=WARNING).wait_for()


def test_a_run_is_planned(page):
    page.get_by_role("tab", name="Plan").click()
    page.get_by_role("button", name="Plan").click()
    page.get_by_text("it fits").wait_for()
    assert page.get_by_role("row", name=re.compile("^frozen network")).count() == 1
    page.get_by_label("Batch").fill("3")
    page.get_by_label("Cards").fill("2.5")
    page.get_by_role("button", name="Plan").click()
    page.get_by_role("alert").filter(has_text="expected a multiple of 2").wait_for()


@pytest.mark.parametrize("width", [1280, 480])
def test_it_fits_its_window(page, width, tmp_path):
    page.set_viewport_size({"width": width, "height": 900})
    for tab in ("Plan", "Watch", "Draw"):
        if tab == "Draw":
            page.reload()
            page.get_by_alt_text(f"in {MORE} steps").wait_for()
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, tab
        page.screenshot(path=tmp_path / f"app-{tab.lower()}-{width}.png")


@pytest.mark.skipif("SCOTT_APP_PICTURES" not in os.environ, reason="makes docs/app.png in the folder that it names")
def test_the_picture_on_the_first_page(browser, runs):
    """Makes docs/app.png, and holds nothing: one student alone, as who has just made it sees it."""
    view = build(Models([str(runs[0])]), planned)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(serve(view, "127.0.0.1", None))
    page.get_by_alt_text(f"in {MORE} steps").wait_for(timeout=90_000)
    page.screenshot(path=Path(os.environ["SCOTT_APP_PICTURES"]) / "app.png")
    page.close()
    view.close()


def test_on_a_phone_two_pictures_stand_in_a_row_and_a_grid_keeps_its_size(page, runs):
    page.set_viewport_size({"width": 375, "height": 800})
    page.reload()
    page.get_by_alt_text(f"in {MORE} steps").wait_for()
    tops = [shown(page, runs[0], steps).bounding_box()["y"] for steps in (1, 2, 4)]
    assert tops[0] == tops[1] < tops[2]
    page.get_by_role("tab", name="Watch").click()
    grid = page.get_by_alt_text("The run's student in few steps over its teacher")
    grid.wait_for()
    assert grid.evaluate("image => image.clientWidth == image.naturalWidth && image.naturalWidth > innerWidth")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_the_prompt_is_read_whole_and_enter_draws(page):
    page.set_viewport_size({"width": 1280, "height": 900})
    page.reload()
    page.get_by_alt_text(f"in {MORE} steps").wait_for()
    prompt = page.get_by_label("Prompt").first
    assert prompt.evaluate("box => box.scrollHeight <= box.clientHeight + 2 && box.clientHeight > 40")
    before = seed_of(page)
    prompt.press("Enter")
    page.wait_for_function(f"document.querySelector('[aria-label=Seed]').value != {before}")
    assert prompt.input_value() == PROMPT
