"""Lets a package be called like the function that it is named after.

`varsearch.search(...)` is the first call that users learn, and `varsearch.search` is the package of
its parts. Python binds a package to its name as soon as one of its modules is imported, so a
function of this name would be lost. A package of this class has both: `import
varsearch.search.core` works, and a call goes to the function `search` of `varsearch.search.api`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from inspect import Signature, signature
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A package `NAME` whose call is `NAME.api.NAME`; the module `api` is imported at first use.

    A package becomes callable by `sys.modules[__name__].__class__ = CallablePackage`.
    """

    @property
    def _function(self) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(import_module(f"{self.__name__}.api"), self.__name__.rpartition(".")[2])
        return function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function."""
        return self._function(*args, **kwargs)

    @property
    def __signature__(self) -> Signature:
        """The function's arguments, for notebooks and `inspect.signature`."""
        return signature(self._function)
