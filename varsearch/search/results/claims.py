"""What a front may claim, in words: whether its numbers are confirmed, and how much better they looked before."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING, Any

from varsearch.formatting import interval
from varsearch.search.core.settings import RunSettings

if TYPE_CHECKING:
    from varsearch.search.results.front import Front, FrontEntry

AGAIN = "the same command again confirms, without --no-confirm"
NAMES = {"delta_fid": "ΔFID", "speedup": "speed-up"}


def headline(front: Front) -> str:
    """How many policies are on the front, and on what grounds."""
    n, quality, speed = len(front.entries), front.quality, front.protocols.speed
    if front.exact:
        return f"{n} on the front"
    if not front.confirmed:
        return f"{n} candidates, NOT confirmed ({AGAIN})"
    grounds = [f"on {quality.n_images} fresh images"] if quality else []
    grounds += [f"in {speed.repeats} fresh timed rounds"] if speed.repeats else []
    return f"{n} confirmed {' and '.join(grounds)}"


def shortfall(front: Front) -> str:
    """What is still to be confirmed beside a confirmed front; empty if nothing is."""
    if not front.confirmed or not front.unconfirmed:
        return ""
    return f"finalists without confirmed numbers, which are left out here: {front.unconfirmed}; {AGAIN}"


def regression_to_the_mean(front: Front) -> str:
    """How the numbers of the search's best policies changed on fresh noise; empty where nothing is confirmed."""
    found = front.optimism
    if found is None or not found.changes:
        return ""
    changed = " and ".join(f"{NAMES[m.metric]} changed by {interval(m)}" for m in found.changes)
    whose = f"on average over {found.trials} policies of its front"
    message = f"regression to the mean: from the search to fresh noise, {changed} {whose}"
    # Of a part of the finalists the hypervolume is smaller whatever their numbers are.
    if found.claimed is None or front.hypervolume is None or front.unconfirmed:
        return message
    message += f"; hypervolume {found.claimed:.3f} was claimed by the finalists"
    return f"{message}, {front.hypervolume:.3f} is confirmed"


def not_drawn(settings: RunSettings, drawn: Container[str]) -> str:
    """The objectives that a picture has no axis for; empty if there are none.

    Args:
        settings: of the run.
        drawn: metrics that order policies as an axis of the picture does.
    """
    missing = [name for name in settings.objectives if name not in drawn]
    if not missing:
        return ""
    return (
        f"{len(settings.objectives)} objectives, not drawn: {', '.join(missing)}; "
        "a policy may be on the front because of these"
    )


def confirmation_summary(front: Front) -> dict[str, Any]:
    """The same for the attributes of an Optuna study, whose finished trials keep the numbers of the search."""
    members = [f"trial {e.number} ({e.origin}): {_values(front, e)}" for e in front.entries]
    return {
        "front": headline(front),
        "hypervolume": front.hypervolume,
        "policies on the front": members,
        "regression to the mean": regression_to_the_mean(front),
    }


def _values(front: Front, entry: FrontEntry) -> str:
    return ", ".join(f"{metric} {entry.value(metric):.6g}" for metric in front.settings.objectives)
