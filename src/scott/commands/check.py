"""`scott prepare --check`: what would be kept of a source, what not and why, without a teacher."""

from pathlib import Path

from rich.markup import escape
from rich.table import Column, Table

from scott.commands.prepare import open_with
from scott.commands.presets import Preset
from scott.data.checking import PAGE, Check, check_source, contact_sheet
from scott.data.preparation import Report, limited
from scott.data.records import reasons
from scott.data.settings import Settings
from scott.errors import UserError, printable
from scott.files import write_atomically


def check_named(name: str, settings: Settings, out: Path, report: Report, preset: Preset | None = None) -> Check:
    """What `prepare_source` would keep of a source and what not, with some of it shown in the page `out`.

    Raises:
        UserError: nothing is kept, or the page cannot be there; see `open_source`, `check_source`.
    """
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise UserError(f"got --out {out} with --check; expected a file in a folder that is there")
    if out.is_file():
        with out.open("rb") as stream:
            if stream.read(len(PAGE)) != PAGE.encode():
                raise UserError(f"got --out {out} with --check, a file that is no such page; name another")
    source, settings = open_with(name, settings, preset)
    total = sum(unit.total or 0 for unit in limited(source, settings))
    check = check_source(source, settings, lambda done: report("check", done, max(done, total), {}))
    write_atomically(out, contact_sheet(name, check))
    if not check.count:
        why = reasons(check.skipped) or "nothing there"
        raise UserError(f"of {name} nothing would be kept ({why}); {out} names the first of each")
    return check


def check_summary(check: Check, out: Path) -> Table:
    """What would be kept and what not, with the first record of each reason."""
    table = Table("", Column(justify="right"), "", title=escape(str(out)), title_justify="left", show_header=False)
    table.add_row("[bold]kept", f"[bold]{check.count:,}")
    for reason, count in check.skipped.most_common():
        first = check.first[reason]
        table.add_row(reason, f"{count:,}", escape(printable(f"{first.key} {first.detail}".strip()[:200])))
    for repeats, count in sorted(check.repeats.items()):
        table.add_row(f"visited {repeats} times an epoch", f"{count:,}")
    return table
