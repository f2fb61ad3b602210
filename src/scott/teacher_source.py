"""What a teacher is made of: a pipeline's folder, hub id or single file, and what takes the place of parts of it."""

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from scott.errors import UserError
from scott.files import read_object

_FEW_STEP = re.compile(
    r"(?:^|[-_. ])((?:turbo|lightning|schnell|lcm|hyper)(?=(?:[-_. ]+(?:v?\d+|\d*steps?|lora|fp16|safetensors|ckpt))*$)"
    r"|lcm(?=[-_. ])|hyper-?sdx?l?(?=$|[-_. ]))",
    re.IGNORECASE,
)
"""How published few-step students are named whose configs are their teachers' own: at the end, but for versions."""
SINGLE_FILE = (".safetensors", ".ckpt")
"""Endings of a file that holds a whole pipeline."""


def few_step_word(name: str) -> str | None:
    """What in a name says that it is of a few-step student, or of a LoRA that makes one: of its last part."""
    found = _FEW_STEP.search(Path(name).name)
    return found[1] if found else None


@dataclass(frozen=True, kw_only=True)
class TeacherParts:
    """What is said of a teacher besides where it is."""

    teacher_config: str | None = None
    """Of a file: the pipeline folder or hub id with its config files and tokenizers. Those of SD1.5, SD2.1, SDXL,
    SD3, SD3.5 and FLUX.1-dev are known."""
    teacher_lora: tuple[str, ...] = ()
    """LoRA files that are merged into the teacher, each FILE or FILE:SCALE."""
    vae: str | None = None
    """Another VAE: its folder or hub id, that of a pipeline, or its file."""
    prediction: Literal["epsilon", "v", "v-ztsnr"] | None = None
    """What the network predicts, where its scheduler's config or its file does not say or says otherwise: the noise, as
    SD2's base edition does; v; or v with zero terminal SNR."""
    variant: str | None = None
    """Which of a folder's weights to read where there are several, such as fp16; the plain ones, or else the only
    ones, if left out."""


@dataclass(frozen=True, kw_only=True)
class TeacherSource(TeacherParts):
    """All that `load_backbone` needs to know where a teacher comes from."""

    teacher: str
    """A diffusers pipeline folder, a hub id, or one .safetensors or .ckpt file with a whole pipeline in the names of
    its original code; of `students.teacher_of`, also `mini` for the embedded one."""

    @classmethod
    def of(cls, teacher: "str | Path | TeacherSource") -> "TeacherSource":
        """What a name alone stands for, or what a config, say, has of one."""
        if not isinstance(teacher, TeacherSource):
            return cls(teacher=str(teacher))
        return cls(**{field.name: getattr(teacher, field.name) for field in fields(cls)})

    def check_no_run(self) -> None:
        """Raise `UserError` where it is a run's folder, in the place of the teacher that the run distilled."""
        run = Path(self.teacher)
        if not (run / "checkpoints").is_dir() or (run / "model_index.json").is_file():
            return
        if (run / "config.json").is_file() and (known := read_object(run / "config.json").get("teacher")):
            raise UserError(f"{run} is a run of scott, not a teacher; its teacher is {known}")

    @property
    def file(self) -> Path | None:
        """The single file that it is, if it is one. Raises `UserError` for a file of another kind."""
        path = Path(self.teacher)
        if path.suffix not in SINGLE_FILE and not path.is_file():
            return None
        if not path.is_file():
            raise UserError(f"no file {path}; expected a checkpoint, a diffusers pipeline folder or a hub id")
        if path.suffix not in SINGLE_FILE:
            raise UserError(f"{path} is a file; expected a diffusers pipeline folder, or a {' or '.join(SINGLE_FILE)}")
        return path

    @property
    def loras(self) -> list[tuple[Path, float]]:
        """Files of `teacher_lora` and their scales."""
        found = []
        for given in self.teacher_lora:
            name, _, scale = given.rpartition(":")
            try:
                found.append((Path(name), float(scale)) if name else (Path(given), 1.0))
            except ValueError:  # a name with a colon in it
                found.append((Path(given), 1.0))
        return found
