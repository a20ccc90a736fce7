"""Policies that a search starts from."""

from varsearch.space.presets.seeds import seeds

__all__ = ["seeds"]
