"""What later scales see of a layer's keys and values."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator

from varsearch.policy.grid import Share
from varsearch.target import Frozen


def _keep_all_is_empty(keep: tuple[float, ...]) -> tuple[float, ...]:
    return () if all(share == 1 for share in keep) else keep


class KVCompression(Frozen):
    """What later scales see of a layer's keys and values.

    `keep` holds, per head, the share of all earlier tokens that stays in the cache (an empty tuple keeps all, 0
    leaves a head with its own scale only); `bits` is their storage precision.
    """

    keep: Annotated[tuple[Share, ...], AfterValidator(_keep_all_is_empty)] = ()
    bits: Literal[8, 4] | None = None
