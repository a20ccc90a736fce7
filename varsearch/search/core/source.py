"""Where a trial comes from."""

from __future__ import annotations

SEED, PRESET, WARM, KNOWN = "seed:", "preset:", "warm:", "known:"
"""How the origins of hand-made and of published policies begin, of those that a profile suggests, and of those whose
quality another run evaluated."""

RIVAL = "rival"
"""Origin of what was proposed to dominate a published system."""

DENSE = f"{SEED}dense"
"""Origin of the trial that all others are compared with."""
