"""The form of messages, over all of the package's texts."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from acontrol.errors import UserError, explain
from acontrol.messages import counted, print_note
from acontrol.presets import preset
from launch.cli import COMMANDS

ROOT = Path(__file__).parents[1]
ALWAYS_SEVERAL = {
    *("MAX_ROWS", "_FEW", "before", "command.steps"),
    *("workers", "len(categories)", "len(scores)"),  # Over a limit of one or more.
}


@cache
def trees() -> list[tuple[str, ast.Module]]:
    """Every file of the packages, parsed."""
    return [
        (str(file.relative_to(ROOT)), ast.parse(file.read_text()))
        for package in ("acontrol", "launch", "tune")
        for file in (ROOT / package).rglob("*.py")
    ]


def texts() -> Iterator[tuple[str, str]]:
    """Place and text of every string but docstrings, module names and how commands start."""
    modules = {module for module, _ in COMMANDS.values()}
    for file, tree in trees():
        left_out = {
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr)
            or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PROG")
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node not in left_out:
                # --help rewrites its usage lines for the script (`options.named_for`).
                text = re.sub(r"(?m)^    python -m .*$", "", str(node.value))
                if text not in modules:
                    yield f"{file}:{node.lineno}", text


def test_messages_name_commands_as_the_readme_does() -> None:
    """`acontrol shard`, which can be pasted, and not the module `launch.shard`."""
    module = re.compile(rf"\b(?:launch|tune)\.(?:{'|'.join(COMMANDS)})\b")
    assert [place for place, text in texts() if module.search(text)] == []


def test_every_note_is_printed_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    print_note("a mask is large")
    assert capsys.readouterr() == ("", "note: a mask is large\n")
    own = [place for place, text in texts() if re.match(r"note: ", text, re.I)]
    assert [place.partition(":")[0] for place in own] == ["acontrol/messages.py"]


def test_a_count_agrees_with_its_noun_and_verb() -> None:
    assert [counted(n, "image") for n in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert counted(1, "box is", "boxes are") == "1 box is"
    assert counted(3, "box is", "boxes are") == "3 boxes are"


def test_no_count_stands_before_a_fixed_plural() -> None:
    """A number in braces before a plural is `counted`, or is 2 or more."""
    plural = re.compile(
        r"^ (?:images|defects|samples|shards|masks|trainings|trials|steps|seeds|sources|"
        r"workers|captions|phrases|pieces|adapters|rows|categories)\b"
    )
    offenders = [
        f"{file}: {ast.unparse(value.value)}{text.value}"
        for file, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for value, text in zip(node.values, node.values[1:], strict=False)
        if isinstance(value, ast.FormattedValue)
        and isinstance(text, ast.Constant)
        and plural.match(str(text.value))
        and not value.format_spec
        and ast.unparse(value.value) not in ALWAYS_SEVERAL
    ]
    assert offenders == []


def test_a_bad_value_is_shortened() -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError) as caught:
        preset("tiny").model_validate({"output": ["name"] * 500})
    assert len(explain(caught.value)) < 160


def test_a_line_break_within_a_message_is_shown_escaped() -> None:
    assert str(UserError("a\nb.png: is no image")) == "a\\nb.png: is no image"
    assert str(UserError("a: is none")) == "a: is none"
