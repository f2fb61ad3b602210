"""Several results beside one another: one table, figures of quality against cost, and how much of a gap is closed.

In a Markdown file, what stands between

    <!-- scott compare experiments/recorded_run/scott.json experiments/recorded_run/lcm.json -->
    <!-- end -->

is the table of those files, paths from the file's own folder; `--rival`, `--steps` and `--metrics` may follow them.
`updated` writes it again, so a table cannot drift from what was measured.
"""

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Drawing

from scott.errors import UserError
from scott.evaluation.curves import as_svg
from scott.evaluation.measures import METRICS
from scott.evaluation.results import FLOOR, Results, Row
from scott.evaluation.tables import markdown, markdown_table, metrics_of

LCM = "lcm"
GAPS = {"fid": "FID", "coverage": "coverage"}
"""The metrics in which a gap to the teacher is taken, as a table calls them."""
_BEGIN = re.compile(r"^<!-- scott compare .+ -->$", re.MULTILINE)
_BLOCK = re.compile(
    r"(^<!-- scott compare ([^\n]+) -->\n)(?:(?!^<!-- scott compare ).)*?(^<!-- end -->)", re.DOTALL | re.MULTILINE
)
Axis = tuple[str, str]


def combined(files: Sequence[Path]) -> Results:
    """The rows of several files, each called after its file too; equal ones once, after the first.

    Of what they were measured under, what is equal in all is kept. Raises `UserError` for files of other protocols,
    data or networks, whose figures have nothing in common.
    """
    loaded = [Results.load(file) for file in files]
    for key in ("protocol", "split", "size", "diversity"):
        _check_same(key, files, [results.meta.get(key) for results in loaded])
    for count in {results.meta.get("samples") for results in loaded}:  # prompts of another number are others
        alike = [results.meta if results.meta.get("samples") == count else {} for results in loaded]
        for key in ("prompts", "real pictures"):
            _check_same(key, files, [meta.get(key) for meta in alike])
    for key in ("data", "floor data"):  # whose folders are others on another machine
        paths = [results.meta.get(key) for results in loaded]
        _check_same(key, files, [path and Path(path).name for path in paths])
    networks = [results.meta.get("networks") or {} for results in loaded]
    for key in sorted({key for one in networks for key in one}):
        _check_same(key, files, [one.get(key) for one in networks])
    meta = {"files": [str(file) for file in files]} | _in_all([results.meta for results in loaded])
    if shared := _in_all(networks):
        meta["networks"] = shared
    if len(files) == 1:
        return Results(loaded[0].rows, meta)
    found: list[tuple[str, Row]] = []
    for label, results in zip(labels(files), loaded, strict=True):
        there = [(row.name, row.samples, row.metrics) for _, row in found]
        found += [(label, row) for row in results.rows if (row.name, row.samples, row.metrics) not in there]
    rows = [dataclasses.replace(row, name=f"{label}/{row.name}") for label, row in found]
    return Results(rows, meta)


def _in_all(contents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What every one of them has, and has equal."""
    return {key: value for key, value in contents[0].items() if all(one.get(key) == value for one in contents)}


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


def _check_same(key: str, files: Sequence[Path], values: Sequence[Any]) -> None:
    """Raise `UserError` where two files have other values; a file that says none may stand beside any."""
    known = [(value, file) for value, file in zip(values, files, strict=True) if value is not None]
    if other := next((pair for pair in known if pair[0] != known[0][0]), None):
        (first, file), (value, another) = known[0], other
        raise UserError(f"{file} has {key} {first} and {another} {value}; compare figures of one kind")


@dataclass(frozen=True)
class Share:
    """The share of a rival's gap to the teacher that a student closes in a metric, or why it has none."""

    student: str
    rival: str
    """The family of its rows, LCM's or another that was named."""
    metric: str
    value: float | None
    """(rival − student) / (rival − teacher): 1 where the student is as good as its teacher, 0 where it is as the rival
    is. The paper's are .84 of LCM's gap in FID and .99 in coverage, in 2 steps."""
    reason: str = ""


def share(student: Row, rival: Row | None, teacher: Row | None, metric: str) -> tuple[float | None, str]:
    """Of one student; None and why where the three were not measured alike, or the rival lacks nothing."""
    rows = [row for row in (student, rival, teacher) if row is not None and metric in row.metrics]
    if len(rows) < 3:
        return None, "not measured of student, rival and teacher"
    if len({row.samples for row in rows}) > 1:
        return None, "figures of other sample sizes, whose biases differ"
    drawn, rivals, teachers = (row.metrics[metric].value for row in rows)
    if rivals == teachers or (rivals > teachers) == METRICS[metric].higher_is_better:
        return None, "no gap, the rival's figure is as good as the teacher's"
    return (rivals - drawn) / (rivals - teachers), ""


def gaps(results: Results, rivals: Sequence[str] = ()) -> list[Share]:
    """In FID and coverage, of each student that stands beside a rival at as many steps.

    Rivals are the families that are named, or else those of students that `--method lcm` made. Raises `UserError` for
    a name of none.
    """
    families = dict.fromkeys(row.family for row in results.rows)
    if unknown := [name for name in rivals if name not in families]:
        raise UserError(f"got the rival {unknown[0]}; expected one of {', '.join(families)}")
    rivals = rivals or list(dict.fromkeys(row.family for row in results.rows if row.method == LCM))
    beside = {(row.family, row.steps): row for row in results.rows if row.family in rivals}
    teachers, found = {metric: results.baseline(metric) for metric in GAPS}, list[Share]()
    for row in results.rows:
        there = [beside.get((name, row.steps)) for name in rivals]
        if not any(teachers.values()) or not any(there) or row.family in rivals:
            continue
        if row.label.startswith(("teacher", FLOOR)):
            continue
        for (rival, other), (metric, teacher) in product(zip(rivals, there, strict=True), teachers.items()):
            found.append(Share(row.name, rival, metric, *share(row, other, teacher, metric)))
    return found


def comparison(results: Results, rivals: Sequence[str] = ()) -> str:
    """The table, and below it the share of each rival's gap to the teacher that each student closes."""
    return markdown_table(results) + gap_table(results, rivals)


def gap_table(results: Results, rivals: Sequence[str] = ()) -> str:
    """A line for each student, and below it why a share is "–"; empty where no student stands beside a rival."""
    lines, reasons = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    shares = gaps(results, rivals)
    for one in shares:
        lines[one.student].append("–" if one.value is None else f"{one.value:.0%}")
        if one.reason:
            reasons[one.reason].append(f"{one.student}: {GAPS[one.metric]}, {one.rival}")
    if not lines:
        return ""
    titles = dict.fromkeys(f"{GAPS[one.metric]}, {one.rival}" for one in shares)
    teachers = dict.fromkeys(teacher.name for metric in GAPS if (teacher := results.baseline(metric)))
    rows = [[name, *values] for name, values in lines.items()]
    text = f"\nShare of a rival's gap to {' and '.join(teachers)} that is closed, at as many steps:\n\n"
    text += markdown(["sampler", *titles], rows)
    return text + "".join(f"\n–: {reason} ({'; '.join(cells)}).\n" for reason, cells in reasons.items())


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
                axes.plot(*zip(*known, strict=True), marker="o", label=family)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", frameon=False)
    return as_svg(figure)


def updated(file: Path) -> str:
    """The text of a Markdown file with its tables made again.

    Raises `UserError` where it names none, or one with options that there are not.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text ({error}); save it as that") from None
    begun = _BEGIN.findall(text) or ["<!-- scott compare RESULTS -->"]
    whole = [block[1].strip() for block in _BLOCK.finditer(text)]
    if open_ended := Counter(begun) - Counter(whole):
        raise UserError(f"{file} has no line {next(iter(open_ended))} with an <!-- end --> after it")

    def again(block: re.Match[str]) -> str:
        names, *options = (words.split() for words in block[2].split(" --"))
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

    return _BLOCK.sub(again, text)


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
