"""The options of `scott distill`, a set a recipe: the fields of `DistillConfig` in groups, each with its default there.

A parsed set holds only what was given on the command line. So the method and what is trained, which decide the defaults
of other options, are known before any default is put in, and what was given wins over it even where the two are equal.
"""

from dataclasses import fields
from functools import cache
from typing import Annotated, Any, Required, TypedDict, get_type_hints

from docstring_parser import parse_from_object
from tyro.conf import arg

from scott.recipes.configs import RECIPES
from scott.training.config import DistillConfig

GROUPS = {
    "training": ("teacher", "data", "out", "method", "seed", "max_steps", "batch_size"),
    "rate": (
        "learning_rate",
        "critic_learning_rate",
        "warmup_steps",
        "decay",
        "optimizer",
        "weight_decay",
        "clip_norm",
    ),
    "solver": ("solver", "eta", "phi", "order", "jump", "substeps", "times", "guidance_min", "guidance_max"),
    "loss": ("loss", "weighting", "adversarial_weight", "critic", "critic_input", "critic_rank"),
    "student": ("train", "lora_rank", "lora_alpha", "ema_decay"),
    "log": ("log_every", "tracker", "sample_every", "checkpoint_every", "keep_checkpoints"),
    "validation": ("validate_every", "validation_samples", "validation_features", "best_metric"),
}
"""Title of a group in `--help` → its fields; those that stand nowhere decide how a run is computed: "device"."""


def grouped_options(recipe: str | None) -> dict[str, Any]:
    """Group → a TypedDict of its options, for tyro; those of a recipe, or of one that is yet to be found."""
    help_of = {entry.arg_name: entry.description or "" for entry in parse_from_object(DistillConfig).params}
    types = _types()
    named = {name for group in GROUPS.values() for name in group}
    groups = GROUPS | {"device": tuple(name for name in types if name not in named)}
    hints = _hints(recipe)
    sets = {}
    for title, names in groups.items():
        options: dict[str, Any] = {}
        for name in names:
            text = " ".join(help_of.get(name, "").split()) or None
            if name in hints:
                options[name] = Annotated[types[name], arg(help=text, help_behavior_hint=f"(default: {hints[name]})")]
            else:
                options[name] = Required[Annotated[types[name], arg(help=text)]]
        # an empty help keeps tyro from showing that of TypedDict
        sets[title] = Annotated[TypedDict(title, options, total=False), arg(help="")]  # type: ignore[operator]
    return sets


@cache
def _types() -> dict[str, Any]:
    hints = get_type_hints(DistillConfig)
    return {field.name: hints[field.name] for field in fields(DistillConfig)}


def _hints(recipe: str | None) -> dict[str, str]:
    """Option → its default in words, with those of the other method and of the other kind of student.

    `data` has none where the recipe names no data.
    """
    if recipe is None:
        return dict.fromkeys(_types(), "the recipe's")
    scott, lcm = (RECIPES[recipe][method] for method in ("scott", "lcm"))
    data = {} if has_data(recipe) else {"data": ""}
    default = scott(**data)
    train = "lora" if default.train == "full" else "full"
    others = {"--method lcm": lcm(**data), f"--train {train}": scott(train=train, **data)}
    hints = {}
    for name in _types().keys() - data.keys():
        value = getattr(default, name)
        hints[name] = "none" if value is None else str(value)
        for flag, other in others.items():
            if getattr(other, name) != value and not flag.startswith(f"--{name} "):
                hints[name] += f"; with {flag} {getattr(other, name)}"
    return hints


def has_data(recipe: str) -> bool:
    """Whether a recipe names data of its own."""
    try:
        RECIPES[recipe]["scott"]()
    except TypeError:  # `data` is missing
        return False
    return True
