"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from varsearch.errors import OutputError


def write_atomically(path: Path, content: bytes | str) -> None:
    """Writes `content` beside `path` and renames it into place; on any failure `path` is as it was.

    A link stays a link: the file that it points to is replaced.

    Raises:
        OutputError: the folder cannot be created or written, the disk is full, or `path` is no regular file.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        _refuse_special(path)
        _replace(Path(os.path.realpath(path)), data)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from None


def _refuse_special(path: Path) -> None:
    """Renaming over a device such as /dev/null would destroy it."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(path.stat().st_mode):
            raise OutputError(f"cannot write {path}: it exists and is no regular file")


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; the result gets the permissions any new file would have.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(partial, 0o666 & ~mask)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise
