"""Who may import whom, and what an import may cost (docs/architecture.md)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("acontrol", "launch", "tune")
FILES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))

# Modules low in the list may import those above, of the same entry or higher.
ORDER = [
    {"acontrol", "acontrol._version"},
    {"acontrol.config"},
    {
        "acontrol.presets",
        "acontrol.anomaly_map",
        "acontrol.asea",
        "acontrol.diffusion",
        "acontrol.sheet",
        "acontrol.page",
        "acontrol.pretrain.networks",
        "acontrol.pretrain.settings",
    },
    {"acontrol.data", "acontrol.masks"},
    {"acontrol.evaluation"},
    {
        "acontrol.hub",
        "acontrol.inpainting",
        "acontrol.memory",
        "acontrol.shapes",
        "acontrol.qformer",
        "acontrol.qformer_layers",
        "acontrol.csm",
        "acontrol.sga",
        "acontrol.base",
    },
    {
        "acontrol.canvas",
        "acontrol.encoder",
        "acontrol.defect_features",
        "acontrol.interop",
        "acontrol.pipeline_inputs",
    },
    {"acontrol.model"},
    {"acontrol.pipeline", "acontrol.masks.learned"},
    {"acontrol.train"},
    {"acontrol.pretrain.stage"},
    {"acontrol.generation"},
    {"acontrol.registry"},
    {"acontrol.pretrain"},
    {"launch"},
    {"tune"},
]
HOMES = {
    "ray": (
        *(
            f"acontrol.train.{name}"
            for name in (
                "cluster",
                "driver",
                "failures",
                "fit",
                "observer",
                "precompute",
                "rank",
            )
        ),
        "acontrol.generation.workers",
        "launch.evaluate_trainings",
        *(f"tune.{name}" for name in ("sweep", "trial", "watcher")),
    ),
    "deepspeed": ("acontrol.train.engine",),
    "mlflow": (
        "acontrol.train.mlflow_run",
        "acontrol.train.system_metrics",
        "acontrol.train.tracking",
        *(
            f"acontrol.registry.{name}."
            for name in ("package", "promote", "pull", "register", "server", "serving")
        ),
    ),
    "webdataset": ("acontrol.data.",),
    "tyro": ("launch.",),
}


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            assert node.module != "__future__", f"{file}: jaxtyping needs real annotations"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def level(module: str) -> int:
    matches = [
        (len(name), place)
        for place, names in enumerate(ORDER)
        for name in names
        if module == name or module.startswith(f"{name}.")
    ]
    assert matches, f"{module} has no place in ORDER"
    return max(matches)[1]


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_point_downwards(file: Path) -> None:
    if file == ROOT / "acontrol" / "__init__.py":  # It names its modules for type checkers.
        return
    own = level(name_of(file))
    for imported in imports(file):
        if imported.split(".")[0] in PACKAGES:
            assert level(imported) <= own, f"{name_of(file)} imports {imported}"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_heavy_libraries_stay_in_their_homes(file: Path) -> None:
    for imported in imports(file):
        for library, homes in HOMES.items():
            if imported.split(".")[0] == library:
                assert f"{name_of(file)}.".startswith(homes), f"{file} imports {imported}"


def test_data_knows_nothing_of_the_models() -> None:
    for file in FILES:
        if name_of(file).startswith("acontrol.data"):
            ours = {name for name in imports(file) if name.startswith("acontrol.")}
            assert all(name.startswith(("acontrol.config", "acontrol.data")) for name in ours)


def test_evaluation_is_handed_its_networks() -> None:
    seen = ("acontrol.config", "acontrol.data", "acontrol.evaluation", "acontrol.page")
    for file in FILES:
        if name_of(file).startswith("acontrol.evaluation"):
            ours = {name for name in imports(file) if name.startswith("acontrol")}
            assert all(name.startswith((*seen, "acontrol.sheet")) for name in ours), file


def test_importing_the_package_is_cheap() -> None:
    heavy = ["torch", "ray", "deepspeed", "mlflow", "transformers", "diffusers", "pydantic"]
    code = f"import sys, acontrol; print([n for n in {heavy!r} if n in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert found.stdout.strip() == "[]"


def test_public_names_exist() -> None:
    import acontrol

    for name in acontrol.__all__:
        assert getattr(acontrol, name) is not None
