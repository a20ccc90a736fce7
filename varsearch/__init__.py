"""Multi-objective search of compression policies for visual autoregressive image models.

Importing the package imports no torch; names are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from varsearch.accel import apply
    from varsearch.library import load_policy
    from varsearch.models import load
    from varsearch.policy import Policy
    from varsearch.policy_file import PolicyFile

    __version__: str

__all__ = ["Policy", "PolicyFile", "__version__", "apply", "load", "load_policy"]

_HOMES = {
    "Policy": "varsearch.policy",
    "PolicyFile": "varsearch.policy_file",
    "apply": "varsearch.accel",
    "load": "varsearch.models",
    "load_policy": "varsearch.library",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module 'varsearch' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def _version() -> str:
    # Importing this takes longer than all that the command needs before it understands Ctrl-C.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("varsearch")
    except PackageNotFoundError:  # a checkout on the path, not installed
        return "0+unknown"
