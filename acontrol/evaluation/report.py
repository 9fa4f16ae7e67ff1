"""The report of an evaluation: report.md, results.csv and a self-contained index.html."""

import csv
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from acontrol import reporting
from acontrol.evaluation.caveats import print_caveats
from acontrol.runs.mlflow_client import CAVEATS
from acontrol.runs.results import WRITTEN, log
from acontrol.runs.tracking import Tracker


@dataclass(frozen=True)
class Table:
    """A table of texts with a heading, and a note between them."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def markdown(self) -> str:
        """Heading, note and table in Markdown."""
        lines = [f"## {self.title}", ""]
        lines += [self.note, ""] if self.note else []
        cells = [self.head, ("---",) * len(self.head), *self.rows]
        lines += [f"| {' | '.join(row)} |" for row in cells]
        return "\n".join([*lines, ""])

    def html(self) -> str:
        """Heading, note and table in HTML."""
        note = f"<p>{html.escape(self.note)}</p>" if self.note else ""
        heading = f"<h2>{html.escape(self.title)}</h2>"
        return f"{heading}{note}{reporting.table(self.head, self.rows)}"


def csv_text(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows with the same columns as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class Report:
    """Tables and pictures of a report, with what they cannot show above them."""

    def __init__(self, out: Path, title: str, caveats: Sequence[str] = ()):
        """Start a report in an existing folder."""
        self.out, self.title, self.caveats = out, title, caveats
        self.tables: list[Table] = []
        self.rows: list[Mapping[str, Any]] = []
        self._pictures: list[tuple[str, Path]] = []

    def add_picture(self, name: str, file: Path) -> None:
        """Add a picture, a file in the folder."""
        self._pictures.append((name, file))

    def write(self) -> list[Path]:
        """Write the report; returns its files, pictures included."""
        files = [self.out / name for name in WRITTEN]
        files[0].write_text(
            "\n".join(
                [
                    f"# {self.title}\n",
                    *(f"**Caution: {caveat}**\n" for caveat in self.caveats),
                    *(table.markdown() for table in self.tables),
                    *(f"![{name}]({file.name})\n" for name, file in self._pictures),
                ]
            ),
            encoding="utf-8",
        )
        files[1].write_text(csv_text(self.rows), encoding="utf-8")
        body = "".join(
            f"<p><b>Caution: {html.escape(caveat)}</b></p>" for caveat in self.caveats
        )
        body += "".join(table.html() for table in self.tables)
        for name, file in self._pictures:
            with Image.open(file) as image:
                body += f"<h2>{html.escape(name)}</h2>{reporting.picture(image, name)}"
        files[2].write_text(reporting.page(self.title, body), encoding="utf-8")
        return [*files, *(file for _, file in self._pictures)]

    def publish(
        self,
        tracker: Tracker,
        table: Table,
        settings: Mapping[str, Any],
        metrics: Mapping[str, float],
    ) -> None:
        """Write the report, log it with settings and metrics, and print a table of it."""
        if self.caveats:
            settings = {**settings, CAVEATS: list(self.caveats)}
        log(tracker, settings, metrics, self.write())
        print(table.markdown())
        print_caveats(self.caveats)
        print(f"Look at {self.out / 'index.html'}")
        print(f"Results: {self.out / 'report.md'}")
