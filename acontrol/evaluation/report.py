"""What a measurement leaves: report.md, results.csv, and index.html, which stands alone."""

import csv
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

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


class Report:
    """Tables and pictures, gathered and then written."""

    def __init__(self, out: Path, title: str):
        """Take the folder, which must exist, and the title."""
        self.out, self.title = out, title
        self.tables: list[Table] = []
        self.rows: list[Mapping[str, Any]] = []
        self._pictures: list[tuple[str, Path]] = []

    def add_picture(self, name: str, file: Path) -> None:
        """Show a picture that lies in the folder."""
        self._pictures.append((name, file))

    def write(self) -> list[Path]:
        """Write everything; returns all files, pictures too."""
        files = [self.out / name for name in ("report.md", "results.csv", "index.html")]
        files[0].write_text(
            "\n".join(
                [
                    f"# {self.title}\n",
                    *(one.markdown() for one in self.tables),
                    *(f"![{name}]({file.name})\n" for name, file in self._pictures),
                ]
            ),
            encoding="utf-8",
        )
        files[1].write_text(csv_text(self.rows), encoding="utf-8")
        body = "".join(one.html() for one in self.tables)
        for name, file in self._pictures:
            with Image.open(file) as opened:
                body += f"<h2>{html.escape(name)}</h2>{reporting.picture(opened, name)}"
        files[2].write_text(reporting.page(self.title, body), encoding="utf-8")
        return [*files, *(file for _, file in self._pictures)]
