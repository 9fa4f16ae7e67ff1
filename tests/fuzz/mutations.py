"""Damaged and malicious input for readers: bytes, JSON and images, mutated from good ones.

    @short  # or @long, with @pytest.mark.slow
    @given(mutated_bytes(GOOD))
    def test_...(content): read_or_refuse(lambda: read(content))

The examples are the same in every run, so that a failure is a failure of the code.
"""

import contextlib
import copy
import io
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from PIL import Image

from acontrol.errors import UserError

T = TypeVar("T")
_FIXED: dict[str, Any] = {
    **{"derandomize": True, "database": None, "deadline": None},
    "suppress_health_check": [*HealthCheck],
}
_DEEP = {"I;16": "u2", "I": "i4", "F": "f4"}
short = settings(max_examples=12, **_FIXED)
long = settings(max_examples=400, **_FIXED)

# What breaks readers: of other types, huge, not finite, of other scripts, out of folders.
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**31, 2**63, 2**70, -(2**63), 0.5, -1e-300, 1e300),
    *(
        float("nan"),
        float("inf"),
        "",
        " ",
        "x" * 5000,
        "\0",
        "\n",
        "\u00e9",
        "e\u0301",
        "\U0001f600",
    ),
    *(
        "../x.png",
        "/etc/passwd",
        "C:\\x.png",
        ".",
        "good",
        "255",
        [],
        [[]],
        {},
        [None],
        [1e9] * 6,
    ),
)
ODD_BYTES = (b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"}", b'"', b"9" * 40, b"\n", b"NaN")


def mutated_bytes(content: bytes) -> st.SearchStrategy[bytes]:
    """Anything, or good content with a few bytes changed, left out, put in or repeated."""
    place = st.integers(0, len(content))
    edit = st.tuples(
        place, st.integers(0, 64), st.sampled_from(ODD_BYTES) | st.binary(max_size=8)
    )

    def applied(edits: list[tuple[int, int, bytes]]) -> bytes:
        result = content
        for start, length, new in edits:
            result = result[:start] + new + result[start + length :]
        return result

    cut = place.map(lambda end: content[:end])
    return st.lists(edit, min_size=1, max_size=4).map(applied) | cut | st.binary(max_size=200)


def mutated_json(value: Any) -> st.SearchStrategy[Any]:
    """Good JSON in which a few values are replaced, left out or repeated."""
    paths = [path for path in _paths(value) if path]
    odd = st.sampled_from(ODD_VALUES) | st.integers() | st.text(max_size=8)
    edit = st.tuples(st.sampled_from(paths), st.sampled_from(("set", "drop", "twice")), odd)

    def applied(edits: list[tuple[tuple[Any, ...], str, Any]]) -> Any:
        result = copy.deepcopy(value)
        for path, how, new in edits:
            with contextlib.suppress(LookupError, TypeError):  # An earlier edit took it.
                parent = result
                for key in path[:-1]:
                    parent = parent[key]
                if how == "set":
                    parent[path[-1]] = new
                elif how == "drop":
                    del parent[path[-1]]
                elif isinstance(parent, list):
                    parent.insert(path[-1], copy.deepcopy(parent[path[-1]]))
        return result

    return st.lists(edit, min_size=1, max_size=3).map(applied)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = [*value.items()]
    elif isinstance(value, list):
        items = [*enumerate(value)]
    return [path, *(inner for key, item in items for inner in _paths(item, (*path, key)))]


def images(max_side: int = 24) -> st.SearchStrategy[bytes]:
    """Whole image files of every mode that PNG and TIFF have, small, of any levels."""

    def encoded(mode: str, width: int, height: int, levels: int, seed: int) -> bytes:
        pixels = np.random.default_rng(seed).integers(0, levels, (height, width, 3), np.uint8)
        image = Image.fromarray(pixels)
        if mode in _DEEP:
            image = Image.fromarray(pixels[:, :, 0].astype(_DEEP[mode]))
        elif mode != "RGB":
            image = image.convert(mode)
        buffer = io.BytesIO()
        image.save(buffer, "TIFF" if mode in ("I", "F", "CMYK") else "PNG")
        return buffer.getvalue()

    return st.builds(
        encoded,
        st.sampled_from(("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I", "F", "CMYK")),
        st.integers(1, max_side),
        st.integers(1, max_side),
        st.sampled_from((1, 2, 4, 256)),
        st.integers(0, 9),
    )


def read_or_refuse(read: Callable[[], T]) -> T | None:
    """The result of a reader, or None if it refuses the input in one line.

    Anything but a UserError goes on, and fails the test.
    """
    try:
        return read()
    except UserError as error:
        assert str(error).strip() and "\n" not in str(error), error
        return None
