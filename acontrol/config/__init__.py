"""Every setting of a run, as frozen pydantic models.

One definition gives the command line (dotted names), the JSON in checkpoints and adapters, and
its validation on loading. Validation never changes a value; derived values are properties.
"""

from acontrol.config.method import AseaConfig, CsmConfig, DropoutConfig, SgaConfig
from acontrol.config.run import (
    BUILT_IN,
    THIRD,
    AdapterCard,
    BaseConfig,
    DataConfig,
    OnBase,
    RunConfig,
    TrainedOn,
    check_scheme,
)
from acontrol.config.settings import Settings, unit_interval
from acontrol.config.training import (
    CheckpointConfig,
    ClusterConfig,
    LossWeighting,
    OptimConfig,
    Precision,
    RuntimeConfig,
    SamplesConfig,
    TrackingConfig,
    ValidationConfig,
    ZeroConfig,
)

__all__ = [
    "BUILT_IN",
    "THIRD",
    "AdapterCard",
    "AseaConfig",
    "BaseConfig",
    "CheckpointConfig",
    "ClusterConfig",
    "CsmConfig",
    "DataConfig",
    "DropoutConfig",
    "LossWeighting",
    "OnBase",
    "OptimConfig",
    "Precision",
    "RunConfig",
    "RuntimeConfig",
    "SamplesConfig",
    "Settings",
    "SgaConfig",
    "TrackingConfig",
    "TrainedOn",
    "ValidationConfig",
    "ZeroConfig",
    "check_scheme",
    "unit_interval",
]
