"""Sampling in two steps against the bare network calls and decoding, and images per second beside the teacher's."""

import copy
from functools import partial
from typing import Any

import torch

from benchmarks.bare import bare_sample
from benchmarks.harness import main
from benchmarks.models import PROMPT, Model
from benchmarks.timing import Call, interleaved
from scott.samplers import StudentSampler, TeacherSampler

STUDENT_STEPS = (2, 4)
TEACHER_STEPS = (25, 50)


def measure(model: Model, batch_size: int | None, repeats: int) -> dict[str, Any]:
    """The sampler's figures of one model (README.md says what each is)."""
    backbone, batch = model.teacher(), batch_size or model.sample_batch
    prompts, omega = [PROMPT] * batch, model.config.guidance_min
    grid = model.config.make_grid(backbone.schedule)
    noise, cond = torch.randn(batch, *backbone.latent_shape), backbone.encode_prompts(prompts)
    encoded = copy.copy(backbone)
    encoded.encode_prompts = lambda prompts, truncate=False: cond  # type: ignore[method-assign, misc]

    calls: dict[str, Call] = {"bare_2": lambda: bare_sample(backbone, noise, cond, 2)}
    short = {"encoded_student_2": StudentSampler(encoded, backbone.teacher, grid, 2, omega)}
    # drawn as `scott sample` does with a saved student: the network of its pipeline, no adapter
    short |= {f"student_{n}": StudentSampler(backbone, backbone.teacher, grid, n, omega) for n in STUDENT_STEPS}
    calls |= {name: partial(sampler, prompts, 0) for name, sampler in short.items()}
    times = interleaved(calls, repeats)
    teachers = {f"teacher_{n}": TeacherSampler(backbone, n, omega) for n in TEACHER_STEPS}
    # a hundred network calls in one: few rounds tell enough
    long: dict[str, Call] = {name: partial(sampler, prompts, 0) for name, sampler in teachers.items()}
    seconds = times.medians() | interleaved(long, min(repeats, 3)).medians()
    return {
        "batch_size": batch,
        "two_step_over_bare": times.ratio("encoded_student_2", "bare_2"),
        "two_step_with_text_over_bare": times.ratio("student_2", "bare_2"),
        "images_per_second": {
            name: batch / seconds[name] for name in seconds if name.startswith(("student", "teacher"))
        },
        "student_over_teacher": {
            f"{s}_over_{t}": seconds[f"teacher_{t}"] / seconds[f"student_{s}"]
            for s in STUDENT_STEPS
            for t in TEACHER_STEPS
        },
        "seconds": seconds,
    }


if __name__ == "__main__":
    main(measure, __doc__ or "")
