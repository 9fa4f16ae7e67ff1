"""Every setting of a run, as frozen pydantic models.

One definition gives the command line (dotted names), the JSON that checkpoints and adapters
carry, and the checks on the way back in. Validation never changes a value; what follows from
other settings is a property or a function.
"""

from acontrol.config.method import AseaConfig, CsmConfig, DropoutConfig, SgaConfig
from acontrol.config.run import (
    BUILT_IN,
    AdapterCard,
    BaseConfig,
    DataConfig,
    RunConfig,
    check_scheme,
)
from acontrol.config.settings import Settings, unit_interval
from acontrol.config.training import (
    CheckpointConfig,
    ClusterConfig,
    LossWeighting,
    OptimConfig,
    RuntimeConfig,
    SamplesConfig,
    TrackingConfig,
    ValidationConfig,
    ZeroConfig,
)

__all__ = [
    "BUILT_IN",
    "AdapterCard",
    "AseaConfig",
    "BaseConfig",
    "CheckpointConfig",
    "ClusterConfig",
    "CsmConfig",
    "DataConfig",
    "DropoutConfig",
    "LossWeighting",
    "OptimConfig",
    "RunConfig",
    "RuntimeConfig",
    "SamplesConfig",
    "Settings",
    "SgaConfig",
    "TrackingConfig",
    "ValidationConfig",
    "ZeroConfig",
    "check_scheme",
    "unit_interval",
]
