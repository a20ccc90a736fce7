"""Old names of `varsearch.search.sampler.base`, until all rooms use the new ones."""

from __future__ import annotations

from varsearch.search.sampler.base import CostFunction as Costs
from varsearch.search.sampler.base import MakeCostFunction as MakeCosts
from varsearch.search.sampler.base import SideInformation as Guide

__all__ = ["Costs", "Guide", "MakeCosts"]
