"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from varsearch.errors import OutputError


def write_atomically(path: Path, content: bytes | str) -> None:
    """Writes `content` beside `path` and renames it into place; on any failure `path` is as it was.

    Raises:
        OutputError: the folder cannot be created or written, or the disk is full.
    """
    data = content.encode() if isinstance(content, str) else content
    partial = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; the result gets the permissions any new file would have.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(partial, 0o666 & ~mask)
        os.replace(partial, path)
    except OSError as error:
        if partial:
            with contextlib.suppress(OSError):
                os.unlink(partial)
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from None
