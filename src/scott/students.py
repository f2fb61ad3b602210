"""What draws: students that were saved and teachers, found by their names and loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError

from scott.device import best_device
from scott.diffusion import Denoiser, FlowSchedule, JumpGrid
from scott.errors import UserError, first_line
from scott.export.card import FOLDERS
from scott.export.info import STUDENT_INFO, StudentInfo
from scott.export.ldm import UNET
from scott.export.onnx_runtime import FILE as ONNX_FILE
from scott.export.onnx_runtime import load_onnx
from scott.export.single_file import FILE as CHECKPOINT
from scott.export.trained import student_grid
from scott.files import read_object
from scott.mini import embedded
from scott.progress import warn
from scott.samplers import StudentSampler
from scott.teacher_source import TeacherSource
from scott.teachers import LatentBackbone, load_backbone
from scott.teachers.layout import model_index, read_json
from scott.teachers.lora_files import header
from scott.training.config import DistillConfig

Engine = Literal["torch", "onnx"]


def teacher_of(
    teacher: str | TeacherSource,
    dtype: torch.dtype = torch.float32,
    quantize: str = "none",
    resolution: int | None = None,
) -> LatentBackbone:
    """What `load_backbone` takes, or the name of an embedded teacher, on the best device there is; at another size than
    its own, if one is given."""
    backbone = load_backbone(embedded.teacher_source(teacher), dtype, quantize).to(best_device())
    if resolution:
        backbone.resize(resolution)
    return backbone


def run_teacher(run: Path) -> tuple[TeacherSource, int | None]:
    """What a run distilled, with its LoRAs, VAE and variant; and the size of its data, where that is not its own."""
    config = DistillConfig.load(run / "config.json")
    return TeacherSource.of(config), config.resolution


def is_run(folder: Path) -> bool:
    return (folder / "config.json").is_file() and not (folder / "model_index.json").is_file()


def check_run(folder: Path) -> None:
    """Raise `UserError` where the `config.json` of what looks like a run is no run's, but such as a network's."""
    config = read_object(folder / "config.json")
    if "teacher" not in config:
        what = config.get("_class_name") or config.get("architectures") or "something else"
        raise UserError(
            f"{folder} is no run: its config.json is of {what}; name a run, or a pipeline's folder with its "
            "model_index.json"
        )


def run_of(place: Path) -> Path | None:
    """The run that a folder is, or stands in; None where there is none, whatever else has a `config.json`."""

    def has_teacher(folder: Path) -> bool:
        try:
            return is_run(folder) and "teacher" in read_object(folder / "config.json")
        except UserError:
            return False

    return next(filter(has_teacher, (place, place.parent)), None)


def lora_of(place: Path) -> Path:
    """The folder of a run's LoRA, or the place itself where it is no run. Raises `UserError` of a run without one."""
    if not is_run(place) or is_weights(place):
        return place
    if not (lora := place / FOLDERS["lora"]).is_dir():
        raise UserError(
            f"{place} is a run without a LoRA file; draw with `scott sample {place}`, or write the file of a LoRA "
            f"student with `scott export {place} --to lora`"
        )
    return lora


@dataclass(frozen=True)
class Student:
    """A saved student, ready to draw."""

    name: str
    backbone: LatentBackbone
    network: Denoiser
    grid: JumpGrid
    info: StudentInfo | None
    """What it was made for; None where a pipeline made elsewhere does not say."""

    def guidance(self, wanted: float | None) -> float:
        """ω to draw with: what is wanted, or what the student is drawn at. Raises `UserError` outside the range."""
        if self.info is None:
            if wanted is None:
                raise UserError(f"{self.name} does not say which guidance it was trained for; give --guidance")
            return wanted
        if wanted is None:
            return self.info.guidance
        low, high = self.info.guidance_min, self.info.guidance_max
        if not low <= wanted <= high:
            raise UserError(f"got guidance {wanted}; {self.name} was trained for {low} to {high}")
        return wanted

    def sampler(
        self, steps: int, guidance: float, timesteps: Sequence[float] = (), gamma: float = 1.0
    ) -> StudentSampler:
        """At the student's own times for as many steps, or where the network is fed these. Raises `UserError` for what
        the student cannot make."""
        self.grid.inference_times(steps)
        if self.info and not timesteps:
            self.info.check_steps(steps)
        stops = self._stops(timesteps)
        return StudentSampler(self.backbone, self.network, self.grid, steps, guidance, stops=stops, gamma=gamma)

    def _stops(self, timesteps: Sequence[float]) -> tuple[float, ...]:
        """Times at which the network is fed these."""
        schedule, info = self.grid.schedule, self.info
        if any(later >= earlier for earlier, later in pairwise(timesteps)):
            raise UserError(f"got timesteps {_listed(timesteps)}; expected them to descend, from about 999 on")
        if isinstance(schedule, FlowSchedule):
            if not all(0 < step <= 1000 for step in timesteps):
                raise UserError(f"got timesteps {_listed(timesteps)}; expected 1000 σ, above 0 and up to 1000")
            return tuple(schedule.time_of(torch.tensor([*timesteps], dtype=torch.float64) / 1000).tolist())
        needed = info is not None and info.only_these_steps
        trained = (
            {t for times in info.times.values() for t in times} if info and needed else self.grid.times[1:].tolist()
        )
        for step in timesteps:
            if step not in trained:
                nearest = sorted(sorted(trained, key=lambda time: abs(time - step))[:2])
                raise UserError(
                    f"got timestep {step:g}, which {self.name} was not trained at; near it are {_listed(nearest)}"
                )
        return tuple(int(step) for step in timesteps)


def _listed(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def load_student(name: str, engine: Engine = "torch", dtype: torch.dtype = torch.float32) -> Student:
    """A run folder's student, or that of an export's folder (or hub id), with the grid it was trained on.

    Raises `UserError` when there is none for this engine, or when the pipeline is no consistency student.
    """
    folder = Path(name)
    if is_run(folder):
        check_run(folder)
        folder = folder / FOLDERS["diffusers" if engine == "torch" else "onnx"]
        if engine == "torch" and not folder.is_dir():
            raise UserError(f"{name} is a run without a student yet; finish it with the command that started it")
    if (folder / CHECKPOINT).is_file() or _is_checkpoint(folder):
        raise UserError(f"{name} holds a checkpoint for other programs; draw with the run or its student/")
    if is_weights(folder):
        raise UserError(f"{name} is a LoRA; give it as --lora, and the --teacher it was made for")
    is_onnx = any(folder.glob(f"*/{ONNX_FILE}"))
    if is_onnx and engine == "torch":
        raise UserError(f"{name} is an ONNX export, which scott sample --engine onnx draws with; name the run it is of")
    if engine == "onnx" and not is_onnx:
        raise UserError(f"{name} has no ONNX export; make one of its run with `scott export RUN --to onnx`")
    if not is_onnx:
        _check_pipeline(name, folder)
    backbone = load_onnx(folder) if is_onnx else load_backbone(str(folder), dtype).to(best_device())
    if backbone.original_inference_steps is None:
        raise UserError(f"{name} has no LCMScheduler, so it is no few-step student; distil it first")
    info = info_of(str(folder))
    if info and info.resolution and not is_onnx:
        backbone.resize(info.resolution)  # which not every network's config says
    grid = student_grid(backbone.schedule, backbone.original_inference_steps)
    return Student(name, backbone, backbone.teacher, grid, info)


def _check_pipeline(name: str, folder: Path) -> None:
    """Raise `UserError` where no pipeline is, and none can be on the hub."""
    if name in embedded.TEACHERS and not folder.exists():
        raise UserError(f"{name} is a teacher, not a student; draw with it in `scott app`, or distil it")
    if is_nowhere(folder) or (folder.is_dir() and not (folder / "model_index.json").is_file()):
        raise UserError(f"no student at {name}; expected a run folder, an export's folder, or a hub id (owner/name)")


def is_student(pipeline: Path) -> bool:
    """Whether a folder or hub id has what scott says of its students; few steps alone make none of a pipeline.

    Raises `UserError` where there is neither.
    """
    if pipeline.exists():
        return (pipeline / STUDENT_INFO).is_file()
    if is_nowhere(pipeline):
        raise UserError(
            f"nothing at {pipeline}; expected a run folder, a pipeline's folder or hub id (owner/name), or pictures "
            "with prompts"
        )
    model_index(pipeline)
    try:
        return bool(read_json(pipeline, STUDENT_INFO))
    except UserError:
        return False


def is_nowhere(place: Path) -> bool:
    """Whether there is nothing, and nothing of this name can be on the hub."""
    return not place.exists() and (place.is_absolute() or len(place.parts) != 2)


def is_weights(place: Path) -> bool:
    """Whether it is a file of weights, or a folder of such that is no pipeline's: hub folders may have both."""
    files = not (place / "model_index.json").is_file() and any(place.glob("*.safetensors"))
    return place.suffix == ".safetensors" or files


def info_of(name: str) -> StudentInfo | None:
    """What a student's pipeline folder, or hub id, says it was made for; None of one that was made elsewhere."""
    if Path(name).exists():
        return StudentInfo.read(Path(name))
    try:
        file = Path(hf_hub_download(name, STUDENT_INFO))
    except RemoteEntryNotFoundError:  # no student of scott's
        return None
    except (OSError, ValueError) as error:  # it may be one
        warn(f"what {name} was made for cannot be read: {first_line(error)}")
        return None
    return StudentInfo.from_json(file.read_bytes(), Path(name) / STUDENT_INFO)


def _is_checkpoint(file: Path) -> bool:
    """Whether a file holds a whole pipeline, in the names of its original code."""
    return file.suffix == ".safetensors" and file.is_file() and any(name.startswith(UNET) for name in header(file)[0])
