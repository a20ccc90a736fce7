"""Help texts: switches name no type, because they take no value."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup


def _without_type(option: Any) -> Any:
    if option is not None:
        option.metavar = ""
    return option


class Command(TyperCommand):
    """A command whose `--help` is shown without a type."""

    def get_help_option(self, ctx: Any) -> Any:
        """The option `--help`."""
        return _without_type(super().get_help_option(ctx))


class Group(TyperGroup):
    """All commands together, likewise."""

    def get_help_option(self, ctx: Any) -> Any:
        """The option `--help`."""
        return _without_type(super().get_help_option(ctx))
