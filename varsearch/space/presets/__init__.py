"""Published systems as policies, by name, and the hand-made policies that a search starts from besides."""

from varsearch.space.presets.registry import PRESETS, presets
from varsearch.space.presets.seeds import seeds

__all__ = ["PRESETS", "presets", "seeds"]
