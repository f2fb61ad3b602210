"""`card.md`, beside every export and in the run folder: what a student is, how to draw with it, what was measured."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from scott.evaluation import Results, markdown_table
from scott.export.lora import FORMS
from scott.export.pipeline import call_options
from scott.export.trained import StudentInfo
from scott.files import write_atomically
from scott.mini import embedded
from scott.training.config import DistillConfig

CARD = "card.md"
FOLDERS = {"diffusers": "student", "lora": "lora", "kohya": "kohya", "onnx": "onnx"}
"""Kind of export → its folder in the run."""
RESULTS = ("results.json", "evaluation*.json")
EXAMPLE = "a small red apple on a blue background"


def write_cards(run: Path, config: DistillConfig) -> None:
    """Write the card of each of a run's exports, and the run's own, anew: with the results that are there now."""
    results = [Results.load(file) for pattern in RESULTS for file in sorted(run.glob(pattern))]
    for kind, name in FOLDERS.items():
        if info := StudentInfo.read(run / name):
            text = card(config, info, kind, run / name, results)
            write_atomically(run / name / CARD, text)
            if kind == "diffusers":
                write_atomically(run / CARD, text)


def card(config: DistillConfig, info: StudentInfo, kind: str, folder: Path, results: Sequence[Results] = ()) -> str:
    """The card of one export that stands in `folder`."""
    rows = {
        "teacher": f"`{config.teacher}` (`{info.pipeline}`)",
        "licence of the teacher": teacher_licence(config.teacher),
        "data": f"`{config.data}`",
        "method": _method(config),
        "updates": f"{info.updates:,} of batch {config.batch_size}; learning rate {config.learning_rate:g}, EMA "
        f"{config.ema_decay:g}, frozen network in {config.precision}, seed {config.seed}",
        "trained": _trained(info),
        "guidance ω": _guidance(info),
        "scheduler": _scheduler(info),
        "times": "; ".join(f"{steps}: {', '.join(f'{t:g}' for t in times)}" for steps, times in info.times.items()),
    }
    unit = "the network's σ" if info.scheduler == "FlowMatchLCMScheduler" else "training steps"
    table = ["| | |", "| --- | --- |", *(f"| {name} | {_cell(value)} |" for name, value in rows.items())]
    measured = [f"{markdown_table(result)}\n{_conditions(result)}" for result in results]
    parts = [
        "# A few-step student",
        "Distilled with SCott (Stochastic Consistency Distillation, <https://arxiv.org/abs/2403.01505>).",
        "\n".join(table),
        f"Times: for each number of steps, where the network is called, in {unit}. Guidance is written "
        "uncond + ω (cond − uncond).",
        f"## Draw\n\n```python\n{snippet(config, info, kind, folder)}\n```",
        *_elsewhere(kind),
        *(["## Measured", *measured] if measured else []),
    ]
    return "\n\n".join(parts) + "\n"


def snippet(config: DistillConfig, info: StudentInfo, kind: str, folder: Path) -> str:
    """Python that draws a picture with the export in `folder`, as it stands."""
    if kind == "onnx":
        lines = [
            "from scott.evaluation import to_pil",
            "from scott.commands.sample import load_student",
            "",
            f'student = load_student({_quoted(folder)}, engine="onnx")',
            f"(pixels,) = student.sampler(steps=2, guidance={info.guidance:g})([{_quoted(EXAMPLE)}], seed=0)",
            'to_pil(pixels).save("picture.png")',
        ]
        return "\n".join(lines)
    imports = ["import torch", "from diffusers import DiffusionPipeline"]
    load = [f"pipe = DiffusionPipeline.from_pretrained({_quoted(folder)})"]
    if kind != "diffusers":
        imports[1] += f", {info.scheduler}"
        imports += ["from scott.mini.embedded import TEACHER"] if config.teacher in embedded.TEACHERS else []
        imports += [] if _loads_lora(info) else ["from peft import PeftModel"]
        load = _load_lora(config, info, kind, folder)
    # torch's own generator, because SD3's pipeline hands no other to its scheduler
    options = {"num_inference_steps": 2, "guidance_scale": info.guidance_scale} | call_options(info.pipeline)
    if kind != "diffusers" and info.resolution:  # the teacher's own pipeline would draw at its size
        options |= {"height": info.resolution, "width": info.resolution}
    draw = [
        "image = pipe(",
        f"    {_quoted(EXAMPLE)},",
        *(f"    {name}={value}," for name, value in options.items()),
        "    generator=torch.manual_seed(0),",
        ").images[0]",
        'image.save("picture.png")',
    ]
    return "\n".join([*imports, "", *load, *draw])


def teacher_licence(teacher: str) -> str:
    """What the front matter of a teacher folder's README.md says, or where to look."""
    folder = Path(embedded.teacher_folder(teacher))
    file = folder / "README.md"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    front = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    found = re.search(r"^license:[ \t]*(\S.*)$", front.group(1), re.MULTILINE) if front else None
    if found:
        return found.group(1).strip().strip("\"'")
    return "see the teacher's page" + ("" if folder.exists() else f", <https://huggingface.co/{teacher}>")


def _load_lora(config: DistillConfig, info: StudentInfo, kind: str, folder: Path) -> list[str]:
    there = Path(config.teacher)
    teacher = _quoted(there.resolve() if there.exists() else config.teacher)
    if config.teacher in embedded.TEACHERS:
        teacher = "TEACHER"  # where scott is installed
    file = FORMS["kohya" if kind == "kohya" else "diffusers"].file
    return [
        # parts stored in half precision would stay so, and not go together with the others
        f"pipe = DiffusionPipeline.from_pretrained({teacher}, torch_dtype=torch.float32)",
        f"pipe.scheduler = {info.scheduler}.from_pretrained({_quoted(folder / 'scheduler')})",
        f"pipe.load_lora_weights({_quoted(folder)}, weight_name={_quoted(file)})"
        if _loads_lora(info)
        else f"pipe.transformer = PeftModel.from_pretrained(pipe.transformer, {_quoted(folder)})",
    ]


def _loads_lora(info: StudentInfo) -> bool:
    """Whether the pipeline has `load_lora_weights`."""
    return not info.pipeline.startswith("PixArt")


def _method(config: DistillConfig) -> str:
    solver = {
        "er-sde": f"ER-SDE with φ {config.phi}, order {config.order}",
        "ddim": f"DDIM with η {config.eta:g}",
        "dpmpp-sde": f"SDE-DPM-Solver++ with η {config.eta:g}, order {config.order}",
    }[config.solver]
    share, fakes = config.adversarial_share, "; drawn fakes" if config.draws_fakes else ""
    weight = f"λ_adv for a gradient of {share:g} times L_CD's" if share else f"λ_adv {config.adversarial_weight:g}"
    critic = f"{weight}, critic {config.critic} ({config.critic_input}{fakes})" if config.has_critic else "no critic"
    times = f", at the {config.times} times" if config.times != "all" else ""
    reuse = f", each used {config.jump_reuse} times" if config.jump_reuse > 1 else ""
    walk = f"jump {config.jump} in {config.substeps} sub-steps{times}{reuse}"
    weighting = f" weighted by {config.weighting}" if config.weighting != "uniform" else ""
    decay = f"; rates fall over the last {config.decay:.0%} of the steps" if config.decay else ""
    return f"{config.method}: {solver}; {walk}; {config.loss} loss{weighting}; {critic}{decay}"


def _trained(info: StudentInfo) -> str:
    if info.train == "full":
        return "the whole network"
    return f"LoRA of rank {info.lora_rank}, α {info.lora_alpha:g}"


def _guidance(info: StudentInfo) -> str:
    low, high = f"{info.guidance_min:g}", f"{info.guidance_max:g}"
    if info.takes_guidance:
        return (f"{low}" if low == high else f"{low} to {high}") + ", given as `guidance_scale`"
    return f"{low}, built in: draw with `guidance_scale=1.0`"


def _scheduler(info: StudentInfo) -> str:
    if info.scheduler == "LCMScheduler":
        return f"`LCMScheduler` with `original_inference_steps={info.original_inference_steps}`"
    return f"`{info.scheduler}`"


def _elsewhere(kind: str) -> list[str]:
    if kind != "kohya":
        return []
    return ["In A1111 or ComfyUI: the teacher's checkpoint, this LoRA at strength 1, the LCM sampler and CFG 1."]


def _conditions(results: Results) -> str:
    return "Measured with " + ", ".join(f"{name} {value}" for name, value in results.meta.items()) + "."


def _quoted(text: object) -> str:
    return json.dumps(str(text), ensure_ascii=False)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
