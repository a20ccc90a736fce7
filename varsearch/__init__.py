"""Multi-objective search of compression policies for visual autoregressive image models.

Importing the package imports no torch; names are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from varsearch.openmp import bound_spinning

if TYPE_CHECKING:
    from varsearch.accel import apply
    from varsearch.explain.api import compare, explain
    from varsearch.library import load_policy
    from varsearch.models import load
    from varsearch.policy import Policy
    from varsearch.policy_file import PolicyFile
    from varsearch.search.api import profile, read_front, search
    from varsearch.search.results.front import Front, FrontEntry
    from varsearch.search.setup.listener import Listener

    __version__: str

bound_spinning()  # before anything imports torch

__all__ = [
    "Front",
    "FrontEntry",
    "Listener",
    "Policy",
    "PolicyFile",
    "__version__",
    "apply",
    "compare",
    "explain",
    "load",
    "load_policy",
    "profile",
    "read_front",
    "search",
]

_HOMES = {
    "Front": "varsearch.search.results.front",
    "FrontEntry": "varsearch.search.results.front",
    "Listener": "varsearch.search.setup.listener",
    "Policy": "varsearch.policy",
    "PolicyFile": "varsearch.policy_file",
    "apply": "varsearch.accel",
    "compare": "varsearch.explain.api",
    "load": "varsearch.models",
    "load_policy": "varsearch.library",
    "profile": "varsearch.search.api",
    "read_front": "varsearch.search.api",
}

_CALLABLE_PACKAGES = {"explain", "search"}
"""Packages that are called like functions, see `callable_package`."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name in _CALLABLE_PACKAGES:
        return import_module(f"varsearch.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'varsearch' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__


def _version() -> str:
    # Importing this takes longer than all that the command needs before it understands Ctrl-C.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("varsearch")
    except PackageNotFoundError:  # a checkout on the path, not installed
        return "0+unknown"
