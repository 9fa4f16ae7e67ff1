"""The words of a labelled image: a phrase for its defect, and a caption for the whole image.

The phrase completes T_a, the text with the reference image (`config.CsmConfig.template`); the
caption is T_t. Without the user's own words both come from the folder names: "broken large" and
"a photo of bottle with broken large".

The user's own words are a caption file per image, one JSON file of captions, and
`prompt/phrases.json` in a category. A malformed file is an error; blank words are ignored.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acontrol.errors import UserError
from acontrol.messages import counted

A_DEFECT = "a defect"
SEVERAL_DEFECTS = "several defects"

# Words that only mean "defective"; "not" is there for "not_ok".
_UNINFORMATIVE = re.compile(
    r"(abnormal(ity)?|anomal(y|ies|ous)|bad|class|defect(s|ive)?|error|fail|failed|failure|"
    r"fault(s|y)?|flaw(s|ed)?|kind|ko|misc|ng|nok|not|ok|others?|reject(ed)?|type|unknown)?"
    r"\d*"
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SHAPE = (
    '{"<category>": {"<defect>": "sentence", or ["one sentence per image", ...], '
    'or {"<id>": "sentence"}}}'
)

_Sentences = str | list[str] | dict[str, str]


def phrase(defect: str) -> str:
    """The name of a defect folder as words.

    Args:
        defect: The folder's name, such as "broken_large" or "bentLead".

    Returns:
        The words in lower case, such as "broken large"; "several defects" for "combined" and
        "a defect" for an uninformative name, such as "bad", "defect_01" or "3".
    """
    words = _readable(defect).split()
    informative = [word for word in words if not _UNINFORMATIVE.fullmatch(word)]
    if not informative:
        return A_DEFECT
    return SEVERAL_DEFECTS if informative == ["combined"] else " ".join(words)


def target_text(category: str, phrase: str) -> str:
    """The default caption of an image."""
    return f"a photo of {_readable(category) or category} with {phrase}"


def wording_note(words: Iterable[tuple[str, str, str]]) -> str | None:
    """A note on defects whose words are no more than their folder's name.

    Args:
        words: Defect, phrase and caption of images.
    """
    plain = {
        defect: caption
        for defect, own, caption in words
        if own == phrase(defect)
        and own not in (A_DEFECT, SEVERAL_DEFECTS)
        and caption.endswith(f" with {own}")
    }
    if not plain:
        return None
    defect, caption = next(iter(plain.items()))
    example = json.dumps({defect: "..."})
    return (
        f"{counted(len(plain), 'defect has', 'defects have')} only the folder's name as words, "
        f"as in {caption!r}; the text encoder was trained on English: better words, such as "
        f"'an uneven surface', go into CATEGORY/prompt/phrases.json, as {example}"
    )


@dataclass(frozen=True)
class Captions:
    """Captions from one JSON file.

    Attributes:
        path: The file, for messages.
        table: {category: {defect: "sentence" | ["sentence", ...] | {id: "sentence"}}}.
    """

    path: Path
    table: Mapping[str, Mapping[str, _Sentences]]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Captions":
        """Read and check the file.

        Raises:
            UserError: If it is missing, not JSON or has another structure.
        """
        file = Path(path).expanduser()
        table = _objects(file, "", _parse(file), _SHAPE)
        for category, defects in table.items():
            for defect, value in _objects(file, category, defects, _SHAPE).items():
                place = f"{category}: {defect}"
                if isinstance(value, list):
                    for number, sentence in enumerate(value):
                        _text(file, f"{place}[{number}]", sentence)
                elif isinstance(value, dict):
                    for name, sentence in value.items():
                        _text(file, f"{place}: {name}", sentence)
                else:
                    _text(file, place, value, "a sentence, a list or an object of sentences")
        return cls(file, table)

    def sentences(self, category: str, defect: str, ids: Sequence[str]) -> dict[str, str]:
        """The captions of one defect.

        Args:
            category: The category.
            defect: The defect folder's name.
            ids: The ids of all its images, in any split; a list follows their sorted order.

        Returns:
            The sentence of each id that has one, stripped.

        Raises:
            UserError: If a list's length differs from the number of images.
        """
        value = self.table.get(category, {}).get(defect, {})
        if isinstance(value, str):
            value = dict.fromkeys(ids, value)
        elif isinstance(value, list):
            if len(value) != len(ids):
                raise UserError(
                    f"{self.path}: {category}: {defect}: {counted(len(value), 'caption')} for "
                    f"{counted(len(ids), 'image')}; give one for each image, in the "
                    "order of their sorted names"
                )
            value = dict(zip(sorted(ids), value, strict=True))
        return {name: value[name].strip() for name in ids if value.get(name, "").strip()}


def load_phrases(path: Path) -> dict[str, str]:
    """Read `prompt/phrases.json` of a category.

    Returns:
        The phrase of each "<defect>/<id>" or "<defect>"; empty if there is no file.

    Raises:
        UserError: If the file is not a JSON object of texts.
    """
    if not os.path.lexists(path):
        return {}
    table = _objects(path, "", _parse(path), '{"<defect>/<id>" or "<defect>": "phrase"}')
    phrases = {key: _text(path, key, value).strip() for key, value in table.items()}
    return {key: value for key, value in phrases.items() if value}


def read_caption(path: Path) -> str:
    """The caption in a text file, stripped; "" if there is no file.

    Raises:
        UserError: If the file cannot be read as UTF-8.
    """
    return _read(path).strip() if os.path.lexists(path) else ""


def _readable(name: str) -> str:
    return " ".join(re.split(r"[\s_.\-]+", _CAMEL.sub(" ", name))).strip().lower()


def _read(path: Path) -> str:
    try:
        # Editors on Windows write a byte order mark.
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); put the file there, or name another"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text; save it as UTF-8") from error


def _parse(path: Path) -> Any:
    try:
        return json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}: line {error.lineno}, column {error.colno}: not valid JSON "
            f"({error.msg}); correct it there"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); correct it") from error


def _objects(path: Path, place: str, value: Any, shape: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        prefix = f"{path}: {place}" if place else f"{path}"
        raise UserError(f"{prefix}: need an object, got {_show(value)}; write {shape}")
    return value


def _text(path: Path, place: str, value: Any, need: str = "a text in quotes") -> str:
    if not isinstance(value, str):
        raise UserError(f"{path}: {place}: got {_show(value)}; write {need}")
    return value


def _show(value: Any) -> str:
    """A JSON value, shortened."""
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
