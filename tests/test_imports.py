"""Who may import whom, and what an import may cost (docs/architecture.md)."""

import ast
import subprocess
import sys
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("acontrol", "launch", "tune")
# The only modules that may import a library, at the top or inside a function.
HOMES = {
    "ray": (
        "acontrol.runs.cluster",
        *(f"acontrol.train.{name}" for name in ("driver", "fit", "worker", "callbacks")),
        "acontrol.train.precompute",
        "acontrol.generation.workers",
        "acontrol.evaluation.trainings",
        *(f"tune.{name}" for name in ("sweep", "trial", "watcher")),
    ),
    "deepspeed": ("acontrol.train.engine",),
    "mlflow": (
        *(f"acontrol.runs.{name}" for name in ("mlflow_client", "tracking")),
        *(f"acontrol.registry.{name}" for name in ("package", "pull", "promote", "register")),
        "acontrol.registry.serving",
    ),
    "webdataset": ("acontrol.data",),
    "starlette": ("acontrol.studio",),
    "tyro": ("launch",),
    "peft": ("acontrol.rivals.lora",),
    "uvicorn": ("launch.studio",),
}
# Libraries stand on one floor: what one needs of another belongs below both.
FLOOR = ("train", "generation", "evaluation", "registry", "pretrain")
# Across it goes what draws before it measures: an ablation, which also trains, and --methods.
ACROSS = ("acontrol.evaluation.ablation", "acontrol.evaluation.drawing")


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


def libraries(file: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(file)} & HOMES.keys()


def is_in(module: str, packages: Iterable[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def test_no_module_imports_itself_by_way_of_others() -> None:
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_a_planted_circle_is_found(tmp_path: Path) -> None:
    planted = {
        "launch/a.py": "from acontrol import b",
        "acontrol/b.py": "import tune.c",
        "tune/c.py": "def late():\n    from launch.a import name",
    }
    for name, text in planted.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    with pytest.raises(CycleError):
        TopologicalSorter(graph(tmp_path)).prepare()


def test_heavy_libraries_stay_in_their_homes() -> None:
    offenders = [
        f"{name_of(file)} imports {library}"
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
        for library in libraries(file)
        if not is_in(name_of(file), HOMES[library])
    ]
    assert offenders == []


def test_the_library_reaches_for_no_command() -> None:
    offenders = [
        f"{module} imports {imported}"
        for module, others in graph().items()
        for imported in others
        if is_in(module, ["acontrol"]) and is_in(imported, ["launch", "tune"])
    ]
    assert offenders == []


def test_packages_of_one_floor_do_not_import_each_other() -> None:
    floor = {f"acontrol.{name}" for name in FLOOR}
    offenders = [
        f"{module} imports {imported}"
        for module, others in graph().items()
        for imported in others
        for own in floor
        if is_in(module, [own]) and is_in(imported, floor - {own}) and module not in ACROSS
    ]
    assert offenders == []


@pytest.mark.parametrize(
    ("package", "below"),
    [
        ("acontrol.config", ("errors", "seeding")),
        ("acontrol.data", ("config", "errors", "messages", "progress", "seeding")),
        (
            "acontrol.runs",
            ("config", "data", "errors", "messages", "progress", "seeding", "_version"),
        ),
    ],
)
def test_a_package_imports_only_what_stands_below(package: str, below: tuple[str, ...]) -> None:
    allowed = ["acontrol", package, *(f"acontrol.{name}" for name in below)]
    offenders = [
        f"{module} imports {imported}"
        for module, others in graph().items()
        for imported in others
        if is_in(module, [package])
        and imported != "acontrol"
        and not is_in(imported, allowed[1:])
    ]
    assert offenders == []


def test_importing_the_package_is_cheap() -> None:
    heavy = ["torch", "ray", "deepspeed", "mlflow", "transformers", "diffusers", "pydantic"]
    assert imported_by("import acontrol", heavy) == []


def test_public_names_exist() -> None:
    import acontrol

    for name in acontrol.__all__:
        assert getattr(acontrol, name) is not None


@pytest.mark.parametrize(
    "code",
    [
        "import acontrol.train.driver",
        "import launch.shard",
        *(
            f"import launch.{name}"
            for name in ("train", "evaluate", "generate", "fit", "masks")
        ),
        "import tune.search",
    ],
)
def test_the_way_to_a_command_is_free_of_networks(code: str) -> None:
    assert imported_by(code, ["diffusers", "transformers", "deepspeed"]) == []


def imported_by(code: str, names: list[str]) -> list[str]:
    """Which of these a fresh interpreter has loaded after ``code``."""
    check = f"import sys; {code}; print(*(name for name in {names} if name in sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return result.stdout.split()
