"""The form of what commands print: a count with its noun, and a note."""

import sys


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A count with its noun, as "1 image" and "2 images".

    Args:
        count: How many.
        noun: The singular, with a verb if one follows, as "image is".
        plural: The plural; by default the singular with an s.
    """
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"


def print_note(text: str) -> None:
    """Print what a user should know and need not act on, on standard error."""
    print(f"note: {text}", file=sys.stderr, flush=True)
