"""The view that plans a run: what a teacher and a recipe need on some cards, from `scott distill … --dry-run`."""

from collections.abc import Callable
from typing import Any

import gradio as gr
from rich.table import Table
from rich.text import Text

from scott.app.figures import problem, table
from scott.recipes.configs import RECIPES
from scott.training.budget import Budget
from scott.training.cards import CARDS, REACHED, Card
from scott.training.config import DistillConfig

Planner = Callable[[str, dict[str, Any], int], tuple[DistillConfig, Budget, Table]]
"""(recipe, options, processes) → the config, what it needs, and that as a table."""

OWN = "the recipe's"


def plan_view(planned: Planner) -> None:
    """Choose a run; its budget is counted without reading weights."""
    with gr.Row():
        recipe = gr.Dropdown(list(RECIPES), label="Recipe")
        teacher = gr.Textbox(label="Teacher", info="A pipeline folder or a hub id; the recipe's own, if left empty")
        train = gr.Radio([OWN, "lora", "full"], value=OWN, label="What is trained")
    with gr.Row():
        batch = gr.Number(0, label="Batch", info="Of all cards; 0 is the recipe's", precision=0)
        count = gr.Number(1, label="Cards", precision=0)
        card = gr.Dropdown(list(CARDS), value="RTX 4090", label="Card")
        reached = gr.Slider(
            5, 80, value=100 * REACHED, step=5, label="Of its peak, %", info="What a run reaches: an assumption"
        )
    button = gr.Button("Plan", variant="primary")
    budget = gr.HTML(elem_id="budget")

    def show(
        recipe: str, teacher: str, train: str, batch: float, count: float | None, card: str, reached: float
    ) -> str:
        given: dict[str, Any] = {} if train == OWN else {"train": train}
        given |= {"teacher": teacher.strip()} if teacher.strip() else {}
        given |= {"batch_size": int(batch)} if batch else {}
        try:
            cards = int(count or 1)
            return _page(*planned(recipe, given, cards), cards, CARDS[card], reached / 100)
        except Exception as error:
            return problem(error)

    gr.on([button.click, teacher.submit], show, [recipe, teacher, train, batch, count, card, reached], budget)


def _page(config: DistillConfig, budget: Budget, shown: Table, count: int, card: Card, reached: float) -> str:
    """Memory and time in two sentences, then the table of `--dry-run`."""
    fits = "fits" if budget.peak < card.memory else "does not fit"
    hours = card.hours(budget.run_flops, config.precision, reached, count)
    time = f"{hours:,.1f} hours" if hours >= 1 else f"{60 * hours:.2g} minutes"
    said = (
        f"<p>Each card holds <b>{budget.peak / 1e9:.3g} GB</b> of {card.memory / 1e9:g}, before what CUDA itself "
        f"takes: it {fits}. {config.max_steps:,} steps take <b>{time}</b> at {reached:.0%} of the peak.</p>"
    )
    rows = zip(*([Text.from_markup(str(cell)).plain for cell in column.cells] for column in shown.columns), strict=True)
    return said + table(rows, Text.from_markup(str(shown.title)).plain)
