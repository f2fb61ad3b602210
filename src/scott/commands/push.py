"""`scott export … --push owner/name`: an export as a model on the hub, with its card as the model's page."""

import re
import shutil
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError, LocalTokenNotFoundError

from scott.commands.export import run_config
from scott.errors import UserError, first_line
from scott.export.card import CARD, README, card, front_matter, results_of
from scott.export.info import StudentInfo
from scott.files import write_atomically

SAMPLES = "samples.png"


def check_repository(name: str, flag: str = "--push") -> None:
    """Raise `UserError` unless a name is an owner's and a model's."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(
            f"got {flag} {name}; expected the owner and the name of a model on the hub, such as me/my-student"
        )


def push(
    run: Path,
    folder: Path,
    kind: str,
    repository: str,
    *,
    base: str | None = None,
    licence: str | None = None,
) -> str:
    """Upload an export's folder, which gets its run's newest samples up to the student's step and a page that names the
    repository; where.

    Raises `UserError` where the hub does not take it; what was exported stays.
    """
    config, info = run_config(run), StudentInfo.read(folder)
    assert info is not None
    said = {"base": base, "licence": licence}
    text = front_matter(config, info, kind, **said)
    text += card(config, info, kind, Path(repository), results_of(folder.parent, info), hub=True, **said)
    drawn = {int(file.stem.removeprefix("step-")): file for file in (run / "samples").glob("step-*.png")}
    if step := max((step for step in drawn if step <= info.updates), default=None):
        shutil.copy(drawn[step], folder / SAMPLES)
        title = f"The student in 1, 2, 4 and 8 steps and the teacher, at step {step:,}"
        text += f"\n## Samples\n\n![{title}]({SAMPLES})\n"
    write_atomically(folder / README, text)
    try:
        api = HfApi()
        url = api.create_repo(repository, repo_type="model", exist_ok=True)
        what = {"commit_message": f"Student of step {info.updates:,}", "ignore_patterns": [CARD]}  # README.md has it
        api.upload_folder(repo_id=repository, folder_path=folder, repo_type="model", **what)
    except (HTTPError, HFValidationError, LocalTokenNotFoundError, OSError) as error:
        raise UserError(
            f"{folder} is written, but the hub does not take it as {repository} ({first_line(error)}); "
            "log in with `hf auth login`, and give the same command again"
        ) from None
    return str(url)
