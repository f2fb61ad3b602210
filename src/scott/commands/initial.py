"""What a new run's student starts as, where it is not the teacher: another run's, or one that was exported."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from scott.commands.prepare import Warn
from scott.errors import UserError, first_line
from scott.export.info import StudentInfo
from scott.export.lora import foreign_factors, lora_info, lora_parameters, read_lora_file, warn_of_base
from scott.files import read_object
from scott.students import is_run
from scott.teacher_source import TeacherSource
from scott.teachers import LatentBackbone
from scott.teachers.layout import variants
from scott.teachers.lora_files import check_lora, lora_path, misfitting, text_layers
from scott.teachers.lora_names import header
from scott.training.checkpoint import checkpoint_part, checkpoint_state, latest_checkpoint
from scott.training.config import DistillConfig
from scott.training.launch import CONTINUED, STUDENT, not_alike
from scott.training.parallel import load_parameters

INDEX = "model_index.json"


def check_start(backbone: LatentBackbone, config: DistillConfig) -> None:
    """Raise `UserError` where there is nothing at `init` or `continue_from`, or another kind of student.

    A run that has begun needs neither.
    """
    if _has_begun(config):
        return
    for name, same in ((config.init, STUDENT), (config.continue_from, CONTINUED)):
        if not name:
            continue
        if not Path(name).exists():
            raise UserError(f"nothing at {name}; expected a run, or for --init a LoRA file or a student's folder")
        if is_run(Path(name)):
            _check_run(Path(name), backbone, config, same)
        elif config.continue_from:
            raise UserError(f"{name} is no run; expected one as --continue-from, or use --init")
        elif config.train == "lora":
            _check_lora(backbone, Path(name), config)
        else:
            _check_whole(backbone, Path(name))


def doubt_of_seed(config: DistillConfig) -> str | None:
    """What to say of a run that continues another by that one's own draws: of noise, times and samples."""
    source = Path(config.continue_from or "") / "config.json"
    if not config.continue_from or not source.is_file() or DistillConfig.load(source).seed != config.seed:
        return None
    return (
        f"{config.continue_from} had the seed {config.seed} too, so its samples come with the same noises and times "
        "once more; give another --seed"
    )


def _has_begun(config: DistillConfig) -> bool:
    return latest_checkpoint(config.out / "checkpoints") is not None


def _check_run(run: Path, backbone: LatentBackbone, config: DistillConfig, same: tuple[str, ...]) -> None:
    other, newest = DistillConfig.load(run / "config.json"), latest_checkpoint(run / "checkpoints")
    if newest is None:
        raise UserError(f"{run} has no checkpoint yet; go on with the command that started it")
    if others := not_alike(other, config, same):
        raise UserError(f"{run} has {', '.join(others)}; give these alike")
    version = backbone.version or None  # a dry run's is not known
    if (other.precision == "bf16") != (config.precision == "bf16"):
        version = None  # of weights that were rounded otherwise
    if version and checkpoint_state(newest).get("teacher", version) != version:
        raise UserError(f"{run} was distilled from another teacher than {config.teacher}; give that one")

    found = _sizes([newest / "target.safetensors"])
    if config.train == "full":
        fits = not _unlike_full(backbone, found)
    else:
        layers = {name.rpartition(".lora_")[0] for name in found}
        fits = layers == {*backbone.student_targets} and not misfitting(backbone.network, layers, found)
    if not fits:
        raise UserError(f"{run} was distilled from another kind of teacher than {config.teacher}; give one of that")


def _check_lora(backbone: LatentBackbone, place: Path, config: DistillConfig) -> None:
    if (place / INDEX).is_file():
        raise UserError(
            f"{place} is a whole pipeline; expected --init with a LoRA file (a LoRA run has one in lora/) or a run, or "
            "--train full"
        )
    file = lora_path(place)
    if (file.parent / "state.json").is_file():
        run = file.resolve().parent.parent.parent
        raise UserError(f"{file} is a part of a checkpoint; give the run that it is of, {run}, as --init")
    info = lora_info(file)
    if info is None:
        _check_foreign(backbone, file, config)
    elif (info.lora_rank, info.lora_variant) != (config.lora_rank, config.lora_variant):
        raise UserError(
            f"{file} is a {info.lora_variant} of rank {info.lora_rank}; give --lora-rank {info.lora_rank} and "
            f"--lora-variant {info.lora_variant}"
        )
    else:
        lora_parameters(backbone, file, info.lora_variant, read_lora_file(file)[2])


def _check_foreign(backbone: LatentBackbone, file: Path, config: DistillConfig) -> None:
    if config.lora_variant == "dora":
        raise UserError(f"{file} is no DoRA of `scott export`; leave out --lora-variant dora")
    names, _ = header(file)
    if any("lora_magnitude_vector" in name for name in names):  # kohya's DoRA is read nowhere
        raise UserError(f"{file} is a DoRA of another program; give a LoRA, or merge it by --teacher-lora")
    if any(name.endswith("lora_B.bias") for name in names):
        raise UserError(f"{file} has biases beside B, which a student has not; merge it by --teacher-lora")
    if strange := [name for name in names if name.startswith("heads.")]:
        raise UserError(f"{file} has {strange[0]}, so it is a critic's; give the LoRA of a student")
    ranks = check_lora(backbone.pipeline, file, text=False)
    adapted = {*backbone.student_targets}
    kept = [rank for layer, rank in ranks.items() if layer in adapted]
    if not kept:
        raise UserError(f"{file} updates no layer that a student adapts; leave it out, or merge it by --teacher-lora")
    if (highest := max(kept)) > config.lora_rank:
        raise UserError(f"{file} has rank {highest} on {len(kept)} of the student's layers; give --lora-rank {highest}")


def _check_whole(backbone: LatentBackbone, place: Path) -> None:
    if not (place / INDEX).is_file():
        raise UserError(f"{place} is no student's folder; expected one as --init with --train full, or a run")
    info, part = StudentInfo.read(place), backbone.part
    files = _weights(place, part)
    if not files and (place / part).is_dir():
        raise UserError(f"{place} has no {part} in .safetensors; save it again by save_pretrained, for --init")
    if unlike := _unlike_full(backbone, _sizes(files)):
        of = "the pipeline of a LoRA student" if info and info.train == "lora" else "no full student of this teacher"
        raise UserError(
            f"{place} is {of}: its {part} is unlike a full student's in {len(unlike)} weights, such as {unlike[0]}; "
            "expected a full student's folder as --init with --train full, or a LoRA file with --train lora"
        )


def _weights(place: Path, part: str) -> list[Path]:
    """The .safetensors files of a folder's network, whole or in shards, of the variant that diffusers would read."""
    folder, stem = place / part, "diffusion_pytorch_model"
    if not folder.is_dir():
        return []
    try:
        (variant,) = variants(TeacherSource(teacher=str(place)), part)
    except UserError:
        raise UserError(f"{place} has several weights of {part}; leave the files of one there, for --init") from None
    end = f".{variant}" if variant else ""
    file, index = folder / f"{stem}{end}.safetensors", folder / f"{stem}.safetensors.index{end}.json"
    if index.is_file():
        shards = read_object(index).get("weight_map")
        if not isinstance(shards, dict):
            raise UserError(f"{index} has no weight_map; save the student again by save_pretrained, for --init")
        return sorted({folder / str(name) for name in shards.values()})
    return [file] if file.is_file() else []


@contextmanager
def _reading(file: Path) -> Iterator[Any]:
    """A safetensors file of a start, opened; `UserError` where it cannot be read."""
    try:
        with safe_open(file, "pt") as opened:
            yield opened
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read ({first_line(error)}); give another --init") from None


def _sizes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Of the tensors of files, whose headers alone are read."""
    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        with _reading(file) as opened:
            names = list(opened.keys())
            found |= {name: tuple(opened.get_slice(name).get_shape()) for name in names}
    return found


def _unlike_full(backbone: LatentBackbone, sizes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Names of what a full student of this teacher has and these have not, or in another size, or the other way."""
    network = backbone.full_student()
    wanted = {name: tuple(value.shape) for name, value in network.named_parameters()}
    named = {*network.state_dict()}
    return sorted([k for k, size in wanted.items() if sizes.get(k) != size] + [k for k in sizes if k not in named])


def initial_lora(backbone: LatentBackbone, config: DistillConfig, warn: Warn) -> dict[str, Tensor]:
    """The tensors of a LoRA file at `init` by the names of the student's parameters; none where it is no such file.

    B is under this run's scale: s B A stays what it is. What another program wrote may have fewer layers, and a lower
    rank. Raises `UserError` where the file does not fit this teacher. To be called before the student is made.
    """
    place = Path(str(config.init))
    if not config.init or config.train != "lora" or latest_checkpoint(place / "checkpoints") or _has_begun(config):
        return {}
    scale = config.alpha / (config.lora_rank**0.5 if config.lora_variant == "rslora" else config.lora_rank)
    if lora_info(file := lora_path(place)) is None:
        return _foreign(backbone, file, scale, warn)
    info, alpha, tensors = read_lora_file(place)
    warn_of_base(backbone.network, place, info, warn)
    named = lora_parameters(backbone, place, config.lora_variant, tensors)
    factor = alpha / config.lora_rank / scale
    return {name: factor * value if name.endswith("lora_B.weight") else value for name, value in named.items()}


def _foreign(backbone: LatentBackbone, file: Path, scale: float, warn: Warn) -> dict[str, Tensor]:
    factors, adapted = foreign_factors(backbone, file), {*backbone.student_targets}
    if outside := sorted(factors.keys() - adapted):
        warn(f"{file} has {len(outside)} layers that a student does not adapt, such as {outside[0]}: left out")
    if texts := text_layers(file):
        warn(f"{file} has {len(texts)} layers of text encoders, which a student does not train: left out")
    kept = {layer: update for layer, update in factors.items() if layer in adapted}
    tensors = {f"{layer}.lora_A.weight": update.a.detach().float() for layer, update in kept.items()}
    return tensors | {f"{k}.lora_B.weight": update.scale / scale * update.b.detach() for k, update in kept.items()}


def start_as(backbone: LatentBackbone, config: DistillConfig, lora: dict[str, Tensor]) -> None:
    """Make the student and its EMA what `init` names, whose LoRA file is read already, unless their run has begun.
    Raises `UserError` where that does not fit them."""
    if not config.init or _has_begun(config):
        return
    place = Path(config.init)
    newest = latest_checkpoint(place / "checkpoints")
    if newest:
        tensors = checkpoint_part(newest, "target")
    elif config.train == "lora":
        tensors = {name: value.detach().clone() for name, value in backbone.student_parameters().items()}
        for name, value in lora.items():  # of a lower rank: B of the others is 0
            tensors[name][tuple(slice(size) for size in value.shape)] = value
    else:
        tensors = {}
        names = {*backbone.student_parameters()}  # a file may have buffers too
        for file in _weights(place, backbone.part):
            with _reading(file) as opened:
                tensors |= {name: opened.get_tensor(name).float() for name in names.intersection(opened.keys())}
    for parameters in (backbone.student_parameters(), backbone.target_parameters()):
        load_parameters(parameters, tensors, "student")
