"""Tables of texts, as Markdown, CSV and HTML."""

import csv
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from acontrol import reporting


@dataclass(frozen=True)
class Table:
    """A table with its heading and what a reader must know about it.

    Attributes:
        title: Heading.
        head: Names of the columns.
        rows: Texts, as many as columns.
        note: Sentences above the table.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def markdown(self) -> str:
        """With its heading and note."""
        lines = [f"## {self.title}", ""]
        lines += [self.note, ""] if self.note else []
        cells = [self.head, ("---",) * len(self.head), *self.rows]
        lines += [f"| {' | '.join(row)} |" for row in cells]
        return "\n".join([*lines, ""])

    def html(self) -> str:
        """With its heading and note."""
        note = f"<p>{html.escape(self.note)}</p>" if self.note else ""
        heading = f"<h2>{html.escape(self.title)}</h2>"
        return f"{heading}{note}{reporting.table(self.head, self.rows)}"


def csv_text(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows of one set of columns as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
