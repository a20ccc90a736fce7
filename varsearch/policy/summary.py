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
    n_heads = max((n for layer in policy.layers for n in layer.kv.head_counts), default=0)
    last = len(policy.scales) - 1
    yield _mean("KV kept", [s for layer in policy.layers for s in layer.kv.cached(max(0, last - 1), n_heads)])
    yield _mean("KV attended", [s for layer in policy.layers for s in layer.kv.attended(last, n_heads)])
    windows = [radius for layer in policy.layers for row in layer.attention.window for radius in row]
    local = sum(radius is not None for radius in windows)
    yield f"windows {local}" if local else ""
    banded = sum(band is not None for layer in policy.layers for row in layer.attention.band for band in row)
    yield f"bands {banded}" if banded else ""
    chosen = (layer.attention.cross_scale for layer in policy.layers)
    yield _counts("keys", (f"{c.keys:.0%} from scale {c.decision_scale}" for c in chosen if c))
    yield _scales("tokens", ((k, f"{s.tokens.keep:.0%}") for k, s in enumerate(policy.scales) if s.tokens))
    yield _scales("guidance", ((k, s.guidance) for k, s in enumerate(policy.scales) if s.guidance != "full"))
    yield _scales("scales", ((k, "skipped") for k, s in enumerate(policy.scales) if not s.run))
    late = policy.refiner
    yield f"refiner {late.model} from scale {late.first_scale}" if late else ""
    yield _scales("images", ((d.after, f"{1 - d.actions[0].share:.0%} part") for d in policy.decisions))


def _mean(name: str, shares: list[float]) -> str:
    """Of the heads' shares; at the last scale and before it, where budgets differ between scales."""
    return f"{name} {sum(shares) / len(shares):.0%}" if any(share < 1 for share in shares) else ""


def _counts(name: str, values: Iterator[str]) -> str:
    counts = Counter(values)
    return f"{name} " + ", ".join(f"{value} x{counts[value]}" for value in sorted(counts)) if counts else ""


def _scales(name: str, settings: Iterator[tuple[int, str]]) -> str:
    places: dict[str, list[str]] = {}
    for k, setting in settings:
        places.setdefault(setting, []).append(str(k))
    return f"{name} " + ", ".join(f"{setting} at {','.join(ks)}" for setting, ks in places.items()) if places else ""
