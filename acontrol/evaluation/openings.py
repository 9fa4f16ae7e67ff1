"""How often the test part of a data set has been opened.

Each evaluation on test images is a line of a file beside the split file, or else beside the
results' folder, and the number is written above the tables: who looks at the test images often
chooses by them.
"""

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from acontrol.data.mvtec import MvtecFolder
from acontrol.errors import UserError
from acontrol.evaluation.budget import Reading
from acontrol.evaluation.results import TrainingJob
from acontrol.messages import counted


def file_of(split_file: Path | None, out: Path) -> Path:
    """Where the lines of a data set are."""
    if split_file is not None:
        return split_file.with_name(f"{split_file.name}.openings.jsonl")
    return out.parent / "test-openings.jsonl"


def times_opened(
    real: MvtecFolder,
    file: Path,
    out: Path,
    jobs: Sequence[TrainingJob],
    budget: Reading,
    command: str | None = None,
) -> str:
    """How often the test images have been opened, and where that is recorded.

    Args:
        real: The data, with its split.
        file: From `file_of`.
        out: Folder of results.
        jobs: All trainings that are tested on them.
        budget: Of the trainings.
        command: Records this opening by the command's name, if a training is missing.

    Raises:
        UserError: As `opened` does.
    """
    entry = {
        "command": command,
        "out": str(out),
        "categories": [*dict.fromkeys(job.category for job in jobs)],
        "detectors": [*dict.fromkeys(job.detector for job in jobs)],
        "sources": [*dict.fromkeys(job.source for job in jobs)],
        "budget": budget.model_dump(exclude_defaults=True),
    }
    missing = any(not job.file(out).is_file() for job in jobs)
    data = f"{real.root.name} {real.trained_on('train').split_digest}"
    count = opened(file, entry, data, new=command is not None and missing)
    return f"{counted(count, 'time')} ({file})"


def opened(file: Path, entry: dict[str, Any], data: str, *, new: bool) -> int:
    """Record an opening of the test images, unless it is there, and count those of the data.

    Args:
        file: From `file_of`.
        entry: What is evaluated; the same again, to continue, is the same opening.
        data: Name and split of the data.
        new: Whether there is anything to evaluate; if not, the openings are only counted.

    Raises:
        UserError: If the file is damaged or cannot be written.
    """
    line = {"data": data, **entry}
    try:
        lines = [json.loads(text) for text in file.read_text().splitlines()]
    except FileNotFoundError:
        lines = []
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: is damaged ({error}); restore it") from error
    if new and not any({**old, "date": None} == {**line, "date": None} for old in lines):
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        lines.append({**line, "date": date})
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as stream:
                stream.write(f"{json.dumps(lines[-1])}\n")
        except OSError as error:
            raise UserError(
                f"{file}: cannot be written ({error.strerror}), where it is counted how often "
                "test images are opened; put the split file where you may write"
            ) from error
    return sum(old.get("data") == data for old in lines)
