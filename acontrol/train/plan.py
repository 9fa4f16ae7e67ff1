"""What a run still needs before it can start: the same list with and without --dry-run."""

from acontrol.config import RunConfig
from acontrol.networks import hub


def unnamed(config: RunConfig) -> list[str]:
    """Options that are needed and not given, one line each."""
    needed = (
        (config.output, "--output RUN is needed: where the run goes"),
        (config.data.shards, "--data.shards DIR is needed: what launch.shard wrote"),
    )
    return [line for value, line in needed if value is None]


def unmet(config: RunConfig) -> list[str]:
    """All that is missing: options that are not given, and weights not on this machine."""
    return unnamed(config) + hub.missing(config.base)
