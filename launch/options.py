"""Settings from the command line: dotted options to pydantic, --help from tyro."""

import difflib
import os
import re
from collections import deque
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError, create_model

from acontrol.errors import UserError, explain

Command = TypeVar("Command", bound=BaseModel)


def parse(
    command: type[Command],
    args: Sequence[str],
    *,
    prog: str,
    description: str | None = None,
    default: Command | None = None,
    positional: Mapping[str, str] | None = None,
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

    Raises:
        UserError: For an unknown option, or a value that the settings refuse.
    """
    positional = positional or {}
    if {"-h", "--help"} & {*args}:
        import tyro

        tyro.cli(
            marked(command, positional),
            args=["--help"],
            prog=prog,
            description=named_for(prog, description),
            default=default,
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
    raise UserError(f"{message} (see {prog} --help)")


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
            close = difflib.get_close_matches(name, [f"--{known}" for known in options], n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"{name}: no such option{hint}")
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


def _expanded(text: str) -> str:
    """A value with the home for its ~, which shells leave in --out=~/s and in NAME=~/s."""
    name, equals, path = text.rpartition("=") if "=~" in text else ("", "", text)
    return f"{name}{equals}{os.path.expanduser(path)}"


def _is_option(arg: str) -> bool:
    return re.match(r"-(?![\d.])", arg) is not None  # -1 and -.5 are values.


def marked(command: type[Command], positional: Mapping[str, str]) -> type[Command]:
    """The settings as tyro is to draw them, with what stands for positional fields."""
    import tyro

    fields: dict[str, Any] = {}
    for name, metavar in positional.items():
        field = command.model_fields[name]
        mark = (tyro.conf.Positional, tyro.conf.arg(metavar=metavar))
        fields[name] = (Annotated[field.annotation, *mark], field)
    return create_model(command.__name__, __base__=command, **fields) if fields else command


def named_for(prog: str, description: str | None) -> str:
    """A command's description, for the ``acontrol`` script where that runs it."""
    if not prog.startswith("acontrol "):
        return description or ""
    return re.sub(r"python -m (?:launch|tune)\.", "acontrol ", description or "")
