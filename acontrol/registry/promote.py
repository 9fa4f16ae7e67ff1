"""Make a version the champion, if it beats the present one."""

import math
from dataclasses import dataclass

import mlflow
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from acontrol.errors import UserError
from acontrol.registry.card import check_model_name
from acontrol.runs.mlflow_client import (
    BASE_TAG,
    CANDIDATE,
    CHAMPION,
    DATA_TAG,
    client_of,
    reaching,
    version_of,
)

LOSSES = ("validation_loss", "loss", "conditioned_loss")
# Settings by which a loss is measured: between two of them losses do not compare.
MEASURE = (
    "data.resolution",
    "data.reference",
    "data.reference_view",
    "optim.loss_weighting",
    "optim.mask_weight",
    "validation.share",
)


@dataclass(frozen=True)
class Decision:
    """Whether a version became the champion, and what was compared, in one line."""

    promoted: bool
    reason: str


def promote(
    name: str,
    uri: str,
    *,
    metric: str = "validation_loss",
    higher_is_better: bool = False,
    version: str | None = None,
    force: bool = False,
) -> Decision:
    """Compare a version's metric with the champion's and move the alias if it is better.

    Metrics are read from the versions' MLflow runs, so what an evaluation logged there later
    counts too.

    Args:
        name: The model.
        uri: MLflow server or database.
        metric: What is compared.
        higher_is_better: Of that metric.
        version: Which one to promote; by default the one with the alias ``candidate``.
        force: Promote whatever the comparison says.

    Raises:
        UserError: If there is no such version, a run lacks the metric, or two losses were not
            measured alike.
    """
    check_model_name(name)
    with reaching(uri):
        client = client_of(uri)
        candidate = version_of(client, name, CANDIDATE, version)
        if candidate is None:
            wanted = f"version {version}" if version else f"version with alias {CANDIDATE!r}"
            raise UserError(f"model {name}: no {wanted}; launch.register makes one")
        champion = version_of(client, name, CHAMPION)
        label = f"{name} version {candidate.version}"
        if champion is not None and champion.version == candidate.version:
            return Decision(True, f"{label} is the champion already")
        if champion is None:
            decision = Decision(True, f"{label}: no champion so far, nothing to compare with")
        elif force:
            decision = Decision(
                True, f"{label} replaces version {champion.version}: forced, nothing compared"
            )
        else:
            decision = _compare(client, candidate, champion, metric, higher_is_better)
        if decision.promoted:
            client.set_registered_model_alias(name, CHAMPION, candidate.version)
        return decision


def _compare(
    client: mlflow.MlflowClient,
    candidate: ModelVersion,
    champion: ModelVersion,
    metric: str,
    higher_is_better: bool,
) -> Decision:
    runs = [client.get_run(version.run_id) for version in (candidate, champion)]
    new, old = (
        _value(run, version, metric)
        for run, version in zip(runs, (candidate, champion), strict=True)
    )
    if metric in LOSSES and (differences := _differences(candidate, champion, *runs)):
        raise UserError(
            f"{metric} of version {candidate.version} and of the champion, version "
            f"{champion.version}, do not compare: {', '.join(differences)} differ; compare "
            "another --metric, or promote with --force"
        )
    better = new > old if higher_is_better else new < old
    sign = "better" if better else "not better"
    return Decision(
        better,
        f"{candidate.name} version {candidate.version}: {metric} {new:.6g} is {sign} than "
        f"{old:.6g} of the champion, version {champion.version} "
        f"({'higher' if higher_is_better else 'lower'} is better)",
    )


def _value(run: Run, version: ModelVersion, metric: str) -> float:
    value = run.data.metrics.get(metric)
    if value is None or math.isnan(value):
        has = [name for name in sorted(run.data.metrics) if not name.startswith("system/")]
        raise UserError(
            f"version {version.version}: its run has no {metric} (it has {', '.join(has)}); "
            "name a --metric that both have, or train with --validation.every"
        )
    return float(value)


def _differences(
    candidate: ModelVersion, champion: ModelVersion, new: Run, old: Run
) -> list[str]:
    tags = [
        tag for tag in (DATA_TAG, BASE_TAG) if candidate.tags.get(tag) != champion.tags.get(tag)
    ]
    settings = [
        name for name in MEASURE if new.data.params.get(name) != old.data.params.get(name)
    ]
    return tags + settings
