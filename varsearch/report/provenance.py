"""Where the numbers of a report come from, and the command that makes them again."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal

import varsearch
from varsearch.db import RunRecord, State, TrialRecord
from varsearch.measurement import QualityProtocol
from varsearch.search.core.protocols import confirming
from varsearch.search.core.settings import RunSettings, default_objectives
from varsearch.search.core.source import SourceKind, kind_of
from varsearch.search.results.claims import headline
from varsearch.search.results.front import Front
from varsearch.target import label_of

Facts = list[tuple[str, str]]
NOTES = {
    ("quality", "torch"): "torch",
    ("quality", "torchmetrics"): "torchmetrics",
    ("quality", "device"): "quality evaluated on",
    ("quality", "threads"): "CPU threads",
    ("speed", "device"): "latency and memory of",
    ("speed", "backend"): "backend of quantized linears",
}
"""What evaluators note about where they ran, and how it is called here; hashes of samples are left out."""


def provenance(
    run: RunRecord, front: Front, trials: Sequence[TrialRecord], confirmed: Sequence[TrialRecord], database: str
) -> list[tuple[str, Facts]]:
    """Groups of facts: the run, model and target, the protocols, and versions and machines.

    `trials` have the evidence of the search, `confirmed` that of the confirmation.
    """
    settings = RunSettings.parse(run.settings)
    speed, quality = settings.speed, settings.quality
    groups = [
        ("Run", _run(run, settings, trials, database)),
        (
            "Model and target",
            [
                ("model", settings.model),
                ("weights (sha256)", settings.fingerprint),
                ("device", label_of(settings.target.device)),
                ("number format", settings.target.dtype),
                ("batch", str(settings.target.batch_size)),
                ("latency and memory", settings.origin.value),
                ("machine", speed.machine),
                ("kernels", speed.backend),
                ("timed rounds", str(speed.repeats) if speed.repeats else "none: predicted by the cost model"),
                ("speed protocol (sha256)", speed.digest),
            ],
        ),
        ("Quality protocol", _quality(quality) if quality else [("quality", "not evaluated")]),
        ("Confirmation", [] if front.exact else _confirmation(front)),
        ("Versions and machines", [("varsearch", varsearch.__version__), *_environment([*trials, *confirmed])]),
    ]
    return [(title, facts) for title, facts in groups if facts]


def _quality(quality: QualityProtocol) -> Facts:
    return [
        ("features", quality.extractor),
        ("reference statistics (sha256)", quality.reference),
        ("images per policy", str(quality.n_images)),
        ("held-out images for likelihood", str(quality.nll_images)),
        ("noise seed", str(quality.seed)),
        ("guidance, top-k, top-p", f"{quality.guidance:g}, {quality.top_k}, {quality.top_p:g}"),
        ("quality protocol (sha256)", quality.digest),
    ]


def _confirmation(front: Front) -> Facts:
    """What differs from the search when finalists are confirmed, and how far that is."""
    quality, speed = confirming(front.settings)
    facts = [("the front", headline(front)), ("finalists without confirmed numbers", str(front.unconfirmed))]
    if quality:
        facts += [("images per policy", str(quality.n_images)), ("noise seed", str(quality.seed))]
        facts += [("quality protocol (sha256)", quality.digest)]
    if speed != front.settings.speed:
        facts += [("timed rounds", str(speed.repeats)), ("speed protocol (sha256)", speed.digest)]
    return facts


def _run(run: RunRecord, settings: RunSettings, trials: Sequence[TrialRecord], database: str) -> Facts:
    done = [t for t in trials if t.state is State.COMPLETE]
    failed, stopped = (sum(t.state is state for t in trials) for state in (State.FAIL, State.STOPPED))
    reused = sum(not t.attempts for t in done)
    return [
        ("name", run.name),
        ("status", run.status),
        ("started", f"{run.created:%Y-%m-%d %H:%M} UTC" if run.created else "unknown"),
        ("last change", f"{run.updated:%Y-%m-%d %H:%M} UTC" if run.updated else "unknown"),
        (
            "trials",
            f"{len(done)} with numbers ({reused} of them known already), {stopped} stopped early, {failed} failed",
        ),
        ("objectives", ", ".join(settings.objectives)),
        ("bounds", ", ".join(f"{metric} {limit:.4g}" for metric, limit in settings.bounds.items()) or "none"),
        ("sampler seed", str(settings.seed)),
        ("search space (sha256)", settings.space),
        ("settings (sha256)", settings.digest),
        ("database", database),
    ]


def _environment(trials: Sequence[TrialRecord]) -> Facts:
    """All values of each note: a run may have been continued on another machine."""
    seen: dict[str, list[str]] = {}
    for evidence in (e for t in trials for e in (t.quality, t.speed) if e):
        for (kind, note), name in NOTES.items():
            found = evidence.environment.get(note) if evidence.kind == kind else None
            if found is not None and found not in seen.setdefault(name, []):
                seen[name].append(found)
    return [(name, "; ".join(values)) for name, values in seen.items()]


def command(run: RunRecord, trials: Sequence[TrialRecord]) -> str:
    """The `varsearch run` command with these settings.

    Files of other features or statistics, whether the run went without a profile, and whether more warm starts were
    asked for than there were, are not known here. It makes the same search where as much is known as then: other runs'
    policies are starts too, see `knowledge`.
    """
    s = RunSettings.parse(run.settings)
    budget = math.ceil(sum(t.cost for t in trials) - 1e-9)
    words = ["varsearch", "run", "--model", s.model, "--target", s.target.device, "--budget", str(max(1, budget))]
    words += ["--batch-size", str(s.target.batch_size), "--dtype", s.target.dtype]
    words += ["--attention", s.speed.attention] if s.speed.attention != "sdpa" else []
    words += ["--images", str(s.quality.n_images)] if s.quality else []
    words += ["--seed", str(s.seed)]
    warm = sum(kind_of(t.origin) is SourceKind.WARM for t in trials)
    words += ["--warm-starts", str(warm)] if warm else []
    words += ["--rungs"] if any(t.state is State.STOPPED for t in trials) else []
    if s.objectives != default_objectives(s.origin):
        words += ["--objectives", ",".join(s.objectives)]
    return shlex.join([*words, *_bounds(s.bounds.items())])


def _bounds(bounds: Iterable[tuple[str, float]]) -> list[str]:
    forms = {
        "speedup": lambda limit: ["--max-latency", f"{_digits(1 / limit, lambda share: 1 / share == limit)}x"],
        "latency_ms": lambda limit: ["--max-latency", f"{_digits(limit)}ms"],
        "peak_bytes": lambda limit: ["--max-memory", f"{_digits(limit)}B"],
        "delta_fid": lambda limit: ["--max-fid", f"+{_digits(limit)}"],
        "fid": lambda limit: ["--max-fid", _digits(limit)],
    }
    return [word for metric, limit in bounds if metric in forms for word in forms[metric](limit)]


def _digits(number: float, exact: Callable[[float], bool] | None = None) -> str:
    """As few digits as are `exact`, or read back as the number; without an exponent, which bounds do not have."""
    is_exact = exact or (lambda read: read == number)
    texts = (f"{number:.{digits}g}" for digits in range(1, 18))
    return f"{Decimal(next((text for text in texts if is_exact(float(text))), repr(number))):f}"
