"""Where captioned pictures come from. One name says it, and its kind is recognised."""

import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from huggingface_hub.repocard import metadata_load

from scott.data.manifest import SETTINGS
from scott.data.pictures import named_as_picture, starts_as_picture
from scott.data.records import Columns, Rejected, Skip, Source
from scott.data.sources.coco import Coco
from scott.data.sources.files import read_local
from scott.data.sources.folder import Folder, is_page, texts_beside
from scott.data.sources.hub import HubDataset, is_saved
from scott.data.sources.metadata import METADATA, MetadataFolder
from scott.data.sources.parquet import Parquet
from scott.data.sources.patterns import expanded
from scott.data.sources.rows import is_coco, is_table, names_of
from scott.data.sources.survey import Survey, gaps, of_split, split_of, survey
from scott.data.sources.webdataset import ARCHIVES, TARS, WebDataset
from scott.errors import UserError, first_line

KINDS = (
    "a folder of pictures (.txt beside each, or metadata.jsonl or .csv), of .parquet or of .tar, one of COCO, a folder "
    "that save_to_disk wrote, .parquet or .tar files (a path, a pattern or a URL), captions_*.json, a .csv or .jsonl "
    "of paths and captions, or a dataset's name"
)
USUAL = Columns()
_HUB = re.compile(r"(?!\.\.?(/|$))[\w.-]+(/[\w.-]+)?")
_REGULARISATION = {"reg", "reg_images", "regularization", "regularisation", "class_images"}
"""Folders of pictures that keep a class as it is, for kohya's sd-scripts and DreamBooth, beside those to be learnt."""
_CAPTIONS = re.compile(r"(.*/)?captions_[^/]*\.json", re.DOTALL)


def open_source(name: str, columns: Columns = USUAL, split: str = "train") -> Source:
    """The source of that name.

    Args:
        name: see `KINDS`. `{000..009}` stands for all the numbers, `*` for anything.
        columns: of a table, instead of the usual ones.
        split: of a Hugging Face dataset, or of files and folders named after splits.

    Raises:
        UserError: nothing there, nothing that is known, or several kinds in one folder; what each kind refuses.
    """
    name = name.removeprefix("file://")
    path = Path(name)
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError) as error:
        raise UserError(f"no data at {name[:200]}: {first_line(error)}") from None
    if is_folder:
        return _in_folder(path, columns, split)
    place = name if is_file else _place(name)
    ending = place.lower() if is_file or "://" in name else _ending(place)
    if ending.endswith(ARCHIVES):
        raise UserError(f"{name} is packed in a way that is not read; unpack it, or give {', '.join(TARS)}")
    if ending.endswith((*TARS, ".parquet")):
        files, left_out = _files(name, split)
        return (WebDataset if ending.endswith(TARS) else Parquet)(files, columns, left_out)
    if is_table(Path(place)):
        if "://" in name:
            raise UserError(f"{name} is a table of text behind a URL, which is not read; download it")
        _read_whole(name, split)
        return MetadataFolder(path.parent, [path.name], columns, search=partial(_pictures, path.parent))
    if ending.endswith(".json"):
        _read_whole(name, split)
        return Coco([name], columns)
    if ending.endswith(".arrow") and is_file:
        return HubDataset(name, split, columns)
    if is_file:
        raise UserError(f"{name} is a file of a kind that is not read; expected {KINDS}")
    if not path.exists() and _HUB.fullmatch(name):
        return HubDataset(name, split, columns)
    raise UserError(f"no data at {name}; expected `mini`, {KINDS}")


def check_there(name: str) -> None:
    """Raise `UserError` where `open_source` would find nothing of that name; nothing is opened, or asked of the hub."""
    name = name.removeprefix("file://")
    path = Path(name)
    try:
        is_there = path.exists() or "://" in name or any(Path(found).is_file() for found in expanded(name))
    except (OSError, ValueError) as error:
        raise UserError(f"no data at {name[:200]}: {first_line(error)}") from None
    if not is_there and not _HUB.fullmatch(name):
        raise UserError(f"no data at {name}; expected `mini`, {KINDS}")


def _read_whole(name: str, split: str) -> None:
    """Raise `UserError` for a split of files that are named themselves: nothing says which they are of."""
    if split != "train":
        raise UserError(
            f"{name} is read whole, whatever its split; got {split}; leave out --split (scott evaluate: --data-split)"
        )


def _pictures(folder: Path) -> list[str]:
    return [name for name in survey(folder).files if _is_picture(folder, name)]


def _place(name: str) -> str:
    """Of fsspec's chains (`simplecache::http://...`) the first link that is a place, without a URL's question."""
    place = next((link for link in name.split("::") if "://" in link), None)
    return name if place is None else place.split("?")[0]


def _ending(pattern: str) -> str:
    """What says the kind of the files that a pattern stands for: its own ending, or that of a file. Raises `UserError`
    where they are no tars and no tables."""
    known = (*TARS, *ARCHIVES, ".parquet")
    if pattern.lower().endswith(known) or not (files := [name for name in expanded(pattern) if Path(name).is_file()]):
        return pattern.lower()
    if not any(all(name.lower().endswith(kind) for name in files) for kind in (TARS, ".parquet")):
        raise UserError(
            f"{pattern} stands for {len(files)} files such as {files[0]}; expected tars alone or .parquet alone, or "
            "give the folder that holds them"
        )
    return files[0].lower()


def _files(pattern: str, split: str) -> tuple[list[str], list[Rejected]]:
    """The files of a pattern, and those that it lacks. Raises `UserError` when there are none."""
    names = expanded(pattern)
    files = [name for name in names if "://" in name or Path(name).is_file()]
    if not files:
        raise UserError(f"no data at {pattern}; expected `mini`, {KINDS}")
    there = set(files)
    left_out = [Rejected(name, "missing-shard") for name in names if name not in there]
    if "*" in pattern and "://" not in pattern:
        root = Path(os.path.commonpath([Path(name).parent for name in files]))
        inner = {Path(name).relative_to(root).as_posix(): name for name in files}
        if split != "train" or len({split_of(name) for name in inner}) > 1:
            kept, others = of_split(list(inner), split, pattern)
            files, left_out = [inner[name] for name in kept], left_out + others
            inner = {name: inner[name] for name in kept}
        left_out += gaps(list(inner))
    else:
        _read_whole(pattern, split)
    return files, left_out


def _in_folder(folder: Path, columns: Columns, split: str) -> Source:
    """The one kind of source that a folder holds; a second one is refused by name."""
    if is_saved(folder):
        return HubDataset(str(folder), split, columns)
    if (folder / SETTINGS).is_file():
        raise UserError(f"{folder} holds what `scott prepare` made; give it to `scott distill`, or name its source")
    found = survey(folder)
    tars = [name for name in found.files if name.lower().endswith((*TARS, *ARCHIVES))]
    metadata = [name for name in found.files if METADATA.fullmatch(name)]
    pictures = [name for name in found.files if _is_picture(folder, name)]
    texts = texts_beside(pictures, found.files, prefer_json=bool(columns.captions))
    # img2dataset writes 00000.parquet beside 00000.tar or the folder 00000: what it knows of their pictures
    described = {name[: name.lower().rindex(".tar")] for name in tars if ".tar" in name.lower()}
    described |= {_folder_of(name) for name in pictures if texts}
    tables = [name for name in found.files if name.lower().endswith(".parquet") and name[:-8] not in described]
    kinds = {"an archive": tars, "a table": tables, "metadata": metadata, "a captioned picture": [*texts][:1]}
    several = [f"{kind} ({names[0]})" for kind, names in kinds.items() if names]
    if (tars or tables) and len(several) > 1:
        raise UserError(f"{folder} holds {' and '.join(several)}; name one of them, or move the others away")
    if tars or tables:
        return _of_data_files(found, tars or tables, pictures if tars else [], columns, split)
    if metadata:
        return _listed(found, metadata, pictures, columns, split)
    if not texts:
        annotations = [name for name in found.files if _CAPTIONS.fullmatch(name)]
        if not annotations and (lists := _tables(found, pictures)):
            return _listed(found, lists, pictures, columns, split)
        if annotations := annotations or [n for n in found.files if n.endswith(".json") and is_coco(folder / n)]:
            kept, others = of_split(annotations, split, folder)
            unread = _unread(found, {*annotations})
            return Coco([str(folder / name) for name in kept], columns, [*found.left_out, *others, *unread])
    kept, others = of_split(pictures, split, folder, folders_alone=True)
    learnt = [name for name in kept if _REGULARISATION.isdisjoint(name.lower().split("/")[:-1])]
    if learnt:
        others += [Rejected(name, "regularisation") for name in sorted({*kept} - {*learnt})]
        kept = learnt
    return Folder(found, kept, texts, columns, [*found.left_out, *others])


def _tables(found: Survey, pictures: Sequence[str]) -> list[str]:
    """The tables of text that are nearest to the top, where they, or folders below theirs, have pictures."""
    named = names_of(pictures)
    folders = {str(folder) for name in pictures for folder in PurePosixPath(name).parents} | {"."}
    there = [name for name in found.files if not is_page(name) and str(PurePosixPath(name).parent) in folders]
    tables = [name for name in there if is_table(found.root / name, named)]
    depth = min((name.count("/") for name in tables), default=0)
    return [name for name in tables if name.count("/") == depth]


def _of_data_files(
    found: Survey, files: list[str], pictures: Sequence[str], columns: Columns, split: str
) -> WebDataset | Parquet:
    """Tars or parquet files; `pictures` beside them are counted."""
    try:
        configs = (metadata_load(found.root / "README.md") or {}).get("configs", [])
        names = [str(config["config_name"]) for config in configs]
    except Exception:  # of files, of YAML, of its content: it says nothing then
        names = []
    if len(names) > 1:
        raise UserError(f"{found.root} holds the configurations {', '.join(names)}; name the files of one")
    kept, others = of_split(files, split, found.root)
    for name in kept:
        if name.lower().endswith(ARCHIVES):
            raise UserError(f"{found.root / name} is packed in a way that is not read; unpack it, or make {TARS[0]}")
    unread = [Rejected(name, "no-caption", "a picture beside data files") for name in pictures]
    kind = Parquet if kept[0].lower().endswith(".parquet") else WebDataset
    left_out = [*found.left_out, *others, *gaps(kept), *unread, *_unread(found, {*files, *pictures})]
    return kind([str(found.root / name) for name in kept], columns, left_out)


def _listed(found: Survey, tables: list[str], pictures: list[str], columns: Columns, split: str) -> Source:
    kept, others = of_split(tables, split, found.root)
    folders = [_folder_of(name) for name in kept]
    if twice := {folder for folder in folders if folders.count(folder) > 1}:
        names = ", ".join(name for name in kept if _folder_of(name) in twice)
        raise UserError(f"{found.root} holds several tables of the same pictures ({names}); name one")
    elsewhere = {_folder_of(entry.key) for entry in others} - set(folders)
    mine = [name for name in pictures if _folder_of(name) not in elsewhere]
    theirs = [Rejected(name, "other-split") for name in pictures if _folder_of(name) in elsewhere]
    left_out = [*found.left_out, *others, *theirs, *_unread(found, {*tables, *pictures})]
    return MetadataFolder(found.root, kept, columns, left_out, mine)


def _unread(found: Survey, read: set[str]) -> list[Rejected]:
    rest = (name for name in found.files if name not in read and not is_page(name) and not named_as_picture(name))
    return [Rejected(name, "other-file") for name in rest]


def _folder_of(name: str) -> str:
    return name.rpartition("/")[0]


def _is_picture(folder: Path, name: str) -> bool:
    """By its ending; where it has none, by its first bytes."""
    if PurePosixPath(name).suffix:
        return named_as_picture(name)
    try:
        return starts_as_picture(read_local(folder / name, 16))
    except Skip:
        return False
