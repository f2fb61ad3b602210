"""The view that draws one prompt with students and their teachers beside one another, from one seed or from many."""

import random
from collections.abc import Iterator
from typing import Any

import gradio as gr

from scott.app.drawing import SEEDS, Drawer, Order, Picture
from scott.app.figures import figures, problem, varieties
from scott.app.models import Models, omega_range
from scott.export.snippet import EXAMPLE

MANY = 16
"""Seeds that show how much the pictures of one prompt differ: what variety of its teacher's a student kept."""
TEACHER_STEPS = [25, 50]
HISTORY = 12
"""Drawings that are remembered."""
AT_ONCE: dict[str, Any] = {"concurrency_limit": None, "js": "(_, ...values) => [Date.now(), ...values]"}
"""Of an event that draws: it starts at once, with the time as its first input; `Drawer` has older ones give up."""
NO_STUDENT = (
    "There is no student here yet, so the embedded teacher draws alone. `scott demo` makes a student in minutes; "
    "then load this page again."
)


def draw_view(models: Models, drawer: Drawer, page: gr.Blocks) -> None:
    """Controls at the left, pictures at the right; below them what was drawn before."""
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            prompt = gr.Textbox(EXAMPLE, label="Prompt", info="Enter draws", max_lines=2, autofocus=True)
            seed = gr.Number(0, label="Seed", precision=0)
            lock = gr.Checkbox(False, label="Lock the seed", info="Otherwise Draw takes another one; typing keeps it")
            count = gr.Radio([1, MANY], value=1, label="Seeds")
            button = gr.Button("Draw", variant="primary")
            students = gr.CheckboxGroup(models.students, value=models.students[:1], label="Students")
            steps = gr.CheckboxGroup([1, 2, 4, 8], value=[1, 2, 4], label="Steps of the students")
            teacher_steps = gr.CheckboxGroup(TEACHER_STEPS, value=TEACHER_STEPS, label="Steps of their teachers")
            own = gr.Checkbox(True, label="Each student's own ω", visible=False)
            info = "For students that take it, and their teachers"
            omega = gr.Slider(**_bounds(models), step=0.1, label="Guidance ω", info=info, visible=False)
        with gr.Column(scale=3):
            none = gr.Markdown(NO_STUDENT, visible=not models.students)
            pictures = gr.HTML(elem_id="pictures")
            history = gr.Radio([], label="History", visible=False)
    drawn, asked = gr.State([]), gr.State(("", 0))
    controls = [prompt, seed, count, students, steps, teacher_steps, own, omega]

    def draw(request: gr.Request, *values: Any) -> Iterator[Any]:
        yield from _draw(drawer, request, *values)

    def draw_while_typing(request: gr.Request, *values: Any) -> Iterator[Any]:
        yield from _draw(drawer, request, *values, live=True)

    inputs = [gr.Number(visible=False), *controls]
    shown: dict[str, Any] = {"inputs": inputs, "outputs": pictures, "show_progress": "hidden", **AT_ONCE}
    chosen = gr.on([button.click, prompt.submit], _ask, [prompt, seed, lock], [seed, asked], show_progress="hidden")
    chosen.then(draw, **shown).then(_remember, [drawn, asked], [drawn, history], show_progress="hidden")
    changes = [control.change for control in controls]
    gr.on(changes, draw_while_typing, trigger_mode="multiple", **shown)
    history.input(_recall, history, [prompt, seed, lock], show_progress="hidden").then(draw, **shown)
    guidance: dict[str, Any] = {"inputs": [students, own, omega], "outputs": [own, omega], "show_progress": "hidden"}
    gr.on([students.change, own.change], _omega_controls, **guidance)

    def there() -> tuple[Any, Any, Any]:
        found = models.students
        return gr.Markdown(visible=not found), gr.CheckboxGroup(choices=found), gr.Slider(**_bounds(models))

    loaded = page.load(there, None, [none, students, omega], show_progress="hidden")
    loaded.then(_omega_controls, **guidance).then(draw, **shown)


def _draw(
    drawer: Drawer,
    request: gr.Request,
    time: float,
    prompt: str,
    seed: float,
    count: int,
    students: list[str],
    steps: list[int],
    teacher_steps: list[int],
    own: bool,
    omega: float,
    *,
    live: bool = False,
) -> Iterator[Any]:
    """The page's pictures, more each time, and behind them what kept others from being drawn.

    The last word is "no change": gradio says an event's last word again as it ends, and empties the page for an event
    that said none, which both may come after a newer order's pictures.
    """
    pictures: list[Picture] = []
    first, layout = int(seed or 0), figures if count == 1 else varieties
    using = students, sorted(steps), sorted(teacher_steps), None if own else omega
    try:
        order = Order(time, prompt, range(first, first + count), *using)
        for picture in drawer.draw(order, str(request.session_hash), live=live):
            pictures.append(picture)
            yield layout(pictures)
    except Exception as error:
        yield layout(pictures) + problem(error)
    yield gr.skip()


def _ask(prompt: str, seed: float | None, locked: bool) -> tuple[int, tuple[str, int]]:
    """The seed of a drawing; and its prompt with it, which may have changed on the page when it is done."""
    seed = int(seed or 0) if locked else random.randrange(SEEDS)
    return seed, (prompt, seed)


def _remember(drawn: list[str], asked: tuple[str, int]) -> tuple[list[str], Any]:
    """The newest first, each once; nothing of what could not be drawn."""
    prompt, seed = asked
    if not prompt.strip() or not 0 <= seed < SEEDS:
        return drawn, gr.skip()
    entry = f"{seed}: {prompt}"
    drawn = [entry, *(other for other in drawn if other != entry)][:HISTORY]
    return drawn, gr.Radio(choices=drawn, value=entry, visible=True)


def _recall(entry: str) -> tuple[str, int, bool]:
    """Prompt and seed of a drawing, the seed locked."""
    seed, _, prompt = entry.partition(": ")
    return prompt, int(seed), True


def _bounds(models: Models) -> dict[str, float]:
    """Of ω, for all students there are, as gradio takes no event of a slider that stands beyond its bounds; and where
    it begins. Where there is nothing to choose, what the hidden slider may have."""
    low, high, own = omega_range(models.students) or (0.0, 0.0, 0.0)
    return {"minimum": low, "maximum": high if high > low else low + 1, "value": own}


def _omega_controls(students: list[str], own: bool, omega: float) -> tuple[Any, Any]:
    """Whether there is an ω to choose for the students that are chosen; it stays where its reader put it, if one of
    them takes that."""
    low, high, _ = omega_range(students) or (0.0, 0.0, 0.0)
    if low == high or own:
        return gr.Checkbox(visible=low < high), gr.Slider(visible=False)
    return gr.Checkbox(visible=True), gr.Slider(value=min(max(omega, low), high), visible=True)
