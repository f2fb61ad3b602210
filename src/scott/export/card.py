"""What a student is, how to draw with it, what was measured: `card.md` beside every export and in the run folder, and
`README.md`, the same under the hub's front matter.

A path of this machine helps nobody whom a card is published for: a teacher's folder is named by its last part and by
the fingerprint of its weights, an absolute path to an export by its last part.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load

from scott.errors import UserError
from scott.evaluation import Results, markdown_table
from scott.evaluation.results import FILES
from scott.export.elsewhere import elsewhere
from scott.export.info import StudentInfo
from scott.export.pipeline import call_options
from scott.export.places import HUB_ID, is_hub_id, placed, placed_results, without_paths
from scott.export.snippet import loads_lora, snippet
from scott.export.teacher_lines import shown
from scott.files import write_atomically
from scott.mini import embedded
from scott.progress import warn
from scott.training.config import DistillConfig

CARD, README = "card.md", "README.md"
FOLDERS = {"diffusers": "student", "lora": "lora", "kohya": "kohya", "checkpoint": "checkpoint", "onnx": "onnx"}
"""Kind of export → its folder in the run."""
_VARIANTS = {"lora": "LoRA", "rslora": "rsLoRA (α over √rank)", "dora": "DoRA"}
_SCOTT = "Distilled with SCott (Stochastic Consistency Distillation, <https://arxiv.org/abs/2403.01505>)."
_LCM = "Made with scott by latent consistency distillation (Luo et al. 2023, <https://arxiv.org/abs/2310.04378>)."


def write_cards(run: Path, config: DistillConfig) -> None:
    """Write the card of each of a run's exports, and the run's own, anew: with the results that are there now.

    A file that is called as results are and holds none is left out, with a warning.
    """
    found, strange = _results_in(run)
    for file in strange:
        warn(f"{file} is no results file, and is left out of the cards")
    for kind, name in FOLDERS.items():
        if info := StudentInfo.read(run / name):
            text = card(config, info, kind, run / name, _of_student(found, info))
            write_atomically(run / name / CARD, text)
            write_atomically(run / name / README, front_matter(config, info, kind) + text)
            if kind == "diffusers":
                write_atomically(run / CARD, text)


def results_of(run: Path, info: StudentInfo) -> list[Results]:
    """What was measured of a run's student: of as many updates, where results say of how many they are.

    Files that are no results are passed over; `write_cards` warns of them.
    """
    return _of_student(_results_in(run)[0], info)


def _of_student(results: Sequence[Results], info: StudentInfo) -> list[Results]:
    return [one for one in results if one.meta.get("updates", info.updates) == info.updates]


def _results_in(run: Path) -> tuple[list[Results], list[Path]]:
    """What a run's files called as results hold, and those that hold none."""
    found, strange = [], []
    for file in (file for pattern in FILES for file in sorted(run.glob(pattern))):
        try:
            found.append(Results.load(file))
        except UserError:
            strange.append(file)
    return found, strange


def card(
    config: DistillConfig,
    info: StudentInfo,
    kind: str,
    folder: Path,
    results: Sequence[Results] = (),
    *,
    hub: bool = False,
    base: str | None = None,
    licence: str | None = None,
) -> str:
    """The card of one export that stands in `folder`; with `hub`, in the repository of that name, and without the
    folders that relative paths of this machine go through.

    A `base` is where the teacher is on the hub, in whose place its name and its snippet have that.
    """
    terms = {"licence of the teacher": _teachers_licence(config, base)}
    terms |= {"licence of the student": licence} if licence else {}
    config = without_paths(config) if hub else config
    if base:  # where all is that a file lacks
        config = replace(config, teacher=base, teacher_config=None)
    rows = {"teacher": _teacher(config, info, base), **terms, **_rows(config, info)}
    cells = {name: value.replace("|", "\\|").replace("\n", " ") for name, value in rows.items()}
    table = ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in cells.items())]
    unit = "the network's σ" if info.is_flow else "training steps"
    parts = [
        _title(config, info, base),
        _LCM if config.method == "lcm" else _SCOTT,
        "\n".join(table),
        f"Times: for each number of steps, where the network is called, in {unit}. Guidance is written "
        "uncond + ω (cond − uncond).",
        f"## Draw\n\n```python\n{snippet(config, info, kind, folder, hub=hub)}\n```",
        *elsewhere(config, info, kind),
        *(["## Measured"] if results else []),
        *(_measured(placed_results(one, hub=hub)) for one in results),
    ]
    return "\n\n".join(parts) + "\n"


def _title(config: DistillConfig, info: StudentInfo, base: str | None) -> str:
    name = " ".join(Path(_teachers_name(config, base)).name.split())
    *fewer, most = info.times
    steps = f"{', '.join(fewer)} or {most} steps" if fewer else f"{most} step{'s'[: int(most) - 1]}"
    return f"# {name} in {steps}, by {'LCM' if config.method == 'lcm' else 'SCott'}"


def _rows(config: DistillConfig, info: StudentInfo) -> dict[str, str]:
    """What a student was made by, and draws by, below its teacher."""
    grid = f" with `original_inference_steps={info.original_inference_steps}`"
    return {
        "data": _data(config),
        **_start(config),
        "method": method_of(config),
        "updates": f"{info.updates:,} of batch {config.batch_size}; learning rate {config.learning_rate:g}, EMA "
        f"{config.ema_decay:g}, frozen network in {_frozen(config)}, seed {config.seed}",
        "trained": "the whole network"
        if info.train == "full"
        else f"{_VARIANTS[info.lora_variant]} of rank {info.lora_rank}, α {info.lora_alpha:g}",
        "guidance ω": _guidance(info),
        "scheduler": f"`{info.scheduler}`{'' if info.is_flow else grid}",
        "times": "; ".join(f"{steps}: {', '.join(f'{t:g}' for t in times)}" for steps, times in info.times.items()),
    }


def _start(config: DistillConfig) -> dict[str, str]:
    """The row of what the student started as, where that was not the teacher."""
    if config.continue_from:
        return {"started as": f"`{placed(config.continue_from)}`, with its critic and optimizers"}
    return {"started as": f"`{placed(config.init)}`"} if config.init else {}


def _measured(results: Results) -> str:
    conditions = ", ".join(f"{name} {value}" for name, value in results.meta.items())
    return f"{markdown_table(results)}\nMeasured with {conditions}."


def _frozen(config: DistillConfig) -> str:
    return config.precision if config.quantize == "none" else f"{config.precision}, its weights in {config.quantize}"


def front_matter(
    config: DistillConfig, info: StudentInfo, kind: str, *, base: str | None = None, licence: str | None = None
) -> str:
    """The YAML that the hub reads of a README.md; a base or a licence that is neither given nor known is left out."""
    is_lora = kind in ("lora", "kohya")
    fields: dict[str, object] = {}
    if base := base or (config.teacher if is_hub_id(config.teacher) else None):
        fields["base_model"] = base
        fields["base_model_relation"] = "adapter" if is_lora else "finetune"
    fields["library_name"] = "peft" if is_lora and not loads_lora(info) else "diffusers"
    fields["pipeline_tag"] = "text-to-image"
    if data := [source for source in config.sources if is_hub_id(source)]:
        fields["datasets"] = data
    fields["tags"] = ["few-step", "consistency-distillation", "scott", *(["lora"] if is_lora else [])]
    if " " not in (licence := licence or _teachers_licence(config, base)):
        fields["license"] = licence
    return "---\n" + "".join(f"{name}: {json.dumps(value)}\n" for name, value in fields.items()) + "---\n\n"


def read_front_matter(folder: Path) -> dict[str, Any]:
    """What the hub reads of a folder's README.md; nothing, where that is of another kind, or none."""
    try:
        found = metadata_load(folder / README)
    except Exception:  # of files, of YAML
        return {}
    return found if isinstance(found, dict) else {}


def teacher_licence(teacher: str) -> str:
    """What the front matter of a teacher folder's README.md says, or where to look."""
    found = read_front_matter(Path(embedded.teacher_folder(teacher))).get("license")
    if found and isinstance(found, str):
        return found
    return "see the teacher's page" + (f", <https://huggingface.co/{teacher}>" if is_hub_id(teacher) else "")


def _teachers_licence(config: DistillConfig, base: str | None) -> str:
    found = teacher_licence(config.teacher)
    return teacher_licence(base) if base and " " in found else found


def with_paths(config: DistillConfig) -> DistillConfig:
    """Data and teacher with `./` before what is here, and could be read as a place on the hub once it has moved."""
    data = _as_path(config.data) if isinstance(config.data, str) else tuple(map(_as_path, config.data))
    return replace(config, teacher=_as_path(config.teacher), data=data)


def _as_path(name: str) -> str:
    return f"./{name}" if HUB_ID.fullmatch(name) and Path(name).exists() else name


def _teacher(config: DistillConfig, info: StudentInfo, base: str | None) -> str:
    weights = f", weights {info.base['sha256'][:12]}" if info.base else ""
    merged = "".join(f", with `{file.name}` merged in at {scale:g}" for file, scale in config.loras)
    vae = f", VAE `{shown(config.vae)}`" if config.vae else ""
    variant = f", variant {config.variant}" if config.variant else ""
    variant += f", read as one of {config.prediction}" if config.prediction else ""
    return f"`{_teachers_name(config, base)}` (`{info.pipeline}`{weights}{variant}){merged}{vae}"


def _teachers_name(config: DistillConfig, base: str | None) -> str:
    return base or (config.teacher if is_hub_id(config.teacher) else Path(config.teacher).name)


def _data(config: DistillConfig) -> str:
    weights = config.weights or (1.0,) * len(config.sources)
    parts = [f" ({weight / sum(weights):.0%})" if len(weights) > 1 else "" for weight in weights]
    return ", ".join(f"`{placed(source)}`{part}" for source, part in zip(config.sources, parts, strict=True))


def method_of(config: DistillConfig) -> str:
    """Solver, jump, loss and critic in a line."""
    solver = {
        "er-sde": f"ER-SDE with φ {config.phi}, order {config.order}",
        "ddim": f"DDIM with η {config.eta:g}",
        "dpmpp-sde": f"SDE-DPM-Solver++ with η {config.eta:g}, order {config.order}",
    }[config.solver]
    ratio, fakes = config.adversarial_share, "; drawn fakes" if config.draws_fakes else ""
    weight = f"λ_adv for a gradient of {ratio:g} times L_CD's" if ratio else f"λ_adv {config.adversarial_weight:g}"
    start = f", after {config.critic_start:.0%} of the steps" if config.critic_start else ""
    game = f"{weight}, critic {config.critic} ({config.critic_input}{fakes}){start}"
    critic = game if config.has_critic else "no critic"
    times = f", at the {config.times} times" if config.times != "all" else ""
    reuse = f", each used {config.jump_reuse} times" if config.jump_reuse > 1 else ""
    walk = f"jump {config.jump} in {config.substeps} sub-step{'s'[: config.substeps - 1]}{times}{reuse}"
    weighting = f" weighted by {config.weighting}" if config.weighting != "uniform" else ""
    decay = f"; rates fall over the last {config.decay:.0%} of the steps" if config.decay else ""
    return f"{config.method}: {solver}; {walk}; {config.loss} loss{weighting}; {critic}{decay}"


def _guidance(info: StudentInfo) -> str:
    low, high = f"{info.guidance_min:g}", f"{info.guidance_max:g}"
    if info.takes_guidance:
        return (f"{low}" if low == high else f"{low} to {high}") + ", given as `guidance_scale`"
    call = {"guidance_scale": 1.0} | call_options(info.pipeline)
    words = [f"`{name}={scale}`" for name, scale in call.items() if name.endswith("_scale") and scale is not None]
    return f"{low}, built in: draw with {', '.join(words)}"
