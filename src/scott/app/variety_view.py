"""The view that draws one prompt from many seeds: how much of the teacher's variety the student kept."""

from collections.abc import Iterator

import gradio as gr

from scott.app.drawing import Drawer, Order, Picture, Settings
from scott.app.figures import varieties
from scott.app.handlers import AT_ONCE, sentences
from scott.app.models import Models
from scott.export.snippet import EXAMPLE

COUNT = 16
"""Seeds that are drawn."""


def variety_view(models: Models, drawer: Drawer) -> None:
    """A student's grid of seeds over its teacher's, from the same noise."""
    with gr.Row(equal_height=True):
        prompt = gr.Textbox(EXAMPLE, label="Prompt", max_lines=1, scale=3, min_width=300)
        students = gr.CheckboxGroup(
            models.students, value=models.students[:1], label="Students", scale=2, min_width=300
        )
    with gr.Row(equal_height=True):
        steps = gr.Radio([1, 2, 4, 8], value=2, label="Steps of the student")
        teacher_steps = gr.Radio([25, 50], value=25, label="Steps of its teacher")
        seed = gr.Number(0, label="First seed", precision=0)
    button = gr.Button(f"Draw {COUNT} seeds", variant="primary")
    pictures = gr.HTML(elem_id="varieties")

    @sentences
    def vary(
        request: gr.Request,
        time: float,
        prompt: str,
        seed: float,
        students: list[str],
        steps: int,
        teacher_steps: int,
    ) -> Iterator[str]:
        first, drawn = int(seed or 0), list[Picture]()
        order = Order(time, prompt, range(first, first + COUNT), Settings(students, [steps], [teacher_steps]))
        for picture in drawer.draw(order, f"{request.session_hash} seeds"):
            drawn.append(picture)
            yield varieties(drawn)

    inputs = [gr.Number(visible=False), prompt, seed, students, steps, teacher_steps]
    gr.on([button.click, prompt.submit], vary, inputs, pictures, show_progress="minimal", **AT_ONCE)
