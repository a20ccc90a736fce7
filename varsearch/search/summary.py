"""A policy in one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from varsearch.policy import LINEARS, Policy


def summarize(policy: Policy) -> str:
    """What a policy makes cheaper, such as "weights 8-bit x12 | guidance off from scale 3"; "dense" if nothing."""
    return " | ".join(part for part in _parts(policy) if part) or "dense"


def _parts(policy: Policy) -> Iterator[str]:
    linears = [getattr(layer.weights, name) for layer in policy.layers for name in LINEARS]
    yield _counts("weights", (f"{q.bits}-bit" for q in linears if q))
    yield _counts("activations", (f"{q.activation_bits}-bit" for q in linears if q and q.activation_bits))
    yield _counts("KV", (f"{layer.kv.bits}-bit" for layer in policy.layers if layer.kv.bits))
    heads = [share for layer in policy.layers for share in layer.kv.keep]
    if heads:
        # Layers without budgets keep everything; all layers have as many heads as those with budgets.
        per_layer = max(len(layer.kv.keep) for layer in policy.layers)
        full = sum(not layer.kv.keep for layer in policy.layers) * per_layer
        yield f"KV kept {(sum(heads) + full) / (len(heads) + full):.0%}"
    windows = [radius for layer in policy.layers for row in layer.attention.window for radius in row]
    local = sum(radius is not None for radius in windows)
    yield f"windows {local}" if local else ""
    yield _scales("tokens", ((k, f"{s.tokens.keep:.0%}") for k, s in enumerate(policy.scales) if s.tokens))
    yield _scales("guidance", ((k, s.guidance) for k, s in enumerate(policy.scales) if s.guidance != "full"))
    yield _scales("scales", ((k, "skipped") for k, s in enumerate(policy.scales) if not s.run))
    yield _scales("images", ((d.after, f"{1 - d.actions[0].share:.0%} part") for d in policy.decisions))


def _counts(name: str, values: Iterator[str]) -> str:
    counts = Counter(values)
    return f"{name} " + ", ".join(f"{value} x{counts[value]}" for value in sorted(counts)) if counts else ""


def _scales(name: str, settings: Iterator[tuple[int, str]]) -> str:
    places: dict[str, list[str]] = {}
    for k, setting in settings:
        places.setdefault(setting, []).append(str(k))
    return f"{name} " + ", ".join(f"{setting} at {','.join(ks)}" for setting, ks in places.items()) if places else ""
