"""AnomalyControl: draw realistic, labelled defects from a handful of examples.

Public names load on first use, so ``import acontrol`` stays cheap and pulls in neither
torch nor Ray, DeepSpeed or MLflow.
"""

import importlib
from typing import TYPE_CHECKING, Any

from acontrol._version import __version__

if TYPE_CHECKING:
    from acontrol.config import RunConfig
    from acontrol.generation.draw import draw_defect
    from acontrol.interop.install import install
    from acontrol.method.model import AnomalyControl
    from acontrol.method.sga import SemanticAdapter
    from acontrol.pipelines.anomaly_control import AnomalyControlPipeline
    from acontrol.pipelines.loading import load_pipeline
    from acontrol.presets import preset

_HOMES = {
    "AnomalyControl": "acontrol.method.model",
    "AnomalyControlPipeline": "acontrol.pipelines.anomaly_control",
    "RunConfig": "acontrol.config",
    "SemanticAdapter": "acontrol.method.sga",
    "draw_defect": "acontrol.generation.draw",
    "install": "acontrol.interop.install",
    "load_pipeline": "acontrol.pipelines.loading",
    "preset": "acontrol.presets",
}

__all__ = [
    "AnomalyControl",
    "AnomalyControlPipeline",
    "RunConfig",
    "SemanticAdapter",
    "__version__",
    "draw_defect",
    "install",
    "load_pipeline",
    "preset",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'acontrol' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
