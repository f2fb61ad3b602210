"""`scott distill … --dry-run`: what a run would train, call and hold. Nothing is written, and no weights are read."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from scott.commands.distill import add_models, check_config, config_of
from scott.commands.initial import check_start
from scott.commands.options import has_data
from scott.commands.prepare import check_reading, resolution_of
from scott.errors import UserError
from scott.mini import embedded
from scott.progress import console
from scott.teachers.skeleton import skeleton
from scott.training.budget import Budget, budget_of
from scott.training.cards import CARDS, REACHED
from scott.training.config import DistillConfig

NO_DATA = "/dev/null/pictures"
"""A place where nothing can be."""


def plan(config: DistillConfig, processes: int = 1) -> Budget:
    """The budget of each of a run's processes, at the size of its data. Raises `UserError` where the run would, but for
    what its data hold, its folder and how it was launched."""
    if processes < 1:
        raise UserError(f"got --processes {processes}; expected 1 or more")
    backbone = skeleton(embedded.teacher_source(config), config.dtype)
    check_reading(config.sources, config)
    backbone.resize(resolution_of(config.sources, backbone, config))
    check_config(backbone, config)
    check_start(backbone, config)
    add_models(backbone, dataclasses.replace(config, compile=False))  # compiling needs weights
    return budget_of(backbone, config, processes)


def planned(recipe: str, given: Mapping[str, Any], processes: int) -> tuple[DistillConfig, Budget, Table]:
    """Of a recipe with what is given, on data of its own or on pictures that nothing is read of."""
    recipe, config = config_of(recipe, ({} if has_data(recipe) else {"data": NO_DATA}) | dict(given), processes)
    budget = plan(config, processes)
    return config, budget, as_table(recipe, config, budget)


def show(recipe: str, config: DistillConfig, processes: int, *, as_json: bool) -> None:
    """Print the budget, as a table or as JSON."""
    with console.status("a step without weights"):
        budget = plan(config, processes)
    if as_json:
        said = {"recipe": recipe, "guidance": config.drawn_guidance, "precision": config.precision}
        console.print_json(data=said | dataclasses.asdict(budget) | budget.totals)
    else:
        console.print(as_table(recipe, config, budget))


def as_table(recipe: str, config: DistillConfig, budget: Budget) -> Table:
    """What is taken, parameters, calls and memory, in one table of 80 columns."""
    table = Table("", "", "", title=escape(f"{config.teacher}, {budget.teacher}"), show_header=False)
    table.columns[1].justify = "right"
    student = f"lora, rank {config.lora_rank}" if config.train == "lora" else "full"
    critic = config.critic if config.critic in ("full", "heads") else f"{config.critic}, rank {config.critic_rank}"
    low, high = config.guidance_min, config.guidance_max
    omega = f"ω {low:g}" if low == high else f"ω {low:g} to {high:g}, drawn at {config.drawn_guidance:g}"
    table.add_row("recipe", recipe, f"{omega}; {config.precision}")
    table.add_section()
    table.add_row("[bold]parameters")
    table.add_row("network", f"{budget.parameters:,}", budget.network)
    table.add_row("student", f"{budget.student:,}", f"{budget.student / budget.parameters:.2%}, {student}")
    if config.has_critic:
        critic += f", after {config.critic_start:.0%} of the steps" if config.critic_start else ""
        table.add_row("critic", f"{budget.critic:,}", f"{budget.critic / budget.parameters:.2%}, {critic}")
    table.add_section()
    table.add_row("[bold]network calls a step")
    for calls in budget.calls:
        backward = f", and {calls.backward} backward" if calls.backward else ""
        table.add_row(calls.model, f"{calls.forward}", f"on {calls.samples} samples{backward}")
    if config.measures_seldom:
        every, more = config.adversarial_share_every, config.gradient_accumulation
        table.add_row("student", f"+{more}", f"and {more} backward in one step of {every}, which measures gradients")
    reuse = f", {config.jump_reuse} a walk" if config.jump_reuse > 1 else ""
    table.add_row("TFLOP a step", _tera(budget.flops), f"over all processes{', with its walk' * bool(reuse)}")
    table.add_row("TFLOP in all", _tera(budget.run_flops), f"{config.max_steps:,} steps{reuse}")
    hours = gpu_hours(config, budget)
    shown = f"{hours:,.1f}" if hours >= 0.1 else f"{hours:.1g}"
    table.add_row("hours", shown, f"of an H100, {REACHED:.0%} of its peak assumed")
    samples = config.max_steps * config.batch_size
    table.add_row("a prepared picture", _bytes(budget.sample_bytes), f"on disk; the run reads {samples:,}")
    if budget.exchanged:
        table.add_row("exchanged", _bytes(budget.exchanged), "a process and step")
    table.add_section()
    table.add_row("[bold]memory")
    for part, size in budget.training.items():
        table.add_row(part, _bytes(size), _REMARKS.get(part, "").format(config=config))
    table.add_row("[bold]in all", f"[bold]{_bytes(budget.total)}", "before what CUDA itself takes")
    table.add_row("[bold]between steps", f"[bold]{_bytes(budget.drawing)}", "at most, while samples are drawn")
    in_turn = ", one at a time" if config.low_memory else ""
    for part, size in budget.preparing.items():
        table.add_row(part, _bytes(size), _REMARKS[part].format(one_at_a_time=in_turn))
    table.add_row("[bold]at the start", f"[bold]{_bytes(budget.start)}", "while data are prepared, before the network")
    if budget.savings:
        table.add_section()
        table.add_row("[bold]would save")
        for flag, size in budget.savings.items():
            table.add_row(flag, _bytes(size), "of the frozen network" if "quantize" in flag else "of activations")
        for flag, size in budget.start_savings.items():
            table.add_row(flag, _bytes(size), "of the text encoders, at the start")
    return table


def gpu_hours(config: DistillConfig, budget: Budget) -> float:
    """All steps on one H100, of whose peak it reaches `cards.REACHED`; n of them take 1/n of it."""
    return CARDS["H100 SXM"].hours(budget.run_flops, config.precision)


_REMARKS = {
    "frozen network": "{config.precision}, quantize {config.quantize}",
    "student": "fp32",
    "EMA target": "fp32",
    "critic": "fp32",
    "optimizers": "{config.optimizer}",
    "gradients": "fp32",
    "activations": "at the peak of a pass",
    "gathered": "what lies outside the blocks, and two of these",
    "kept jumps": "--jump-store {config.jump_store}",
    "VAE": "fp32",
    "encoding": "of pictures, by the VAE",
    "text encoders": "until the data are prepared{one_at_a_time}",
}


def _tera(flops: float) -> str:
    return f"{flops / 1e12:,.1f}" if flops >= 1e12 else f"{flops / 1e12:.2g}"


def _bytes(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.2f} MB"
