"""Who may import whom, and what an import may cost (docs/architecture.md)."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("acontrol", "launch", "tune")
# The only modules that may import a library, at the top or inside a function.
HOMES = {
    "ray": (
        *(f"acontrol.runs.{name}" for name in ("cluster",)),
        *(f"acontrol.train.{name}" for name in ("driver", "fit", "worker", "callbacks")),
        "acontrol.train.precompute",
        "acontrol.generation.workers",
        "acontrol.evaluation.comparison",
        *(f"tune.{name}" for name in ("sweep", "trial", "watcher")),
    ),
    "deepspeed": ("acontrol.train.engine",),
    "mlflow": (
        *(f"acontrol.runs.{name}" for name in ("mlflow_client", "tracking")),
        *(f"acontrol.registry.{name}" for name in ("package", "pull", "promote", "register")),
        "acontrol.registry.serving",
    ),
    "webdataset": ("acontrol.data",),
    "tyro": ("launch",),
}
# Libraries stand on one floor: what one needs of another belongs below both.
FLOOR = ("train", "generation", "evaluation", "registry", "pretrain")
# Those that do not: a comparison trains and draws, a trained run is registered.
ACROSS = {
}


def name_of(file: Path, root: Path = ROOT) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path) -> set[str]:
    """Every dotted name that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            assert node.module != "__future__", f"{file}: jaxtyping needs real annotations"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def graph(root: Path = ROOT) -> dict[str, set[str]]:
    """The modules of ours that each module of ours imports."""
    files = [file for package in PACKAGES for file in (root / package).rglob("*.py")]
    modules = {name_of(file, root): file for file in files}
    edges = {}
    for name, file in modules.items():
        targets = {
            # `from package import module` and `from module import name` look the same.
            imported if imported in modules else imported.rpartition(".")[0]
            for imported in imports(file)
        }
        edges[name] = (targets & modules.keys()) - {name}
    edges["acontrol"] = set()  # Its names load on first use.
    return edges


def offenders(edges: Mapping[str, Iterable[str]], homes: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Modules that import a heavy library away from its home."""
    return [
        f"{module} imports {library}"
        for module, imported in edges.items()
        for library in sorted({name.partition(".")[0] for name in imported} & homes.keys())
        if not any(module == home or module.startswith(f"{home}.") for home in homes[library])
    ]


def test_no_module_imports_itself_by_way_of_others() -> None:
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_a_planted_circle_is_found(tmp_path: Path) -> None:
    for name, text in {"a": "from launch import b", "b": "import launch.c", "c": "def f():\n from launch.a import x"}.items():
        (tmp_path / "launch").mkdir(exist_ok=True)
        (tmp_path / "launch" / f"{name}.py").write_text(text)
    (tmp_path / "acontrol").mkdir()
    with pytest.raises(CycleError):
        TopologicalSorter(graph(tmp_path)).prepare()
