"""Promote a model version to champion if it beats the current one."""

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
# Settings that a loss depends on: losses are comparable only if these are equal.
LOSS_SETTINGS = (
    "data.resolution",
    "data.reference",
    "data.reference_view",
    "data.target_view",
    "data.target_px",
    "optim.loss_weighting",
    "optim.mask_weight",
    "validation.share",
)
# What runs did before they had such a setting.
LATER = {"data.target_view": "image", "data.target_px": "None"}


@dataclass(frozen=True)
class Decision:
    """Whether a version was promoted, and why, in one line."""

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

    Metrics are read from the versions' MLflow runs, so results that an evaluation logged
    later count too.

    Args:
        name: The model.
        uri: MLflow server or database.
        metric: The metric to compare.
        higher_is_better: For that metric.
        version: Version to promote; by default the one with the alias ``candidate``.
        force: Promote without comparing.

    Raises:
        UserError: If the version does not exist, a run lacks the metric, or the two losses
            were measured with different settings.
    """
    check_model_name(name)
    with reaching(uri):
        client = client_of(uri)
        candidate = version_of(client, name, CANDIDATE, version)
        if candidate is None:
            wanted = f"version {version}" if version else f"version with alias {CANDIDATE!r}"
            raise UserError(f"model {name}: no {wanted}; register one with acontrol register")
        champion = version_of(client, name, CHAMPION)
        label = f"{name} version {candidate.version}"
        if champion is not None and champion.version == candidate.version:
            return Decision(True, f"{label} is already the champion")
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
            f"{champion.version}, are not comparable: {', '.join(differences)} differ; compare "
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
        names = [name for name in sorted(run.data.metrics) if not name.startswith("system/")]
        raise UserError(
            f"version {version.version}: its run has no {metric} (it has {', '.join(names)}); "
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
        name
        for name in LOSS_SETTINGS
        if new.data.params.get(name, LATER.get(name))
        != old.data.params.get(name, LATER.get(name))
    ]
    return tags + settings
