"""The policy library: exported policies filed as model/target/name in a folder with an index. Torch-free."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from varsearch.errors import OutputError, PolicyError
from varsearch.files import write_atomically
from varsearch.policy import describe
from varsearch.policy_file import PolicyFile

INDEX = "index.json"
_ENTRIES = TypeAdapter(dict[str, dict[str, object]])
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=-]*")


def default_folder() -> Path:
    """`$VARSEARCH_LIBRARY`, or `varsearch/policies` in the user's data folder."""
    named = os.environ.get("VARSEARCH_LIBRARY")
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(named) if named else Path(data) / "varsearch" / "policies"


def add(file: PolicyFile, name: str, folder: Path | None = None) -> str:
    """Files a policy and returns its reference, `model/target/name`; an entry of the same reference is replaced."""
    folder = folder or default_folder()
    reference = f"{file.model.name}/{file.target.device}/{name}"
    path = _path(reference, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{INDEX}.lock", timeout=30):
            entries = {**index(folder), reference: _entry(file)}
            file.write(path)
            write_atomically(folder / INDEX, json.dumps(entries, indent=1) + "\n")
    except OSError as error:
        raise OutputError(f"cannot update the index of {folder}: {error.strerror or error}") from None
    return reference


def index(folder: Path | None = None) -> dict[str, dict[str, object]]:
    """Reference -> digest, model fingerprint, origin and main metrics of every filed policy."""
    path = (folder or default_folder()) / INDEX
    try:
        return _ENTRIES.validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise PolicyError(f"cannot read the library index {path}: {error.strerror}") from None
    except ValidationError as error:
        raise PolicyError(f"{path} is not a library index: {describe(error)}") from None


def load_policy(reference: str | Path, folder: Path | None = None) -> PolicyFile:
    """A policy by its path or by its reference in the library, e.g. "mnist/4090/knee".

    Raises:
        PolicyError: no such policy, or not a valid one.
    """
    folder = folder or default_folder()
    places = [Path(reference)]
    if _is_reference(str(reference)):
        places.append(_path(str(reference), folder))
    try:
        found = next((place for place in places if place.is_file()), None)
    except OSError as error:
        raise PolicyError(f"cannot read policy {str(reference)!r}: {error.strerror}") from None
    if found is None:
        known = ", ".join(sorted(index(folder))) or "none"
        raise PolicyError(f"no policy {str(reference)!r}: neither a file nor in the library {folder} (it has: {known})")
    return PolicyFile.read(found)


def _is_reference(text: str) -> bool:
    return len(text.split("/")) == 3 and all(_PART.fullmatch(part) for part in text.split("/"))


def _path(reference: str, folder: Path) -> Path:
    if not _is_reference(reference):
        raise PolicyError(
            f"{reference!r} is not a library reference: expected model/target/name of letters, digits and . _ - ="
        )
    return folder / f"{reference}.json"


def _entry(file: PolicyFile) -> dict[str, object]:
    return {
        "policy": file.policy.digest,
        "model": file.model.fingerprint,
        "target": str(file.target),
        "origin": file.origin.value,
        "created": file.provenance.created,
        "metrics": file.values,
    }
