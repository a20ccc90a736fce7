"""What techniques of the whole policy lose and save, each alone: `python -m benchmarks.frames --storage FILE`.

Guidance that ends, a refiner that begins and a scale that is left out save most of a model's time. Where each of them
loses what many images can tell, so does what is built on it: whoever wants twice the speed needs one. ΔFID by
`--images` of noise that neither the run nor its confirmation has drawn, the speed-up by the clock that confirms.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from benchmarks.losses import again, images_parser, read
from varsearch.evaluators.worker import WorkerConfig
from varsearch.formatting import interval, times
from varsearch.models import zoo
from varsearch.search.core.protocols import Protocols, confirming
from varsearch.search.results.front import Front, FrontEntry
from varsearch.search.sensitivity.decomposition import GLOBAL_KINDS
from varsearch.space.units import compose, settings

ROW = "{:<28}{:<22}{:<24}{}"


def alone(front: Front) -> Iterator[FrontEntry]:
    """Each such setting of the run's model, with its speed."""
    model, speed = front.settings.model, confirming(front.settings).speed
    spec = zoo.manifest(model).spec()
    clock = WorkerConfig(model=model, device="cpu", threads=os.cpu_count() or 1).make().speed(speed)
    for number, setting in enumerate(s for s in settings(spec, zoo.siblings(model)) if s.kind in GLOBAL_KINDS):
        policy = compose(spec, [setting])
        yield FrontEntry(number, setting.name, policy, clock(policy).metrics, {}, Protocols(front.quality, speed))


def main(given: Sequence[str] | None = None) -> None:
    """Reads a run's protocols, times, draws and prints."""
    asked = images_parser(__doc__).parse_args(given)
    name, front, quality = read(asked)
    if front.dense is None:
        raise SystemExit(f"{name} has no dense policy")
    dense_bytes = front.dense.value("peak_bytes")
    entries = sorted(alone(front), key=lambda entry: -entry.value("speedup"))
    print(f"{front.settings.model} on {front.settings.target.device}; ΔFID, 95 %, by {asked.images} images")
    print(ROW.format("alone", "speed-up", "ΔFID", "peak memory"))
    for entry in again(quality, front.settings.model, entries, asked.images):
        told = (times(entry.metrics["speedup"]), interval(entry.metrics["delta_fid"]))
        print(ROW.format(entry.origin, *told, f"{entry.value('peak_bytes') / dense_bytes:.2f}x"), flush=True)


if __name__ == "__main__":
    main()
