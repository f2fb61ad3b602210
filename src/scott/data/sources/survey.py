"""What a folder holds: every file below it, and what of it is not read and why."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from scott.data.manifest import SETTINGS
from scott.data.records import Rejected
from scott.errors import UserError, first_line

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Split → how it is spelled in names, as the Hugging Face hub reads them."""
_SPELLED = {word: split for split, words in SPLITS.items() for word in words}
_WORD = re.compile(rf"(?:^|[-._ =\d])({'|'.join(_SPELLED)})(?=[-._ \d]|$)", re.IGNORECASE)
_FOLDER = re.compile(
    rf"(?:\w+=)?({'|'.join(_SPELLED)})(?:[-_ ]?(?:images?|imgs?|pictures|photos|data|set|\d+))?", re.IGNORECASE
)
_LEFT_BEHIND = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "lost+found", "@eadir", "$recycle.bin"}
_OF = re.compile(r"(.*?)(\d+)-of-(\d+)(.*)", re.DOTALL)
_NUMBERED = re.compile(r"(.*?)(\d+)(\D*)", re.DOTALL)


@dataclass(frozen=True)
class Survey:
    """The regular files below a folder, by their paths in it, sorted; links are followed, hidden names are not, nor are
    folders of shards and runs, which a command may have been told to put there."""

    root: Path
    files: list[str]
    left_out: list[Rejected]


def survey(root: Path) -> Survey:
    """Raises `UserError` when the folder itself cannot be listed."""
    files: list[str] = []
    left_out: list[Rejected] = []
    visited: set[tuple[int, int]] = set()
    folders: list[str] = [""]
    links: list[str] = []
    while folders or links:
        prefix = folders.pop() if folders else links.pop()  # a folder counts where it stands, not where it is linked
        try:
            state = (root / prefix).stat()
            if (state.st_dev, state.st_ino) in visited:
                left_out.append(Rejected(prefix, "linked-twice", "it is read under another name"))
                continue
            visited.add((state.st_dev, state.st_ino))
            entries = sorted(os.scandir(root / prefix), key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            if not prefix:
                raise UserError(f"{root} cannot be listed: {first_line(error)}") from None
            left_out.append(Rejected(prefix, "unreadable-folder", first_line(error)))
            continue
        if prefix and _is_ours({entry.name for entry in entries}):
            continue
        for entry in entries:
            name = f"{prefix}/{entry.name}" if prefix else entry.name
            if hidden(entry.name):
                continue
            if os.path.isdir(entry):
                (links if entry.is_symlink() else folders).append(name)
            elif os.path.isfile(entry):
                files.append(name)
            else:
                left_out.append(Rejected(name, "missing-file" if entry.is_symlink() else "not-a-file"))
    return Survey(root, sorted(files), sorted(left_out, key=lambda entry: entry.key))


def _is_ours(names: set[str]) -> bool:
    """Whether a folder of these names is one of `scott prepare` or `scott distill`: read as data, it would change them
    and keep the same command from going on."""
    return SETTINGS in names or {"config.json", "checkpoints"} <= names


def hidden(name: str) -> bool:
    """Whether a name is one that file managers and operating systems leave behind, or a dot file."""
    return name.startswith(".") or name.lower() in _LEFT_BEHIND


def folded(name: str) -> str:
    """What a path has in common with those that differ in upper and lower case or Unicode's composition alone."""
    return normalize("NFC", name).casefold()


def endings_of(names: Sequence[str]) -> str:
    """How many files there are of each ending: ".gz 3, .md 1"."""
    counts = Counter(PurePosixPath(name).suffix.lower() or "without an ending" for name in names)
    return ", ".join(f"{ending} {count:,}" for ending, count in counts.most_common(9))


def split_of(name: str, folders_alone: bool = False) -> str | None:
    """The split that a path names, in its last part that names one: `data/train-00000.parquet`, `val2017/1.jpg`."""
    *folders, file = PurePosixPath(name).parts
    parts = map(_FOLDER.fullmatch, folders) if folders_alone else map(_WORD.search, (*folders, file))
    return next((_SPELLED[found[1].lower()] for found in reversed(list(parts)) if found), None)


def of_split(
    names: Sequence[str], split: str, where: object, folders_alone: bool = False
) -> tuple[list[str], list[Rejected]]:
    """Those of a split and the others; names that say no split are of `train`.

    Raises:
        UserError: there is none of that split.
    """
    labels = {name: split_of(name, folders_alone) or "train" for name in names}
    wanted = _SPELLED.get(split.lower(), split)
    kept = [name for name, label in labels.items() if label == wanted]
    if names and not kept:
        raise no_split(where, sorted(set(labels.values())), split)
    return kept, [Rejected(name, "other-split", label) for name, label in labels.items() if label != wanted]


def no_split(where: object, there: Iterable[str], wanted: str) -> UserError:
    return UserError(
        f"{where} has the splits {', '.join(there)}, and not {wanted!r}; name one with --split "
        "(scott evaluate: --data-split of its data, and of pictures to measure the folder itself)"
    )


def gaps(names: Sequence[str]) -> list[Rejected]:
    """The files that are not there of numbered sets: `a-00001-of-00004`, or 00001 where there are 00000 and 00002."""
    found: dict[tuple[str, str, str, int], set[int]] = defaultdict(set)
    for name in names:
        if of := _OF.fullmatch(name):
            found[of[1], f"-of-{of[3]}", "", len(of[2])].add(int(of[2]))
        elif numbered := _NUMBERED.fullmatch(name):
            found[numbered[1], "", numbered[3], len(numbered[2])].add(int(numbered[2]))
    missing: list[Rejected] = []
    for (before, of_all, after, width), there in found.items():
        if of_all:
            count = min(int(of_all.removeprefix("-of-")), 1_000_000)
            whole = range(count) if 0 in there or count not in there else range(1, count + 1)
        else:
            whole = range(min(there), min(max(there), min(there) + 10 * len(there)) + 1)
        lacking = [number for number in whole if number not in there]
        counts = len(lacking) < len(there) or (min(there) <= 1 and len(there) > 2)  # the files, or else they are dates
        if of_all or counts:
            missing += [Rejected(f"{before}{i:0{width}}{of_all}{after}", "missing-shard") for i in lacking]
    return missing
