"""How much of a rival's gap to the teacher a student closes, and why that is not known where it is not."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from scott.errors import UserError
from scott.evaluation.measures import METRICS
from scott.evaluation.results import FLOOR, Results, Row
from scott.evaluation.tables import markdown

LCM = "lcm"
GAPS = {"fid": "FID", "coverage": "coverage"}
"""The metrics in which a gap to the teacher is taken, as a table calls them."""


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
    guidance: str = ""
    """ω of each of the three, where they were drawn at several: a share then is of ω too."""


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
            at = _guidance(row, other, teacher)
            found.append(Share(row.name, rival, metric, *share(row, other, teacher, metric), at))
    return found


def _guidance(*rows: Row | None) -> str:
    """ω of each row that has one; empty where it is the same."""
    each = {row.name: f"{row.guidance:g}" for row in rows if row is not None and row.guidance is not None}
    return ", ".join(f"{name} {omega}" for name, omega in each.items()) if len({*each.values()}) > 1 else ""


def gap_table(results: Results, rivals: Sequence[str] = ()) -> str:
    """A line for each student, and below it which were drawn at several ω and why a share is "–".

    Empty where no student stands beside a rival.
    """
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
    if at := dict.fromkeys(one.guidance for one in shares if one.guidance and one.value is not None):
        text += f"\nAt several ω: {'; '.join(at)}.\n"
    return text + "".join(f"\n–: {reason} ({'; '.join(cells)}).\n" for reason, cells in reasons.items())
