"""The page: its views in tabs, its style, and how it is served."""

import gradio as gr

from scott.app.draw_view import draw_view
from scott.app.drawing import Drawer
from scott.app.figures import CSS
from scott.app.models import Models
from scott.app.plan_view import Planner, plan_view
from scott.app.watch_view import watch_view

FONTS = ("system-ui", "sans-serif")
"""The reader's own: nothing is fetched from elsewhere."""
ARROWS = """() => document.addEventListener("keydown", event => {
  const step = {ArrowLeft: -1, ArrowRight: 1}[event.key], tab = event.target.closest("[role=tab]")
  if (!step || !tab) return
  const tabs = [...tab.closest("[role=tablist]").querySelectorAll("[role=tab]")]
  const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length]
  next.focus(); next.click()
})"""
"""From view to view by the arrow keys, which gradio's tabs leave out."""


def _theme() -> gr.themes.Base:
    """gradio's own, with small text and buttons dark enough to be read (a contrast of 4.5 or more)."""
    theme = gr.themes.Default(font=FONTS, font_mono=("ui-monospace", "monospace"))
    return theme.set(
        body_text_color_subdued="*neutral_600",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
    )


def build(models: Models, planned: Planner) -> gr.Blocks:
    """The page, not yet served."""
    with gr.Blocks(title="SCott", analytics_enabled=False, fill_width=True) as page:
        gr.Markdown("# SCott")
        with gr.Tab("Draw"):
            draw_view(models, Drawer(models), page)
        with gr.Tab("Watch"):
            watch_view(models, page)
        with gr.Tab("Plan"):
            plan_view(planned)
    return page


def serve(page: gr.Blocks, host: str, port: int | None) -> str:
    """Serve the page from threads of its own, at the first free port from 7860 on if none is named; its address."""
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        ssr_mode=False,
        quiet=True,
        footer_links=[],
        prevent_thread_lock=True,
        theme=_theme(),
        css=CSS,
        js=ARROWS,
    )
    return address
