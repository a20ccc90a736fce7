"""Finds policies. `varsearch.search(...)` runs a search; `api.py` puts its rooms together.

core       what all rooms speak of: settings, objectives, dominance
setup      from a request to a problem: bounds, initial design, side information
sensitivity  what each setting of a model loses and saves on its own
sampler    proposes the next policy
run        evaluates proposals: queue, workers, pruner, stopping
results    reads what a run found: front, selection, export
"""

import sys

from varsearch.callable_package import CallablePackage

sys.modules[__name__].__class__ = CallablePackage
