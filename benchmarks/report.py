"""What the benchmarks share: interleaved timing, and dated reports with the hardware."""

import datetime
import json
import platform
import random
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def interleaved(
    cases: Mapping[str, Callable[[], object]], rounds: int, device: str, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of each case, one run of each per round in changing order.

    So a slow spell of the machine affects all of them. Warm-up runs are not counted. On the CPU
    these are the seconds of this process, summed over threads: other programs do not count.
    """
    clock = time.perf_counter if device.startswith("cuda") else time.process_time
    times: dict[str, list[float]] = {name: [] for name in cases}
    order = list(cases)
    shuffle = random.Random(0)
    for number in range(warmup + rounds):
        shuffle.shuffle(order)
        for name in order:
            _wait(device)
            begun = clock()
            cases[name]()
            _wait(device)
            if number >= warmup:
                times[name].append(clock() - begun)
    return times


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def hardware() -> str:
    """The processor or the graphics card, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return f"{names[0] if names else platform.machine()}, {len(names)} cores"


def write_report(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    title: str,
    folder: Path = RESULTS,
    *,
    show: bool = True,
) -> Path:
    """Write a table with hardware, versions and config as JSON and Markdown, and print it."""
    import diffusers
    import transformers

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    metadata = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": hardware(),
        "commit": commit,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "diffusers": diffusers.__version__,
        },
        "config": dict(config),
    }
    columns = list(rows[0])
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(str(row[column]) for column in columns) for row in rows]
    table = "\n".join(f"| {line} |" for line in lines)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    stem = f"{metadata['date']}_{name}_{device}"
    folder.mkdir(exist_ok=True)
    report = {**metadata, "rows": list(rows)}
    (folder / f"{stem}.json").write_text(json.dumps(report, indent=1) + "\n")
    facts = "\n".join(f"- {key}: {value}" for key, value in metadata.items())
    (folder / f"{stem}.md").write_text(f"# {title}\n\n{facts}\n\n{table}\n")
    path = folder / f"{stem}.md"
    if show:
        print(f"{table}\n{path}")
    return path
