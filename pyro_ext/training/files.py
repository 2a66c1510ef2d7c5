"""Files that are whole or not there, and say so if they are not what they should be."""

import hashlib
import io
import os
import re
import tempfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["DamagedFile", "plain", "read", "unreadable", "write"]

VERSION = 1
_MAGIC = b"pyro_ext "
_NESTS = (dict, Counter, OrderedDict, list, tuple)


class DamagedFile(ValueError):
    """A file that cannot be used; the message names what is wrong."""


def write(path: Path, kind: str, payload: Any) -> None:
    """Write a file at once: under another name, to the disk, and then renamed.

    Args:
        path: Where.
        kind: What it is, one word.
        payload: Tensors, numbers, strings and nests of them.
    """
    body = _body(payload)
    digest = hashlib.sha256(body).hexdigest()
    head = b"%s%s %d\n%d %s\n" % (_MAGIC, kind.encode(), VERSION, len(body), digest.encode())
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".writing-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(head + body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # so that the new name outlives a power cut
    finally:
        os.close(folder)


def read(path: Path, kind: str) -> Any:
    """Return what was written; no code in a file is run.

    Args:
        path: Where.
        kind: What it is, one word.

    Raises:
        DamagedFile: If the file is none of this kind and version, truncated or altered.
    """
    data = path.read_bytes()
    title, _, rest = data.partition(b"\n")
    told, _, body = rest.partition(b"\n")
    if not title.startswith(_MAGIC + kind.encode()):
        raise DamagedFile(f"{path}: expected a {kind} of px.fit; got a file of another kind.")
    version = title.rpartition(b" ")[2].decode(errors="replace")
    if version != str(VERSION):
        raise DamagedFile(
            f"{path}: expected a {kind} of version {VERSION}; got version {version}, which "
            "another version of pyro_ext reads."
        )
    size, _, digest = told.decode(errors="replace").partition(" ")
    if size != str(len(body)):
        raise DamagedFile(
            f"{path}: expected {size} bytes after the head; got {len(body)}: the file is "
            "truncated, or not only that."
        )
    if hashlib.sha256(body).hexdigest() != digest:
        raise DamagedFile(
            f"{path}: expected the checksum that it was saved with; got another: the file was "
            "altered."
        )
    try:
        return torch.load(io.BytesIO(body), weights_only=True)
    except Exception as error:
        raise DamagedFile(
            f"{path}: expected tensors and numbers alone; got something else, which was not run: "
            f"{_culprit(error)}."
        ) from error


def plain(payload: Any) -> Any:
    """Return a payload with Python's numbers for NumPy's, which no reader of weights takes.

    Args:
        payload: Anything.
    """
    if isinstance(payload, np.generic):
        return payload.item()
    if type(payload) not in _NESTS:
        return payload
    if isinstance(payload, dict):
        return type(payload)({plain(name): plain(value) for name, value in payload.items()})
    return type(payload)(map(plain, payload))


def unreadable(payload: Any) -> str | None:
    """Return what in a payload could be written and not be read; None if there is nothing.

    Args:
        payload: What is to be written.
    """
    try:
        torch.load(io.BytesIO(_body(payload)), weights_only=True)
    except Exception as error:  # some things cannot even be written
        return _culprit(error)
    return None


def _body(payload: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(plain(payload), buffer)
    return buffer.getvalue()


def _culprit(error: Exception) -> str:
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return found[1] if found else str(error).strip().splitlines()[0].rstrip(".")
