"""Search policies for the shipped model from Python, and export the knee of the front.

Run it with `python examples/search.py`.
"""

from pathlib import Path

from varsearch.db import Store
from varsearch.search.export import export
from varsearch.search.front import read_front, select
from varsearch.search.run import run
from varsearch.search.setup import Request, prepare

STORAGE = "example.db"

if __name__ == "__main__":
    plan = prepare(Request(model="mnist", target="4090", images=64), STORAGE)
    status = run(
        plan.settings,
        plan.space,
        plan.starts.by_origin,
        plan.worker.make,
        storage=STORAGE,
        budget=6,
        on_event=lambda event: print(event.trial.number, event.trial.origin, event.trial.values.get("delta_fid")),
    )
    with Store(STORAGE, create=False) as store:
        front = read_front(store, store.run(status.run))
    for entry in front.entries:
        print(entry.number, entry.origin, {name: round(m.value, 3) for name, m in entry.metrics.items()})
    export(select(front, "knee"), front.settings, status.run).write(Path("example-policy.json"))
