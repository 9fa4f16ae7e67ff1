"""The search space of a sweep: values by dotted config key.

On the command line KEY=1,3,5 is a list, KEY=0.5:1.5 a range, KEY=log:1e-5:1e-3 a log-uniform
range, and KEY=3 a fixed value. A file holds the same as JSON: a list, or
{"low": 0.5, "high": 1.5, "log": false}, or the command line's form.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from itertools import islice, product
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator

from acontrol.config import RunConfig, Settings
from acontrol.errors import UserError, explain

Value = bool | int | float | str | None
# What a trial needs to run, and where and how it runs: not hyperparameters.
FIXED = (
    *("output", "init", "profile", "base", "cluster", "checkpoint", "samples", "tracking"),
    *("validation", "data.shards", "data.features", "data.cache_dir", "data.loader_workers"),
)
CHECKED = 4096  # Most combinations that are validated before the sweep.


class Choice(Settings):
    """A list of values."""

    values: tuple[Value, ...]

    @model_validator(mode="after")
    def _has_values(self) -> "Choice":
        if not self.values:
            raise ValueError("an empty list")
        return self

    @property
    def marks(self) -> tuple[Value, ...]:
        """Values to validate a config with."""
        return self.values


class Range(Settings):
    """All numbers from low to high, inclusive."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    @model_validator(mode="after")
    def _has_room(self) -> "Range":
        if self.low >= self.high:
            raise ValueError(f"an empty range: {self.low:g} is not under {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range must start above 0, not at {self.low:g}")
        return self

    @property
    def marks(self) -> tuple[Value, ...]:
        """Values to validate a config with."""
        ends = (self.low, self.high)
        return tuple(int(end) for end in ends) if self.whole else ends


Domain = Choice | Range
Space = dict[str, Domain]


def default_space(run: RunConfig) -> Space:
    """Gamma, T_g, alpha and the dropout rates.

    T_g and alpha come from lists, so that trials with the same values share precomputed
    features. Alpha's unit depends on the step rule, so its list surrounds the run's own.
    """
    alpha = run.asea.step_size
    rates = Range(low=0.0, high=0.2)
    return {
        "sga.scale": Range(low=0.5, high=1.5),
        "asea.steps": Choice(values=(1, 3, 5)),
        "asea.step_size": Choice(values=tuple(float(f"{alpha * f:.3g}") for f in (0.5, 1, 2))),
        "dropout.text": rates,
        "dropout.semantic": rates,
        "dropout.both": rates,
    }


def read_words(words: Sequence[str]) -> Space:
    """Parse KEY=DOMAIN arguments.

    Raises:
        UserError: For a missing "=", an unknown key, or an empty range.
    """
    space: Space = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"--space {word}: need KEY=VALUES, as sga.scale=0.5:1.5")
        key = _checked(key.replace("-", "_"), "--space")
        if key in space:
            raise UserError(f"--space {key}: given twice")
        space[key] = parse(key, text, "--space")
    return space


def read_file(path: Path) -> Space:
    """Read a JSON object of domains by key.

    Raises:
        UserError: If the file is unreadable, or a key or domain is wrong.
    """
    source = f"--space-file {path}"
    try:
        domains = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{source}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{source}: not JSON: {error}") from error
    if not isinstance(domains, dict):
        raise UserError(f"{source}: need a JSON object, got {type(domains).__name__}")
    return {_checked(key, source): parse(key, value, source) for key, value in domains.items()}


def parse(key: str, value: Any, source: str) -> Domain:
    """One domain, from the command line or from JSON.

    Raises:
        UserError: If it is not a domain, or empty.
    """
    whole = _annotation(key) is int
    try:
        if isinstance(value, dict):
            return Range(**{"whole": whole, **value})
        if not isinstance(value, str):
            return Choice(values=tuple(value) if isinstance(value, list) else (value,))
        log = value.startswith("log:")
        low, colon, high = value.removeprefix("log:").partition(":")
        if not colon:
            return Choice(values=tuple(_scalar(part) for part in value.split(",") if part))
        return Range(low=_number(low, whole), high=_number(high, whole), log=log, whole=whole)
    except ValidationError as error:
        raise UserError(f"{source} {key}: {explain(error)}") from error
    except ValueError as error:
        raise UserError(f"{source} {key}: {error}, got {value!r}") from error


def check(run: RunConfig, space: Space) -> None:
    """Validate the config with all list values and range ends, alone and together.

    Raises:
        UserError: If the space is empty, or the config refuses a combination.
    """
    if not space:
        raise UserError("nothing to search: name keys with --space, as sga.scale=0.5:1.5")
    for key, domain in space.items():
        for value in domain.marks:
            _try(run, {key: value})
    # Together, the highest first: rates that are fine one by one can add up to too much.
    marks = [reversed(domain.marks) for domain in space.values()]
    for values in islice(product(*marks), CHECKED):
        _try(run, dict(zip(space, values, strict=True)))


def keys(model: type[Settings] = RunConfig, prefix: str = "") -> list[str]:
    """Every dotted key that a sweep can search."""
    searchable: list[str] = []
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        if key in FIXED:
            continue
        group = field.annotation
        if isinstance(group, type) and issubclass(group, Settings):
            searchable += keys(group, f"{key}.")
        else:
            searchable.append(key)
    return searchable


def in_words(space: Space) -> dict[str, str]:
    """The space as command-line text."""
    words = {}
    for key, domain in space.items():
        if isinstance(domain, Choice):
            words[key] = ",".join(json.dumps(value).strip('"') for value in domain.values)
        else:
            log = "log:" if domain.log else ""
            words[key] = f"{log}{domain.low:g}:{domain.high:g}"
    return words


def _checked(key: str, source: str) -> str:
    searchable = keys()
    if key in searchable:
        return key
    if key.startswith(FIXED):
        raise UserError(f"{source} {key}: is the same for all trials of a sweep")
    close = difflib.get_close_matches(key, searchable, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UserError(f"{source} {key}: no such setting{hint}")


def _annotation(key: str) -> Any:
    model: Any = RunConfig
    for part in key.split("."):
        model = model.model_fields[part].annotation
    return model


def _try(run: RunConfig, values: Mapping[str, Value]) -> None:
    try:
        run.with_values(values)
    except ValidationError as error:
        combination = ", ".join(f"{key} {value}" for key, value in values.items())
        raise UserError(f"the search space allows {combination}: {explain(error)}") from error


def _number(text: str, whole: bool) -> float:
    try:
        return int(text) if whole else float(text)
    except ValueError:
        numbers = "whole numbers" if whole else "numbers"
        raise ValueError(f"a range is LOW:HIGH of {numbers}") from None


def _scalar(text: str) -> Value:
    try:
        value: Value = json.loads(text)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text, text)
    if isinstance(value, list | dict):
        raise ValueError("a list holds numbers, words, true, false and null")
    return value
