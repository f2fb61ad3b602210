"""How a student is drawn in ComfyUI and A1111, for its card and docs/teachers/: what to set there, and where it is then
called. What is said of them is by their code (`schedules.py`; which LoRA files ComfyUI reads: comfy/lora.py)."""

from collections.abc import Iterable, Mapping, Sequence

from scott.export.info import StudentInfo
from scott.export.schedules import FLOW_NODES, OWN_SHIFTS, PROGRAMS, flow_shift, flow_sigmas, furthest, nearest
from scott.export.teacher_lines import shown
from scott.teachers.layout import family_class
from scott.training.config import DistillConfig

TITLE = "## In ComfyUI and A1111"
EXACT = 2e-3
"""How far a flow's σ may be off: a node's shift has two decimals."""


def elsewhere(config: DistillConfig, info: StudentInfo, kind: str) -> list[str]:
    """The parts of a card that say how its student is drawn there; of an ONNX export there are none."""
    is_unet = family_class(info.pipeline).part == "unet"
    if kind == "onnx":
        return []
    if info.is_flow and info.pipeline not in FLOW_NODES:
        return [TITLE, "Neither has this family in its own code: this student is for diffusers."]
    if info.lora_variant == "dora":
        return [TITLE, "They read DoRA each in its own way: this student is for diffusers."]
    if info.train == "full" and not is_unet:
        return [TITLE, "Of a whole transformer there is no file in their names: this student is for diffusers."]
    if info.is_flow:
        return [TITLE, _flow(config, info, kind), flow_table(info.pipeline, info.times)]
    how = f"{_size(info)}sampler LCM, CFG 1, and the scheduler whose times are nearest to the student's:"
    if kind == "checkpoint":
        how = f"This checkpoint, {how}"
    elif info.train == "full":
        how = (
            "They feed a network no ω, so this student's would be lost there; `scott export RUN --to checkpoint` folds "
            f"{info.guidance:g} in. That checkpoint takes {how}"
        )
    else:
        how = f"The teacher's checkpoint{_under(config)}, {_lora(kind)} at strength 1, {how}"
    is_of_noise = info.prediction in (None, "epsilon")
    if not is_unet:
        how = f"A1111 does not read this family. In ComfyUI: {how[0].lower()}{how[1:]}"
    elif not is_of_noise:  # of a checkpoint, ComfyUI tells SDXL's by a mark and SD2's by its weights, and no SD1's
        what, sampling = ("v", "v_prediction") if info.prediction == "v_prediction" else ("x0", "x0")
        how = (
            f"A1111's LCM sampler is one of noise prediction, so that it draws no student of {what}. In ComfyUI, "
            f"behind ModelSamplingDiscrete at {sampling} (with zsnr on, if the teacher's schedule ends without "
            f"signal): {how[0].lower()}{how[1:]}"
        )
    return [TITLE, how, table(info.pipeline, info.times, list(PROGRAMS) if is_unet and is_of_noise else ["ComfyUI"])]


def table(pipeline: str, times: Mapping[str, Sequence[float]], programs: Sequence[str]) -> str:
    """For each number of steps the times that a student needs, and the nearest that each program has."""
    rows = [f"| steps | the student's times | {' | '.join(programs)} |", "| --- " * (2 + len(programs)) + "|"]
    for steps, wanted in times.items():
        found = (nearest(program, wanted, pipeline) for program in programs)
        cells = (f"{name}: {_list(stops)}" for name, stops in found)
        rows.append(f"| {steps} | {_list(wanted)} | {' | '.join(cells)} |")
    return "\n".join(rows)


def flow_table(pipeline: str, times: Mapping[str, Sequence[float]]) -> str:
    """For each number of steps the σ as ManualSigmas takes them, and those of "simple" where they are the student's."""
    shift = flow_shift(times["2"][1])
    rows = [f"| steps | ManualSigmas | simple, {FLOW_NODES[pipeline]} at shift {shift:g} |", "| --- | --- | --- |"]
    for steps, wanted in times.items():
        got = flow_sigmas(shift, len(wanted))
        said = _list(round(sigma, 4) for sigma in got) if furthest(got, wanted) < EXACT else "not these"
        rows.append(f"| {steps} | {_list(wanted)}, 0 | {said} |")
    return "\n".join(rows)


def _flow(config: DistillConfig, info: StudentInfo, kind: str) -> str:
    guidance = f", FluxGuidance at {info.guidance:g}" if info.takes_guidance else ""
    is_own = OWN_SHIFTS.get(info.pipeline) == flow_shift(info.times["2"][1])
    without = ", or without one, since its shift is ComfyUI's own of this family" if is_own else ""
    return (
        f"In ComfyUI: the teacher{_under(config)}, {_lora(kind)} at strength 1 (`comfy/lora.py` has its names)"
        f"{guidance}, {_size(info)}and SamplerCustom at CFG 1 with the sampler lcm and the σ below in ManualSigmas, "
        "a node of newer versions. KSampler with the sampler lcm, CFG 1 and the scheduler simple stops at those of "
        f"the last column, behind the node that it names{without}. A1111's LCM sampler is one of noise "
        "prediction, so that it draws no flow."
    )


def _under(config: DistillConfig) -> str:
    """What the teacher was made of besides, which goes there with it."""
    vae = f", VAE `{shown(config.vae)}`" if config.vae else ""
    return vae + "".join(f", `{place.name}` at strength {scale:g}" for place, scale in config.loras)


def _size(info: StudentInfo) -> str:
    return f"{info.resolution} x {info.resolution} pixels, " if info.resolution else ""


def _lora(kind: str) -> str:
    return "the student's LoRA" + ("" if kind in ("lora", "kohya") else " (`scott export RUN --to lora`)")


def _list(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
