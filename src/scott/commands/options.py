"""The options of `scott distill`, a set a recipe: the fields of `DistillConfig` in groups, each with its default there.

A parsed set holds only what was given on the command line. So the method and what is trained, which decide the defaults
of other options, are known before any default is put in, and what was given wins over it even where the two are equal.
"""

from dataclasses import dataclass, fields, is_dataclass, make_dataclass
from functools import cache, partial
from inspect import getdoc
from typing import Annotated, Any, ClassVar, Required, TypedDict, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse_from_object
from tyro.conf import arg, subcommand

from scott.data.settings import Reading
from scott.errors import UserError
from scott.progress import Bars, console, outcome
from scott.recipes.configs import RECIPES
from scott.training.adversary import Adversary
from scott.training.config import DistillConfig

GROUPS = {
    "training": "teacher data out method seed max_steps batch_size",
    "teacher": "teacher_config teacher_lora vae prediction variant",
    "reading": " ".join(("weights", *(field.name for field in fields(Reading)))),
    "rate": "learning_rate warmup_steps decay optimizer weight_decay clip_norm",
    "solver": "solver eta phi order jump substeps times jump_reuse jump_store guidance_min guidance_max guidance",
    "loss": "loss weighting",
    "critic": " ".join(field.name for field in fields(Adversary)),
    "student": "train lora_rank lora_alpha lora_variant ema_decay init continue_from",
    "log": "log_every tracker sample_every checkpoint_every keep_checkpoints",
    "validation": "validate_every validation_samples validation_features best_metric",
}
"""Title of a group in `--help` → its fields; those that stand nowhere decide how a run is computed: "device"."""


def grouped_options(recipe: str | None) -> dict[str, Any]:
    """Group → a TypedDict of its options, for tyro; those of a recipe, or of one that is yet to be found."""
    types, texts, defaults = _types(), texts_of(DistillConfig), _defaults(recipe)
    groups = {title: names.split() for title, names in GROUPS.items()}
    groups["device"] = [name for name in types if not any(name in names for names in groups.values())]
    sets = {}
    for title, names in groups.items():
        options: dict[str, Any] = {}
        for name in names:
            hint = f"(default: {defaults[name]})" if name in defaults else None
            options[name] = Annotated[types[name], arg(help=texts.get(name), help_behavior_hint=hint)]
            if hint is None:
                options[name] = Required[options[name]]
        # an empty help keeps tyro from showing that of TypedDict
        sets[title] = Annotated[TypedDict(title, options, total=False), arg(help="")]  # type: ignore[operator]
    return sets


@cache
def _types() -> dict[str, Any]:
    hints = get_type_hints(DistillConfig)
    return {field.name: hints[field.name] for field in fields(DistillConfig)}


@cache
def texts_of(described: type) -> dict[str, str]:
    """Field of a dataclass → its docstring in one line, where it has one."""
    classes = [base for base in reversed(described.__mro__) if is_dataclass(base)]
    entries = [(entry.arg_name, entry.description) for base in classes for entry in parse_from_object(base).params]
    return {name: " ".join(text.split()) for name, text in entries if text}


def described(command: Any) -> None:
    """Have the help of each option, and of those within, be one paragraph that names no empty default."""
    texts, hints = texts_of(command), get_type_hints(command, include_extras=True)
    for option in fields(command):
        if is_dataclass(kind := getattr(hints[option.name], "__origin__", None)):
            described(kind)
        else:
            text = arg(help=texts.get(option.name), help_behavior_hint=_default)
            command.__annotations__[option.name] = Annotated[hints[option.name], text]


def lists_of(command: Any) -> set[str]:
    """The options of a command, and of those within, that take any number of values."""
    hints = get_type_hints(command)
    kinds = {option.name: (hints[option.name], *get_args(hints[option.name])) for option in fields(command)}
    own = {name for name, (kind, *parts) in kinds.items() if any(_is_list(one) for one in (kind, *parts))}
    return own.union(*(lists_of(kind) for kind, *_ in kinds.values() if is_dataclass(kind)))


def _is_list(kind: Any) -> bool:
    return get_origin(kind) is tuple and get_args(kind)[-1] is Ellipsis


def _default(shown: str) -> str:
    return "(optional)" if shown in ("", "''", "None") else f"(default: {shown})"


def _defaults(recipe: str | None) -> dict[str, str]:
    """Option → its default in words, with those of the other method and of the other kind of student.

    `data` has none where the recipe names no data.
    """
    if recipe is None:
        return dict.fromkeys(_types(), "the recipe's")
    data = {} if has_data(recipe) else {"data": ""}
    made = partial(RECIPES[recipe], **data)
    default = made()
    train = "lora" if default.train == "full" else "full"
    others = {f"--method {name}": made(method=name) for name in ("paper", "lcm")}
    others[f"--train {train}"] = made(train=train)
    words = {}
    for name in _types().keys() - data.keys():
        value = getattr(default, name)
        words[name] = _shown(value)
        for flag, other in others.items():
            if getattr(other, name) != value and not flag.startswith(f"--{name} "):
                words[name] += f"; with {flag} {_shown(getattr(other, name))}"
    return words


def _shown(value: Any) -> str:
    """A value as it is given on the command line."""
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def has_data(recipe: str) -> bool:
    """Whether a recipe names data of its own."""
    try:
        RECIPES[recipe]()
    except TypeError:  # `data` is missing
        return False
    return True


@dataclass(kw_only=True)
class DistillRecipe:
    """`scott distill RECIPE`; `_distill_with` adds a field for each group of the recipe's options."""

    recipe: ClassVar[str | None]
    groups: ClassVar[tuple[str, ...]]

    dry_run: bool = False
    """Say what would be trained, called and held, and stop: no weights are read and nothing is written."""
    json: bool = False
    """With --dry-run: say it as JSON."""
    processes: int = 1
    """With --dry-run: how many the run is spread over, of more than 8 as many on a machine; what is said is of each."""

    def run(self) -> None:
        from scott.commands.distill import config_of, run
        from scott.device import processes

        if (self.json or self.processes != 1) and not self.dry_run:
            raise UserError("got --json or --processes, which only --dry-run has; add it, or leave them out")
        given = {name: value for group in self.groups for name, value in getattr(self, group).items()}
        recipe, config = config_of(self.recipe, given, self.processes if self.dry_run else processes()[1])
        if self.dry_run:
            from scott.commands.plan import show

            show(recipe, config, self.processes, as_json=self.json)
            return
        with Bars(console) as bars:
            run(config, bars.report, bars.warn)
        console.print(outcome(config.out), markup=False, highlight=False, soft_wrap=True)


def _distill_with(recipe: str | None) -> Any:
    """The sub-command of `scott distill` for a recipe; for None the one that finds it by the teacher."""
    options = grouped_options(recipe)
    made = make_dataclass(
        f"Distill_{recipe}",
        options.items(),
        bases=(DistillRecipe,),
        namespace={"recipe": recipe, "groups": tuple(options)},
        kw_only=True,
    )
    if recipe is None:
        text = "The recipe of the teacher's family, which `scott distill --teacher TEACHER` takes too."
        return Annotated[made, subcommand("auto", description=text, is_default=True)]
    first_paragraph = (getdoc(RECIPES[recipe]) or "").partition("\n\n")[0]
    return Annotated[made, subcommand(recipe, description=first_paragraph)]


Recipes: Any = Union[tuple(_distill_with(recipe) for recipe in (*RECIPES, None))]  # noqa: UP007
"""What `scott distill` chooses from."""
