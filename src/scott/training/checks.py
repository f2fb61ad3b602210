"""What a run's config may hold: the range of each value, what contradicts itself, and what has no effect."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from scott.choices import unknown
from scott.errors import UserError
from scott.training.adversary import Adversary

if TYPE_CHECKING:
    from scott.diffusion import JumpGrid, NoiseSchedule
    from scott.training.config import DistillConfig

Range = tuple[Callable[[Any], bool], str]

MOST = 2**31
"""What no count of a run comes near."""
_POSITIVE: Range = lambda value: 0 < value < MOST, "a positive number below 2**31"
_COUNT: Range = lambda value: 0 <= value < MOST, "0 or more, below 2**31"
RANGES: dict[str, Range] = {
    **dict.fromkeys(("max_steps", "batch_size", "learning_rate", "clip_norm", "gradient_accumulation"), _POSITIVE),
    **dict.fromkeys(("jump", "substeps", "jump_reuse", "jump_store", "lora_rank", "lora_alpha"), _POSITIVE),
    "adversarial_share_every": _POSITIVE,
    **dict.fromkeys(("log_every", "sample_every", "checkpoint_every", "keep_checkpoints"), _POSITIVE),
    **dict.fromkeys(("validation_samples", "critic_rank", "critic_learning_rate", "critic_head_rate"), _POSITIVE),
    **dict.fromkeys(("warmup_steps", "weight_decay", "loader_workers", "validate_every", "critic_warmup"), _COUNT),
    **dict.fromkeys(("adversarial_weight", "adversarial_share", "adversarial_ramp", "critic_r1", "eta"), _COUNT),
    "seed": (lambda value: 0 <= value < 2**64, "0 to 2**64 - 1"),
    "decay": (lambda value: 0 <= value <= 1, "a fraction from 0 to 1"),
    "critic_start": (lambda value: 0 <= value < 1, "a fraction from 0 to below 1"),
    "ema_decay": (lambda value: 0 <= value < 1, "at least 0 and less than 1"),
    "drawn_fraction": (lambda value: 0 < value <= 1, "more than 0, and 1 at most"),
    "critic_betas": (lambda value: len(value) == 2 and all(0 <= b < 1 for b in value), "two from 0 to below 1"),
    "guidance_min": (lambda value: value >= 1, "1 or more (1 is no guidance)"),
}
"""Field → whether a value is in its range, and the range in words; None, where a field takes it, is a default."""

_TYPES: dict[type, tuple[Any, str]] = {
    int: (int, "a whole number"),
    float: (int | float, "a number"),
    bool: (bool, "True or False"),
    tuple: (tuple, "a tuple"),
}
"""Type of a field → what `isinstance` takes for it, and its values in words."""

_FIXED_WEIGHT = "add --adversarial-share 0 for a fixed weight"
_WITHOUT_EFFECT = {"ddim": ("phi", "order"), "er-sde": ("eta",), "dpmpp-sde": ("phi",)}


def check_given(config: "DistillConfig", given: Iterable[str]) -> None:
    """Raise `UserError` for a field that was given, be it its default, and that the run has no use for."""
    for name, by in (*_lacking(config), *_idle(config)):
        if name not in given:
            continue
        if by == "train":
            raise UserError(f"got {name} {getattr(config, name)} for a full student; leave it out, or add --train lora")
        if by == "critic_head_rate":
            raise UserError(
                f"got {name} {getattr(config, name)} and {by} {getattr(config, by)} for critic heads, of which all is "
                "heads; give one of them"
            )
        if name == "adversarial_weight" and by == "adversarial_share":
            instead = _FIXED_WEIGHT
        elif by == "adversarial_weight":  # 0, which has no critic
            instead = f"leave {by} out" if by in given else "take a --method that has a critic"
        else:
            instead = f"name another {by}"
        raise UserError(
            f"got {name} {getattr(config, name)}, which {by} {getattr(config, by)} does not have; leave it out, or "
            f"{instead}"
        )


def _lacking(config: "DistillConfig") -> Iterator[tuple[str, str]]:
    """Each field that is without effect, and the field by whose value it is."""
    for name in _WITHOUT_EFFECT[config.solver]:
        yield name, "solver"
    if config.draws_fakes:
        yield "adversarial_share_every", "critic_fakes"
    elif not config.adversarial_share:
        yield "adversarial_share_every", "adversarial_share"
    elif not config.has_critic:
        yield "adversarial_share_every", _no_critic(config)
    if not config.has_critic:
        return
    if config.critic in ("heads", "full"):
        yield "critic_rank", "critic"
    if config.critic_fakes == "noised":
        yield from (("drawn_fraction", "critic_fakes"), ("drawn_timesteps", "critic_fakes"))
    if config.critic == "heads" and config.critic_head_rate is not None:
        yield "critic_learning_rate", "critic_head_rate"


def _idle(config: "DistillConfig") -> Iterator[tuple[str, str]]:
    """The same of what a run keeps as its recipe has it: of no LoRA, store, validation, fixed λ_adv and critic."""
    if config.train == "full":
        yield from (("lora_rank", "train"), ("lora_alpha", "train"), ("lora_variant", "train"))
    if config.jump_reuse == 1:
        yield "jump_store", "jump_reuse"
    if not config.validate_every:
        yield from (("validation_samples", "validate_every"), ("validation_features", "validate_every"))
    if config.adversarial_share and config.adversarial_weight:
        yield "adversarial_weight", "adversarial_share"
    if config.has_critic:
        return
    by = _no_critic(config)
    says_none = {by} | {name for name in ("adversarial_weight", "adversarial_share") if not getattr(config, name)}
    yield from ((field.name, by) for field in dataclasses.fields(Adversary) if field.name not in says_none)


def _no_critic(config: "DistillConfig") -> str:
    """The field that says so, of a run without one."""
    return "critic" if config.critic == "none" else "adversarial_weight"


def without_effect(config: "DistillConfig") -> dict[str, Any]:
    """The fields that are without effect, at their defaults."""
    lacking = dict(_lacking(config))
    return {field.name: field.default for field in dataclasses.fields(config) if field.name in lacking}


def check_values(config: "DistillConfig") -> None:
    """Raise `UserError` for a value that is no choice of its field, of another type, not finite, or out of range."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        choices = get_args(field.type) if get_origin(field.type) is Literal else ()
        if choices and value not in choices:
            raise unknown(field.name, value, choices)
        if kind := _other_type(field.type, value):
            raise UserError(f"got {field.name} {value!r:.40}; expected {kind}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"got {field.name} {value}; expected a finite number")
        fits, expected = RANGES.get(field.name, (lambda value: True, ""))
        if value is not None and not fits(value):
            raise UserError(f"got {field.name} {value}; expected {expected}")


def _other_type(expected: Any, value: Any) -> str:
    """What a field of numbers, of True and False, or of a tuple takes, where a value is not of its type."""
    kinds = get_args(expected) if get_origin(expected) is UnionType else (expected,)
    if value is None and NoneType in kinds:
        return ""
    kind, *others = [get_origin(kind) or kind for kind in kinds if kind is not NoneType]
    allowed, words = _TYPES.get(kind, (object, ""))
    fits = isinstance(value, allowed) and (kind is bool or not isinstance(value, bool))
    return "" if others or fits else words


def check_together(config: "DistillConfig", also: dict[str, Any]) -> None:
    """Raise `UserError` for values that contradict each other; `also` may be given where it has no effect."""
    for problem in _contradictions(config, also):
        raise UserError(f"got {problem}")


def _contradictions(config: "DistillConfig", also: dict[str, Any]) -> Iterator[str]:
    low, high, weights = config.guidance_min, config.guidance_max, config.weights
    if not config.sources:
        yield f"data {config.data}; expected a source or more"
    if weights and (len(weights) != len(config.sources) or not all(0.001 <= weight < MOST for weight in weights)):
        yield f"weights {weights}; expected one a source, from .001"
    if high < low:
        yield f"guidance_max {high}; expected at least guidance_min"
    if not low <= config.drawn_guidance <= high:
        yield f"guidance {config.guidance}; expected one the student is trained for, {low:g} to {high:g}"
    if config.train == "lora" and low != high:
        yield (
            f"guidance from {low} to {high} for a LoRA student, which takes no ω; set guidance_min = guidance_max, "
            "or train full"
        )
    if (config.critic, config.critic_input) == ("heads", "paper") and config.has_critic:
        yield (
            "critic heads with critic_input paper, by which a frozen encoder tells data by the time alone; "
            "add --critic-input clean"
        )
    if config.solver == "ddim" and config.eta > 1:
        yield f"eta {config.eta} with the solver ddim; expected 0 to 1"
    if config.solver == "dpmpp-sde" and config.order > 2:
        yield f"order {config.order} with the solver dpmpp-sde; expected 1 or 2"
    if config.adversarial_share and config.adversarial_weight not in (0, Adversary.adversarial_weight):
        yield (
            f"adversarial_weight {config.adversarial_weight} with adversarial_share {config.adversarial_share}, "
            f"which sets the weight by itself; leave the weight out, or {_FIXED_WEIGHT}"
        )
    if config.has_critic and config.critic_r1 and config.precision != "fp32":
        yield (
            f"critic_r1 {config.critic_r1} with precision {config.precision}, which rounds by more than the "
            "differences that R1 is made of; train in fp32, or leave it out"
        )
    if config.quantize != "none" and config.shard != "none":
        yield f"quantize {config.quantize} with shard {config.shard}, which splits whole weights; use one"
    if config.quantize != "none" and "full" in (config.train, config.critic if config.has_critic else "none"):
        yield (
            f"quantize {config.quantize} with train {config.train} and critic {config.critic}; a copy cannot be made "
            "of quantised weights: train and critic have to be lora"
        )
    if (config.quantize, config.lora_variant) == ("int8", "dora"):
        yield "lora_variant dora with quantize int8, which bitsandbytes cannot compute; use nf4"
    if config.init and config.continue_from:
        yield "init and continue_from, which both say what the student starts as; leave one out"
    if config.best_metric != "none" and not config.validate_every:
        yield f"best_metric {config.best_metric} without validate_every; say how often to validate"
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name in _WITHOUT_EFFECT[config.solver]:
        if (value := getattr(config, name)) not in (defaults[name], also.get(name)):
            yield f"{name} {value}, which the solver {config.solver} does not have; leave it out"


def check_grid(config: "DistillConfig", grid: "JumpGrid", schedule: "NoiseSchedule") -> None:
    """Raise `UserError` where sampling for the critic would stop at more times than a config's grid has, or at times
    that it has not."""
    from scott.training.draws import SAMPLING_STEPS

    times, most = grid.original_inference_steps, max(SAMPLING_STEPS)
    if times < most:
        raise UserError(
            f"got jump {config.jump} and {config.substeps} sub-steps, a grid of {times} times; expected {most} or "
            f"more. Use a jump of at most {schedule.training_steps // most * config.substeps}."
        )
    is_flow = schedule.time_dtype.is_floating_point
    trained = [] if is_flow else grid.trained_times.tolist()
    if unknown := [time for time in config.drawn_timesteps if time not in trained]:
        expected = "none of a flow" if is_flow else f"times that are trained, such as {trained[-2]} and {trained[-1]}"
        raise UserError(f"got drawn_timesteps {unknown[0]:g}; expected {expected}")


def doubt_of_critic(config: "DistillConfig") -> str | None:
    """What to say of a run whose critic counts in none of its steps."""
    if not config.has_critic or config.adversarial_factor(config.max_steps - 1):
        return None
    return (
        f"the critic counts in none of the {config.max_steps} steps: it begins after {config.first_with_critic}, and "
        f"learns alone for {config.critic_warmup}; lower --critic-start or --critic-warmup, or raise --max-steps"
    )
