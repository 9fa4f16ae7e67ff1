"""Settings from the command line: dotted options to pydantic, --help from tyro."""

import difflib
import os
import re
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    NoReturn,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

from pydantic import BaseModel, ValidationError, create_model

from acontrol.errors import UserError, explain

Command = TypeVar("Command", bound=BaseModel)
ALL = "--help-all"
MORE = f"Below are the options that most runs need. {ALL} shows every setting."


def parse(
    command: type[Command],
    args: Sequence[str],
    *,
    prog: str,
    description: str | None = None,
    default: Command | None = None,
    positional: Mapping[str, str] | None = None,
    common: Collection[str] = (),
    required: Collection[str] = (),
) -> Command:
    """Read a command's settings, each an option with its dotted name.

    Args:
        command: The settings.
        args: --group.name VALUE, --group.name=VALUE, several values for a tuple, pairs for a
            dict, --group.flag and --group.no-flag; dashes and underscores are the same.
        prog: How the command was started.
        description: Shown by --help.
        default: Values of the options that are left out.
        positional: Fields that are given without a name, in this order, and what --help
            calls them.
        common: Dotted settings that --help shows, where --help-all shows all; by default all.
        required: Dotted settings without a default, though their type has one.

    Raises:
        UserError: For an unknown option, or a value that the settings refuse.
    """
    positional = positional or {}
    if {"-h", "--help", ALL} & {*args}:
        show_all = ALL in args or not common
        _show_help(
            marked(command, positional, None if show_all else common),
            prog,
            named_for(prog, description) + ("" if show_all else f"\n\n{MORE}"),
            default,
            required,
        )
    options = {
        name: option
        for name, option in _options(command).items()
        if option.path[0] not in positional
    }
    values = {} if default is None else default.model_dump()
    names = {option.path: f"--{name}" for name, option in options.items()}
    names |= {(field,): name for field, name in positional.items()}

    def name_of(path: Sequence[str]) -> str:
        """The option, also where an item of its value is wrong; a group as its fields."""
        parts = [tuple(path[:end]) for end in range(len(path), 0, -1)]
        return next((names[part] for part in parts if part in names), ".".join(path))

    try:
        _read(args, options, positional, values)
        return command.model_validate(values)
    except ValidationError as error:
        message = explain(error, name_of)
    except ValueError as error:
        message = str(error)
    raise UserError(f"{message} (see {prog} {ALL if common else '--help'})")


def _show_help(
    command: type[Command],
    prog: str,
    description: str,
    default: Command | None,
    required: Collection[str],
) -> NoReturn:
    """Print tyro's help and exit."""
    import tyro

    shown: Any = None
    if default is not None:
        shown = command.model_validate(default.model_dump())
        for setting in required:
            shown = _without(shown, setting.split("."), tyro.MISSING)
    tyro.cli(command, args=["--help"], prog=prog, description=description, default=shown)
    raise AssertionError("tyro has not exited")


def _without(settings: BaseModel, path: Sequence[str], missing: Any) -> BaseModel:
    """A copy with a setting that has no value yet; for help only, as it is not validated."""
    name, *rest = path
    value = getattr(settings, name)
    if value is None:
        value = missing
    elif rest:
        value = _without(value, rest, missing)
    return settings.model_copy(update={name: value})


class _Option(NamedTuple):
    """A setting on the command line.

    Attributes:
        path: Its groups and its name.
        types: Its type, or those of its union.
        flag: What it sets a boolean to, which takes no value.
    """

    path: tuple[str, ...]
    types: tuple[Any, ...]
    flag: bool | None = None

    @property
    def many(self) -> bool:
        """Whether it takes any number of values."""
        return bool({tuple, dict} & {get_origin(member) for member in self.types})

    def value(self, name: str, texts: Sequence[str]) -> Any:
        """What pydantic is given: it reads numbers itself, but neither None nor Literals."""
        if self.flag is not None:
            return self.flag
        if texts == ["None"] and type(None) in self.types:
            return None
        if dict in [get_origin(member) for member in self.types]:
            if len(texts) % 2:
                raise ValueError(
                    f"{name}: needs pairs of key and value, got {texts[-1]!r} alone"
                )
            return dict(zip(texts[::2], texts[1::2], strict=True))
        if self.many:
            return texts
        literals = [member for member in self.types if get_origin(member) is Literal]
        choices = {str(choice): choice for member in literals for choice in get_args(member)}
        return choices.get(texts[0], texts[0])


def _options(model: type[BaseModel], group: tuple[str, ...] = ()) -> dict[str, _Option]:
    """Every setting by its name on the command line; a flag also by its --no- name."""
    options: dict[str, _Option] = {}
    for name, field in model.model_fields.items():
        path = (*group, name)
        is_union = get_origin(field.annotation) in (Union, UnionType)
        types = get_args(field.annotation) if is_union else (field.annotation,)
        if isinstance(types[0], type) and issubclass(types[0], BaseModel):
            options |= _options(types[0], path)
        elif types[0] is bool and len(types) == 1:
            options[_dashed(*group, f"no_{name}")] = _Option(path, types, False)
            options[_dashed(*path)] = _Option(path, types, True)
        else:
            options[_dashed(*path)] = _Option(path, types)
    return options


def _dashed(*path: str) -> str:
    # A field whose name pydantic reserves ends in an underscore.
    return ".".join(path).rstrip("_").replace("_", "-")


def _read(
    args: Sequence[str],
    options: Mapping[str, _Option],
    positional: Mapping[str, str],
    values: dict[str, Any],
) -> None:
    """Put the arguments into a tree of values, for pydantic to check.

    Raises:
        ValueError: For an unknown option, or one with too few or too many values.
    """
    rest, fields = deque(args), deque(positional)
    while rest:
        arg = rest.popleft()
        if not _is_option(arg):
            if not fields:
                raise ValueError(f"unexpected argument {arg!r}")
            values[fields.popleft()] = _expanded(arg)
            continue
        name, equals, text = arg.partition("=")
        option = options.get(name.removeprefix("--").replace("_", "-"))
        if option is None:
            raise ValueError(f"{name}: no such option{_near(name, options)}")
        texts = [text] if equals else []
        if option.flag is None:
            room = len(rest) - len(fields) if option.many else 1 - len(texts)
            while room > 0 and rest and not _is_option(rest[0]):
                texts.append(rest.popleft())
                room -= 1
            if not texts and not option.many:
                raise ValueError(f"{name}: needs a value")
        elif texts:
            raise ValueError(f"{name}: takes no value, got {text!r}")
        group = values
        for part in option.path[:-1]:
            group = group.setdefault(part, {})
        group[option.path[-1]] = option.value(name, [_expanded(text) for text in texts])


def _near(name: str, options: Iterable[str]) -> str:
    """The options with this name in some group, else the one that is spelt most like it."""
    names = [f"--{known}" for known in options]
    last = name.removeprefix("--").replace("_", "-")
    close = [known for known in names if known.rpartition(".")[2] == last]
    close = close or difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _expanded(text: str) -> str:
    """A value with the home for its ~, which shells leave in --out=~/s and in NAME=~/s."""
    name, equals, path = text.rpartition("=") if "=~" in text else ("", "", text)
    return f"{name}{equals}{os.path.expanduser(path)}"


def _is_option(arg: str) -> bool:
    return re.match(r"-(?![\d.])", arg) is not None  # -1 and -.5 are values.


def marked(
    command: type[Command],
    positional: Mapping[str, str],
    common: Collection[str] | None = None,
) -> type[Command]:
    """The settings as tyro is to draw them, with what stands for positional fields.

    Args:
        command: The settings.
        positional: As for ``parse``.
        common: Dotted settings to show; None for all.
    """
    import tyro

    fields: dict[str, Any] = {}
    for name, field in command.model_fields.items():
        own = None if common is None else [path for path in common if _top(path) == name]
        if metavar := positional.get(name):
            mark = (tyro.conf.Positional, tyro.conf.arg(metavar=metavar))
            fields[name] = (Annotated[field.annotation, *mark], field)
        elif own == []:
            fields[name] = (Annotated[field.annotation, tyro.conf.Suppress], field)
        elif own and own != [name] and isinstance(field.annotation, type):
            inner = [path.partition(".")[2] for path in own]
            fields[name] = (marked(field.annotation, {}, inner), field)
    return create_model(command.__name__, __base__=command, **fields) if fields else command


def _top(path: str) -> str:
    return path.partition(".")[0]


def named_for(prog: str, description: str | None) -> str:
    """A command's description, for the ``acontrol`` script where that runs it."""
    if not prog.startswith("acontrol "):
        return description or ""
    return re.sub(r"python -m (?:launch|tune)\.", "acontrol ", description or "")
