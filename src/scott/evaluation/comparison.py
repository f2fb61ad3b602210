"""Several results beside one another: one table, figures of quality against cost, and how much of a gap is closed.

In a Markdown file, what stands between

    <!-- scott compare experiments/recorded_run/scott.json experiments/recorded_run/lcm.json -->
    <!-- end -->

is the table of those files, paths from the file's own folder; `--rival`, `--steps` and `--metrics` may follow them.
`updated` writes it again, so a table cannot drift from what was measured.
"""

import dataclasses
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Drawing

from scott.errors import UserError
from scott.evaluation.curves import as_svg
from scott.evaluation.gaps import gap_table, gaps
from scott.evaluation.results import Results, Row, network_of
from scott.evaluation.tables import DIFFERING, markdown_table, metrics_of

ALIKE = ("protocol", "split", "size", "diversity", "data split", "image column", "caption columns")
"""Conditions that all files have to have alike."""
NAMED = ("data version", "precision", "left out")
"""Conditions that a table names where they differ. A version holds times of change, and a copy of the same data on
another machine has others."""
UNSAID = {"image column": "the usual one", "caption columns": "the usual ones", "left out": "nothing"}
"""What a file means that does not have a condition, if it says which scott wrote it."""
_BEGIN = re.compile(r"^<!-- scott compare .+ -->$", re.MULTILINE)
_BLOCK = re.compile(
    r"(^<!-- scott compare ([^\n]+) -->\n)(?:(?!^<!-- scott compare ).)*?(^<!-- end -->)", re.DOTALL | re.MULTILINE
)
Axis = tuple[str, str]


def combined(files: Sequence[Path]) -> Results:
    """The rows of several files, each called after its file too; equal ones once, after the first.

    Of what they were measured under, what is equal in all is kept, and of `NAMED` what differs. Raises `UserError` for
    files of other protocols, data or networks, whose figures have nothing in common.
    """
    loaded = [Results.load(file) for file in files]
    for key in ALIKE:
        _check_same(key, files, [_said(results.meta, key) for results in loaded])
    for count in {results.meta.get("samples") for results in loaded}:  # prompts of another number are others
        alike = [results.meta if results.meta.get("samples") == count else {} for results in loaded]
        for key in ("prompts", "real pictures"):
            _check_same(key, files, [meta.get(key) for meta in alike])
    for key in ("data", "floor data"):  # whose folders are others on another machine
        paths = [results.meta.get(key) for results in loaded]
        _check_same(key, files, [path and Path(path).name for path in paths])
    networks = [results.meta.get("networks") or {} for results in loaded]
    for key in sorted({key for one in networks for key in one}):
        _check_same(key, files, [one.get(key) for one in networks], network_of)
    meta = {"files": [str(file) for file in files]} | _in_all([results.meta for results in loaded])
    if shared := _in_all(networks):
        meta["networks"] = shared
    if len(files) == 1:
        return Results(loaded[0].rows, meta)
    names, found = labels(files), list[tuple[str, Row]]()
    if differing := _differing(dict(zip(names, (results.meta for results in loaded), strict=True))):
        meta[DIFFERING] = differing
    for label, results in zip(names, loaded, strict=True):
        there = [(row.name, row.samples, row.metrics) for _, row in found]
        found += [(label, row) for row in results.rows if (row.name, row.samples, row.metrics) not in there]
    rows = [dataclasses.replace(row, name=f"{label}/{row.name}") for label, row in found]
    return Results(rows, meta)


def _in_all(contents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What every one of them has, and has equal."""
    return {key: value for key, value in contents[0].items() if all(one.get(key) == value for one in contents)}


def _said(meta: Mapping[str, Any], key: str) -> Any:
    """A condition as it is shown; None where the file does not say."""
    value = meta.get(key, UNSAID.get(key) if "scott" in meta else None)
    return " ".join(map(str, value)) if isinstance(value, list) else value


def _differing(files: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, list[str]]]:
    """Condition → value → the files that say it, of conditions in which files differ."""
    found: dict[str, dict[str, list[str]]] = {}
    for key in NAMED:
        for name, meta in files.items():
            if (value := _said(meta, key)) is not None:
                found.setdefault(key, {}).setdefault(str(value), []).append(name)
    return {key: values for key, values in found.items() if len(values) > 1}


def labels(files: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart, of as many parts each: of the folders, if those do, or with
    the files' names. Raises `UserError` for a file that is named twice."""
    paths = [file.resolve() for file in files]
    if twice := [file for file, path in zip(files, paths, strict=True) if paths.count(path) > 1]:
        raise UserError(f"got {twice[0]} twice; name each file of results once")
    kinds = [path.parent for path in paths], [path.with_suffix("") for path in paths], paths
    lengths = range(1, max(len(path.parts) for path in paths) + 1)
    ends = (["/".join(one.parts[-length:]) for one in places] for places in kinds for length in lengths)
    return next(found for found in ends if len(set(found)) == len(files))


def _check_same(
    key: str, files: Sequence[Path], values: Sequence[Any], what: Callable[[Any], Any] = lambda value: value
) -> None:
    """Raise `UserError` where two files have other values, of what counts of them; a file that says none may stand
    beside any."""
    known = [(value, file) for value, file in zip(values, files, strict=True) if value is not None]
    if other := next((pair for pair in known if what(pair[0]) != what(known[0][0])), None):
        (first, file), (value, another) = known[0], other
        raise UserError(f"{file} has {key} {first} and {another} {value}; compare figures of one kind")


def comparison(results: Results, rivals: Sequence[str] = ()) -> str:
    """The table, and below it the share of each rival's gap to the teacher that each student closes."""
    return markdown_table(results) + gap_table(results, rivals)


def as_json(results: Results, rivals: Sequence[str] = ()) -> str:
    """The results, and the shares of gaps."""
    return results.to_json(gaps=[dataclasses.asdict(one) for one in gaps(results, rivals)])


def drawn(results: Results) -> bytes:
    """Each metric against calls and against seconds, and precision against recall, as one SVG; a line a sampler."""
    names = metrics_of(results)
    pairs: list[Axis] = [(cost, name) for name in names for cost in ("network_calls", "seconds_per_image")]
    if {"precision", "recall"} <= set(names):
        pairs.append(("recall", "precision"))
    figure = Drawing(figsize=(9, 3.2 * -(-len(pairs) // 2)), layout="constrained")
    for index, (x, y) in enumerate(pairs, start=1):
        axes = figure.add_subplot(-(-len(pairs) // 2), 2, index, xlabel=x.replace("_", " "), ylabel=y)
        if x in ("network_calls", "seconds_per_image"):
            axes.set_xscale("log")
        else:
            axes.locator_params(axis="x", nbins=5)
        for family, rows in _families(results.rows).items():
            points = [(_value(row, x), _value(row, y)) for row in rows]
            known = sorted((a, b) for a, b in points if a is not None and b is not None)
            if known:
                # as it is: matplotlib reads formulas between $, and shows no label that begins with _
                label = family.replace("$", r"\$")
                axes.plot(*zip(*known, strict=True), marker="o", label=f"\u200b{label}" if label[0] == "_" else label)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small", frameon=False)
    return as_svg(figure)


def updated(file: Path) -> str:
    """The text of a Markdown file with its tables made again.

    Raises `UserError` where it names none, or one with options that there are not.
    """
    try:
        whole_text = file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text ({error}); save it as that") from None
    text, end = whole_text.replace("\r\n", "\n"), "\r\n" if "\r\n" in whole_text else "\n"
    begun = _BEGIN.findall(text) or ["<!-- scott compare RESULTS -->"]
    whole = [block[1].strip() for block in _BLOCK.finditer(text)]
    if open_ended := Counter(begun) - Counter(whole):
        raise UserError(f"{file} has no line {next(iter(open_ended))} with an <!-- end --> after it")

    def again(block: re.Match[str]) -> str:
        try:
            names, *options = (shlex.split(words) for words in block[2].split(" --"))
        except ValueError as error:
            raise UserError(f"{file}: {block[1].strip()}: {error}") from None
        given = {option: values for option, *values in filter(None, options)}
        results = combined([file.parent / name for name in names])
        try:
            steps = [int(one) for one in given.pop("steps", ())]
        except ValueError as error:
            raise UserError(f"{file}: {block[1].strip()}: --steps are numbers ({error})") from None
        shown = results.only(steps, given.pop("metrics", ()))
        text = comparison(shown, given.pop("rival", ()))
        if given:
            raise UserError(f"{file} has --{next(iter(given))}; expected --rival, --steps or --metrics")
        return f"{block[1]}{text}{block[3]}"

    return _BLOCK.sub(again, text).replace("\n", end)


def _families(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by their names without the number of steps, those that drew."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.network_calls:
            found.setdefault(row.family, []).append(row)
    return found


def _value(row: Row, name: str) -> float | None:
    if name in ("network_calls", "seconds_per_image"):
        return getattr(row, name)
    return row.metrics[name].value if name in row.metrics else None
