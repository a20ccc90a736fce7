"""Turns a trial into a policy file, and checks a policy file in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from pydantic import TypeAdapter

import varsearch
from varsearch.accel import labels_for
from varsearch.errors import EvaluationError, ModelError, StoreError
from varsearch.evaluators.draws import BATCH
from varsearch.evaluators.quality import DEVICE_TYPE, SAMPLE, THREADS
from varsearch.evaluators.worker import WorkerConfig
from varsearch.measurement import METRICS, TIMES, Job, Origin, QualityProtocol
from varsearch.models import zoo
from varsearch.models.image_model import SamplingDefaults
from varsearch.policy_file import Envelope, PolicyFile, Provenance, Sample
from varsearch.search.core.protocols import Protocols
from varsearch.search.results.front import FrontEntry

LATENCY_TOLERANCE = 0.25
"""Share by which a re-measured speed-up may differ: another hour on the same machine is not the same machine."""


def export(entry: FrontEntry) -> PolicyFile:
    """The policy file of one trial of a run, with the numbers that the entry has.

    Raises:
        ModelError: the model's weights are no longer those that the run measured.
        StoreError: the stored evidence is damaged.
    """
    settings = entry.settings
    manifest, quality = zoo.manifest(settings.model), entry.protocols.quality
    spec, sampling = manifest.spec(), quality or manifest.sampling
    if spec.identity != settings.fingerprint:
        raise ModelError(
            f"run {entry.run!r} was made with other weights: {settings.fingerprint[:12]}…, "
            f"{settings.model} now has {spec.identity[:12]}…"
        )
    try:
        return PolicyFile(
            model=spec,
            target=settings.target,
            origin=settings.origin,
            policy=entry.policy,
            measurements=tuple(entry.metrics.values()),
            envelope=Envelope(
                image_size=spec.image_size,
                batch_size=settings.target.batch_size,
                **asdict(SamplingDefaults.of(sampling)),
            ),
            sample=_sample(quality, entry.environment, spec.classes) if quality else None,
            provenance=Provenance(
                run=entry.run,
                trial=entry.number,
                confirmed=entry.is_confirmed,
                varsearch=varsearch.__version__,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
            ),
        )
    except (
        KeyError,
        ValueError,
    ) as error:  # of the notes that an evaluation leaves in the database
        raise StoreError(f"the stored evidence of trial {entry.number} is damaged: {error}") from None


def _sample(quality: QualityProtocol, environment: Mapping[str, str], classes: int) -> Sample:
    return Sample(
        seed=quality.seed,
        labels=tuple(labels_for(min(BATCH, quality.n_images), classes).tolist()),
        sha256=environment[SAMPLE],
        device=environment["device"],
        device_type="cuda" if environment[DEVICE_TYPE] == "cuda" else "cpu",
        threads=int(environment[THREADS]),
        torch=environment["torch"],
        noise=quality.noise,
        dtype=quality.dtype,
    )


@dataclass(frozen=True, slots=True)
class Check:
    """One number of a policy file beside its repetition."""

    metric: str
    filed: float
    found: float
    agrees: bool


def verify(file: PolicyFile, worker: WorkerConfig, protocols: Protocols) -> list[Check]:
    """Evaluates the file's policy again in a fresh process and compares every number, and the sample bit by bit.

    Quality, memory, FLOPs and predictions are deterministic and must come out equal; a measured speed-up may differ by
    `LATENCY_TOLERANCE`, and measured milliseconds are not judged.

    Raises:
        EvaluationError: the process failed.
    """
    request = json.dumps(
        {
            "worker": worker.model_dump(mode="json"),
            "file": file.model_dump(mode="json"),
            "protocols": TypeAdapter(Protocols).dump_python(protocols, mode="json"),
        }
    )
    command = [sys.executable, "-m", "varsearch.search.results.export"]
    answer = subprocess.run(command, input=request, capture_output=True, text=True, check=False)
    if answer.returncode:
        reason = (answer.stderr.strip().splitlines() or ["no message"])[-1]
        raise EvaluationError(f"verification failed in its fresh process: {reason}")
    found = json.loads(answer.stdout)
    checks = [
        _check(m.metric, m.value, found["values"].get(m.metric, float("nan")), m.origin) for m in file.measurements
    ]
    if file.sample is None:
        return checks
    same = found["sample"] == file.sample.sha256
    return [*checks, Check("images", 1.0, float(same), same)]


def _check(metric: str, filed: float, found: float, origin: Origin) -> Check:
    timed = origin is Origin.MEASURED and metric in TIMES
    if timed:
        agrees = metric == "latency_ms" or abs(found - filed) <= LATENCY_TOLERANCE * filed
    else:
        agrees = abs(found - filed) <= 1e-6 * max(1.0, abs(filed))
    return Check(metric, filed, found, agrees)


def shown(metric: str, value: float) -> str:
    """A value with its unit, for people."""
    unit = METRICS[metric].unit if metric in METRICS else ""
    return f"{value:.6g} {unit}".rstrip()


def _answer() -> None:
    """The fresh process: reads a worker and a policy file, evaluates, and prints the values."""
    request = json.load(sys.stdin)
    worker = WorkerConfig.model_validate(request["worker"]).make()
    file = PolicyFile.parse(json.dumps(request["file"]), "the exported policy")
    file.check_model(zoo.manifest(worker.config.model).spec())
    protocols = TypeAdapter(Protocols).validate_python(request["protocols"])
    outcome = worker.evaluate(Job(number=0, policy=file.policy, quality=protocols.quality, speed=protocols.speed))
    sample = outcome.quality and outcome.quality.environment[SAMPLE]
    print(json.dumps({"values": outcome.values, "sample": sample}))


if __name__ == "__main__":
    _answer()
