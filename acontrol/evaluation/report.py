"""What a measurement leaves: report.md, results.csv, and index.html, which stands alone."""

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from acontrol import reporting
from acontrol.evaluation.tables import Table, csv_text


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
