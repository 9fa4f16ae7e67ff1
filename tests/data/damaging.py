"""Ways to damage shards, their members and their index."""

import gzip
import hashlib
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from acontrol.data.index import INDEX_NAME, Member, Shard, ShardIndex

HURT = 1  # The damaged shard.
SAMPLE = 2  # The damaged sample in it.


def hurt_member(shard: Shard, kind: str = "png") -> Member:
    return next(member for member in shard.samples[SAMPLE].members if member.kind == kind)


def _flipped(place: Callable[[Member], int]) -> Callable[[bytes, Shard], bytes]:
    def damage(content: bytes, shard: Shard) -> bytes:
        offset = place(hurt_member(shard))
        return content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :]

    return damage


def _cut(place: Callable[[Member], int]) -> Callable[[bytes, Shard], bytes]:
    return lambda content, shard: content[: place(hurt_member(shard))]


def _header_replaced(content: bytes, shard: Shard, block: bytes) -> bytes:
    start = hurt_member(shard).offset - 512
    return content[:start] + block + content[start + 512 :]


def _as_link(content: bytes, shard: Shard) -> bytes:
    """A valid header of a link to /etc/passwd."""
    info = tarfile.TarInfo(hurt_member(shard).name)
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return _header_replaced(content, shard, info.tobuf(tarfile.GNU_FORMAT))


def _swapped(content: bytes, shard: Shard) -> bytes:
    """Two samples' contents in each other's place, as far as the shorter goes."""
    first, second = hurt_member(shard), shard.samples[0].members[2]
    size = min(first.size, second.size)
    hurt = bytearray(content)
    hurt[first.offset : first.offset + size] = content[second.offset : second.offset + size]
    hurt[second.offset : second.offset + size] = content[first.offset : first.offset + size]
    return bytes(hurt)


def _block_removed(content: bytes, shard: Shard) -> bytes:
    start = hurt_member(shard).offset
    return content[:start] + content[start + 512 :]


def _block_added(content: bytes, shard: Shard) -> bytes:
    start = hurt_member(shard).offset - 512
    return content[:start] + bytes(512) + content[start:]


# Each returns the damaged file's bytes; None for no file.
TAR: dict[str, Callable[[bytes, Shard], bytes | None]] = {
    "cut at a member's boundary": _cut(lambda member: member.offset - 512),
    "cut in a header": _cut(lambda member: member.offset - 300),
    "cut in a payload": _cut(lambda member: member.offset + member.size // 2),
    "cut at the tar's end": lambda content, shard: content[:-600],
    "name flipped": _flipped(lambda member: member.offset - 512 + 5),
    "size flipped": _flipped(lambda member: member.offset - 512 + 130),
    "checksum flipped": _flipped(lambda member: member.offset - 512 + 150),
    "header zeroed": lambda content, shard: _header_replaced(content, shard, bytes(512)),
    "header a link": _as_link,
    "payload flipped": _flipped(lambda member: member.offset + member.size // 2),
    "padding flipped": _flipped(lambda member: member.offset + member.size),
    "contents swapped": _swapped,
    "block removed": _block_removed,
    "block added": _block_added,
    "all zero": lambda content, shard: bytes(len(content)),
    "empty": lambda content, shard: b"",
    "compressed": lambda content, shard: gzip.compress(content),
    "more behind the end": lambda content, shard: content + b"more",
    "missing": lambda content, shard: None,
}


def png(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()


def _chunk(name: bytes, data: bytes) -> bytes:
    return (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    )


def bomb(side: int) -> bytes:
    """A PNG of a few hundred kB at most that claims to be side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    row = bytes(1 + (side + 7) // 8)
    data = zlib.compress(row * side, 9)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def text_bomb() -> bytes:
    """A PNG whose text unpacks to 100 MB."""
    plain = png(np.eye(4, dtype=np.uint8))
    text = _chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(100_000_000), 1))
    return plain[:33] + text + plain[33:]


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n"


def _jpeg(picture: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(picture)).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


def _levels(mask: bytes, low: int, high: int) -> bytes:
    pixels = np.asarray(Image.open(io.BytesIO(mask)))
    return png(np.where(pixels > 0, high, low).astype(np.uint8))


def _metadata(changes: dict[str, Any], without: str = "") -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        metadata = {**json.loads(content), **changes}
        metadata.pop(without, None)
        return json.dumps(metadata).encode()

    return change


# A member's kind, what its bytes become, and a word of the refusal.
MEMBERS: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "image cut": ("png", lambda old: old[: len(old) // 2], "truncated"),
    "image no picture": ("png", lambda old: b"no picture", "cannot identify"),
    "image empty": ("png", lambda old: b"", "cannot identify"),
    "image a JPEG": ("png", _jpeg, "cannot identify"),
    "image PostScript": ("png", lambda old: EPS, "cannot identify"),
    "image a bomb": ("png", lambda old: bomb(9_500), "decompression bomb"),
    "image with a text bomb": ("png", lambda old: text_bomb(), "too large"),
    "image a pickle": ("png", lambda old: b"\x80\x04K\x01.", "cannot identify"),
    "image of another size": ("png", lambda old: png(np.eye(9, dtype=np.uint8)), "(9, 9)"),
    "mask of another size": ("mask.png", lambda old: png(np.eye(9, dtype=bool)), "(9, 9)"),
    "mask cut": ("mask.png", lambda old: old[:60], "truncated"),
    "mask empty": ("mask.png", lambda old: _levels(old, 0, 0), "255 on the defect"),
    "mask grey": ("mask.png", lambda old: _levels(old, 0, 200), "255 on the defect"),
    "mask smooth": ("mask.png", lambda old: _levels(old, 9, 255), "255 on the defect"),
    "JSON cut": ("json", lambda old: old[:-5], "Unterminated"),
    "JSON no UTF-8": ("json", lambda old: b'{"caption": "\xff\xfe"}', "decode"),
    "JSON a list": ("json", lambda old: b"[]", "instance of SampleMetadata"),
    "JSON too deep": ("json", lambda old: b"[" * 99_999, "recursion"),
    "JSON without caption": (
        "json",
        _metadata({}, without="caption"),
        "caption: Field required",
    ),
    "JSON with a number": ("json", _metadata({"caption": 7}), "caption: Input should be"),
    "JSON with more": ("json", _metadata({"weight": 7}), "weight: Extra inputs"),
    "JSON of another": ("json", _metadata({"defect": "hole"}), "/hole"),
}


def rewritten(folder: Path, kind: str, change: Callable[[bytes], bytes]) -> tuple[int, Member]:
    """Replace a member, with matching tar and index: all checksums are right.

    Returns:
        The sample's number, and its member's new entry.
    """
    index = ShardIndex.model_validate_json((folder / INDEX_NAME).read_bytes())
    listing = json.loads(index.model_dump_json())
    entry = listing["shards"][HURT]
    tar = (folder / entry["name"]).read_bytes()
    hurt = hurt_member(index.shards[HURT], kind)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for sample in entry["samples"]:
            for member in sample["members"]:
                old = tar[member["offset"] : member["offset"] + member["size"]]
                new = change(old) if member["name"] == hurt.name else old
                info = tarfile.TarInfo(member["name"])
                info.size = len(new)
                member |= {
                    "offset": archive.offset + 512,
                    "size": len(new),
                    "sha256": hashlib.sha256(new).hexdigest(),
                }
                archive.addfile(info, io.BytesIO(new))
    (folder / entry["name"]).write_bytes(buffer.getvalue())
    entry["size"] = len(buffer.getvalue())
    entry["sha256"] = hashlib.sha256(buffer.getvalue()).hexdigest()
    (folder / INDEX_NAME).write_text(json.dumps(listing))
    changed = ShardIndex.model_validate(listing)
    number = sum(len(shard.samples) for shard in changed.shards[:HURT]) + SAMPLE
    return number, hurt_member(changed.shards[HURT], kind)


def _member(index: dict[str, Any], place: int = 0) -> dict[str, Any]:
    return index["shards"][HURT]["samples"][SAMPLE]["members"][place]


def _set(
    find: Callable[[dict[str, Any]], Any], **values: Any
) -> Callable[[dict[str, Any]], None]:
    return lambda index: find(index).update(values)


def _shard(index: dict[str, Any]) -> dict[str, Any]:
    return index["shards"][HURT]


def _sample(index: dict[str, Any]) -> dict[str, Any]:
    return _shard(index)["samples"][SAMPLE]


def _elsewhere(index: dict[str, Any], name: str) -> None:
    """A whole sample, consistently renamed."""
    sample = _sample(index)
    for member in sample["members"]:
        member["name"] = member["name"].replace(sample["key"], name)
    sample["key"] = name


def _twice(index: dict[str, Any]) -> None:
    """Two samples of one key, each with bytes of its own."""
    sample = _sample(index)
    keys = [entry["key"] for shard in index["shards"] for entry in shard["samples"]]
    prefix = f"{sample['category']}/{sample['defect']}/"
    _elsewhere(index, next(k for k in keys if k.startswith(prefix) and k != sample["key"]))


# What the index's JSON becomes, and a word of the refusal to open it.
INDEX: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "fewer samples than claimed": (lambda index: _shard(index)["samples"].pop(), "claims 18"),
    "a negative count": (_set(lambda index: index, num_samples=-1), "num_samples"),
    "an unknown field": (_set(lambda index: index, loader="pickle"), "loader: Extra"),
    "an unknown field in a member": (_set(_member, mode=7), "mode: Extra"),
    "another format": (_set(lambda index: index, format="x"), "acontrol-shards-1"),
    "another split": (_set(lambda index: index, split="val"), "split"),
    "no shards' list": (_set(lambda index: index, shards=None), "shards"),
    "an empty shard": (_set(_shard, samples=[]), "samples"),
    "a shard outside": (_set(_shard, name="../other.tar"), "pattern"),
    "an absolute shard": (_set(_shard, name="/etc/passwd.tar"), "pattern"),
    "a shard from a command": (_set(_shard, name="pipe:true.tar"), "pattern"),
    "a shard that is no tar": (_set(_shard, name="x.zip"), "pattern"),
    "a short sha256": (_set(_shard, sha256="ab"), "pattern"),
    "a member outside": (_set(_member, name="../../x.json"), "needs the members"),
    "an absolute member": (_set(_member, name="/etc/x.json"), "needs the members"),
    "a pickle": (_set(_member, name="wood/crack/000.pkl"), "pattern"),
    "torch's pickle": (_set(_member, name="wood/crack/000.pth"), "pattern"),
    "a packed pickle": (_set(_member, name="wood/crack/000.pkl.gz"), "pattern"),
    "a sample outside": (lambda index: _elsewhere(index, "wood/../../x"), "is not category"),
    "an absolute sample": (lambda index: _elsewhere(index, "/etc/x"), "is not category"),
    "a sample of another defect": (_set(_sample, defect="hole"), "is not category"),
    "a sample without mask": (lambda index: _sample(index)["members"].pop(1), "needs"),
    "a sample twice": (_twice, "is listed 2 times"),
    "a shard twice": (lambda index: index["shards"].append(_shard(index)), "is listed 2 times"),
    "members that overlap": (_set(_member, offset=512), "overlap"),
    "an offset between blocks": (_set(_member, offset=1025), "cannot be at offset 1025"),
    "an offset beyond the end": (_set(_member, offset=512 * 10**6), "cannot be at offset 512"),
    "a negative offset": (_set(_member, offset=-512), "greater than or equal to 0"),
    "a size beyond the end": (_set(_member, size=10**9), "with 1000000000 bytes"),
}
# Errors that only reading can find.
UNSEEN: dict[str, Callable[[dict[str, Any]], None]] = {
    "a member's sha256": _set(lambda index: _member(index, 2), sha256="0" * 64),
    "a shard's sha256": _set(_shard, sha256="0" * 64),
    "a member's size": lambda index: _member(index, 2).update(
        size=_member(index, 2)["size"] - 1
    ),
    "a shard's size": lambda index: _shard(index).update(size=_shard(index)["size"] + 512),
}
