"""Request a defect image from a served model over HTTP, with the standard library alone.

Usage:
    mlflow models serve -m models:/NAME@champion --env-manager local --port 5001
    python examples/serve_client.py http://127.0.0.1:5001 \
        --reference crack.png --reference-mask crack_mask.png --reference-phrase "a crack" \
        --image good.png --mask where.png --prompt "a photo of tile with a crack" --out new.png
"""

import argparse
import base64
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def draw(
    address: str,
    rows: Sequence[Mapping[str, Any]],
    params: Mapping[str, Any] | None = None,
    timeout_s: float = 600,
) -> list[bytes]:
    """Request one image per row.

    Args:
        address: Of the server, such as http://127.0.0.1:5001.
        rows: For each image ``prompt``, ``reference_phrase``, ``seed``, and as bytes of a
            PNG or JPEG file ``reference_image``, ``reference_mask``, ``image`` and
            ``mask_image``; masks as PNG, since JPEG blurs their edges.
        params: Sampling parameters, such as ``{"num_inference_steps": 30}``.
        timeout_s: Timeout of the request.

    Returns:
        A PNG for each row.

    Raises:
        ValueError: If the server rejects the request, with its reason.
    """
    records = [
        {
            name: base64.b64encode(value).decode() if isinstance(value, bytes) else value
            for name, value in row.items()
        }
        for row in rows
    ]
    body = json.dumps({"dataframe_records": records, "params": dict(params or {})}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address.rstrip('/')}/invocations", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            predictions = json.load(answer)["predictions"]
    except urllib.error.HTTPError as error:
        raise ValueError(f"{error.code}: {_reason(error.read())}") from error
    return [base64.b64decode(row["image"]) for row in predictions]


def _reason(body: bytes) -> str:
    """The error message; MLflow's answer repeats the request before it."""
    try:
        return str(json.loads(body)["message"]).rpartition("\nError: ")[2]
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")[:500]


def main() -> None:
    """Read the files, send the request, write the image."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("address", help="of the server, such as http://127.0.0.1:5001")
    for name, words in (
        ("reference", "an image with the defect, PNG or JPEG"),
        ("reference-mask", "PNG, white where that defect is"),
        ("image", "a good image, PNG or JPEG"),
        ("mask", "PNG, white where the new defect goes"),
        ("out", "PNG to write"),
    ):
        parser.add_argument(f"--{name}", type=Path, required=True, help=words)
    parser.add_argument("--reference-phrase", required=True, help='the defect, as "a crack"')
    parser.add_argument("--prompt", required=True, help="the new image in words")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    row = {
        "prompt": options.prompt,
        "reference_phrase": options.reference_phrase,
        "reference_image": options.reference.read_bytes(),
        "reference_mask": options.reference_mask.read_bytes(),
        "image": options.image.read_bytes(),
        "mask_image": options.mask.read_bytes(),
        "seed": options.seed,
    }
    try:
        (image,) = draw(options.address, [row], {"num_inference_steps": options.steps})
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    options.out.write_bytes(image)
    print(f"Image: {options.out}")


if __name__ == "__main__":
    main()
