"""Pictures of a sweep."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import permutation_importance

from tune.space import Choice, Domain, Range, Space, Value

Values = Mapping[str, Mapping[str, Value]]  # By trial, then by key.
GREY = "#9a9a9a"


def parallel_coordinates(
    space: Space,
    values: Values,
    scores: Mapping[str, float],
    finished: set[str],
    best: str,
    objective: str,
    file: Path,
) -> None:
    """A line a trial through its values, an axis a key; the objective is the last axis.

    Trials that were stopped early are dashed: their objective is of an earlier step.

    Args:
        space: The axes.
        values: Of the trials in ``scores``.
        scores: The objective's last value by trial.
        finished: Trials that ran to the end.
        best: The one to draw thick.
        objective: The last axis's name.
        file: The PNG to write.
    """
    ends = min(scores.values()), max(scores.values())
    if ends[0] == ends[1]:
        ends = ends[0] - 0.5, ends[0] + 0.5
    figure = Figure(figsize=(2.2 + 1.7 * (len(space) + 1), 4.8), layout="constrained")
    axes = figure.add_subplot()
    colors = matplotlib.colormaps["viridis"]
    norm = Normalize(*ends)
    order = sorted(scores, key=lambda trial: (trial == best, trial in finished))
    for trial in order:
        points = [_place(domain, values[trial][key]) for key, domain in space.items()]
        points.append((scores[trial] - ends[0]) / (ends[1] - ends[0]))
        axes.plot(
            points,
            color=colors(norm(scores[trial])),
            linewidth=3.5 if trial == best else 1.4,
            linestyle="-" if trial in finished else (0, (4, 3)),
            alpha=1.0 if trial in finished else 0.6,
            marker="o",
            markersize=4,
        )
    names = [*space, objective]
    for place, name in enumerate(names):
        axes.axvline(place, color=GREY, linewidth=0.8, zorder=0)
        marks = _marks(space[name]) if name in space else [(0, ends[0]), (1, ends[1])]
        for height, value in marks:
            text = f"{value:.3g}" if isinstance(value, float) else str(value)
            axes.annotate(
                text,
                (place, height),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
            )
    axes.set_xticks(range(len(names)), names, fontsize=9)
    axes.set_yticks([])
    axes.set_ylim(-0.06, 1.06)
    axes.set_xlim(-0.15, len(names) - 0.55)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title(f"{len(scores)} trials; dashed: stopped early; thick: the best", fontsize=10)
    figure.colorbar(ScalarMappable(norm, colors), ax=axes, label=objective, pad=0.01)
    figure.savefig(file, dpi=120)


def parameter_importance(
    space: Space, values: Values, scores: Mapping[str, float], title: str, file: Path
) -> None:
    """A bar a key: how much worse a random forest of the trials predicts without it.

    Beside it the sign of the rank correlation, where a key has an order. With few trials this
    is a hint, no finding.

    Args:
        space: The keys.
        values: Of the trials in ``scores``.
        scores: The objective by trial, of one and the same step.
        title: What it is of.
        file: The PNG to write.
    """
    shares, signs = importance(space, values, scores)
    order = sorted(shares, key=lambda key: shares[key])
    figure = Figure(figsize=(7, 1.4 + 0.42 * len(order)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(order, [shares[key] for key in order], color="#3b6fb6", height=0.65)
    for row, key in enumerate(order):
        axes.annotate(
            f"{shares[key]:.2f}  {signs[key]}",
            (shares[key], row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_xlim(0, max([*shares.values(), 0.1]) * 1.3)
    axes.set_xlabel("importance (share), and rank correlation")
    axes.set_title(title, fontsize=10)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(file, dpi=120)


def importance(
    space: Space, values: Values, scores: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, str]]:
    """Shares by key, which add up to 1 unless nothing matters, and words on the correlation."""
    trials = sorted(scores)
    places = np.array(
        [[_place(domain, values[one][key]) for key, domain in space.items()] for one in trials]
    )
    target = np.array([scores[trial] for trial in trials])
    forest = RandomForestRegressor(n_estimators=200, random_state=0).fit(places, target)
    found = permutation_importance(forest, places, target, n_repeats=20, random_state=0)
    mean = np.maximum(found.importances_mean, 0)
    shares = mean / mean.sum() if mean.sum() > 0 else mean
    signs = {}
    for column, (key, domain) in enumerate(space.items()):
        ordered = isinstance(domain, Range) or all(
            isinstance(one, int | float) for one in domain.values
        )
        varies = np.ptp(places[:, column]) > 0 and np.ptp(target) > 0
        rank = spearmanr(places[:, column], target).statistic if ordered and varies else None
        signs[key] = "" if rank is None else f"(r {rank:+.2f})"
    return dict(zip(space, shares.tolist(), strict=True)), signs


def _place(domain: Domain, value: Value) -> float:
    """A value's height on its axis, in [0, 1]."""
    if isinstance(domain, Choice):
        values = _sorted(domain)
        return values.index(value) / max(1, len(values) - 1)
    ends = np.array([domain.low, float(str(value)), domain.high])
    low, at, high = np.log(ends) if domain.log else ends
    return float((at - low) / (high - low))


def _marks(domain: Domain) -> list[tuple[float, Value]]:
    if isinstance(domain, Choice):
        return [(_place(domain, value), value) for value in domain.values]
    return [(0.0, domain.low), (1.0, domain.high)]


def _sorted(domain: Choice) -> list[Value]:
    """Numbers by size, anything else as it was given."""
    values = list(domain.values)
    numbers = [one for one in values if isinstance(one, int | float)]
    return sorted(numbers) if len(numbers) == len(values) else values  # type: ignore[return-value]
