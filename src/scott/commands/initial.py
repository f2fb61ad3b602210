"""What a new run's student starts as, where it is not the teacher: another run's, or one that was exported."""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from scott.commands.prepare import Warn
from scott.errors import UserError
from scott.export.lora import lora_parameters, read_lora_file
from scott.teachers import LatentBackbone, load_backbone
from scott.training.checkpoint import checkpoint_state, latest_checkpoint
from scott.training.config import DistillConfig
from scott.training.parallel import load_parameters

_SAME = ("train", "lora_rank", "alpha", "lora_variant")
_SAME_WHOLE = (*_SAME, "critic", "critic_rank", "adversarial_weight", "adversarial_share", "optimizer", "precision")


def check_start(backbone: LatentBackbone, config: DistillConfig) -> None:
    """Raise `UserError` where there is nothing at `init` or `continue_from`, or a run of another kind of student.

    A run that has begun needs neither.
    """
    if latest_checkpoint(config.out / "checkpoints"):
        return
    for name, same in ((config.init, _SAME), (config.continue_from, _SAME_WHOLE)):
        if not name:
            continue
        if not Path(name).exists():
            raise UserError(f"nothing at {name}; expected a run, or for --init a LoRA file or a student's folder")
        if (Path(name) / "config.json").is_file() and not (Path(name) / "model_index.json").is_file():
            _check_run(Path(name), backbone, config, same)
        elif config.continue_from:
            raise UserError(f"{name} is no run; expected one as --continue-from, or use --init")


def _check_run(run: Path, backbone: LatentBackbone, config: DistillConfig, same: tuple[str, ...]) -> None:
    other, newest = DistillConfig.load(run / "config.json"), latest_checkpoint(run / "checkpoints")
    if newest is None:
        raise UserError(f"{run} has no checkpoint yet; go on with the command that started it")
    pairs = ((name, getattr(other, name), getattr(config, name)) for name in same)
    if unlike := [f"{name} {theirs} and not {mine}" for name, theirs, mine in pairs if theirs != mine]:
        raise UserError(f"{run} has {', '.join(unlike)}; give these alike")
    if checkpoint_state(newest).get("teacher", backbone.version) != backbone.version:
        raise UserError(f"{run} was distilled from another teacher than {config.teacher}; give that one")


def start_as(backbone: LatentBackbone, config: DistillConfig, warn: Warn) -> None:
    """Make the student and its EMA what `init` names. Raises `UserError` where that does not fit them."""
    place = Path(str(config.init))
    newest = latest_checkpoint(place / "checkpoints")
    if newest:
        tensors = load_file(newest / "target.safetensors")
    elif config.train == "lora":
        tensors = _of_lora(place, backbone, config, warn)
    else:
        tensors = dict(load_backbone(place).network.named_parameters())
    for parameters in (backbone.student_parameters(), backbone.target_parameters()):
        load_parameters(parameters, tensors, "student")


def _of_lora(place: Path, backbone: LatentBackbone, config: DistillConfig, warn: Warn) -> dict[str, Tensor]:
    """A LoRA file's tensors, B under this run's scale: s B A stays what it is."""
    info, alpha, tensors = read_lora_file(backbone, place, warn)
    if (info.lora_rank, info.lora_variant) != (config.lora_rank, config.lora_variant):
        raise UserError(
            f"{place} is a {info.lora_variant} of rank {info.lora_rank}; give --lora-rank {info.lora_rank} and "
            f"--lora-variant {info.lora_variant}"
        )
    named = lora_parameters(backbone, place, config.lora_variant, tensors)
    factor = alpha / config.lora_rank / backbone.adapters.scaling("target")
    return {name: factor * value if name.endswith("lora_B.weight") else value for name, value in named.items()}
