"""Turns a declarative `Policy` into an executable `Plan`."""

from __future__ import annotations

from varsearch.models.seams import Plan
from varsearch.policy import Policy
from varsearch.target import ModelSpec


def lower(policy: Policy, spec: ModelSpec) -> Plan:
    """The plan of `policy`; raises `PolicyError` if it does not fit `spec`."""
    policy.check(spec)
    return Plan.dense(spec.n_layers, len(spec.scales))
