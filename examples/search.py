"""Search policies for the shipped model from Python, and export the knee of the front.

Run it with `python examples/search.py`.
"""

from pathlib import Path

from varsearch.db import Store
from varsearch.search.results.export import export
from varsearch.search.results.front import read_front
from varsearch.search.results.selection import select
from varsearch.search.run.driver import run
from varsearch.search.run.events import Event, Progress
from varsearch.search.setup.guidance import guided
from varsearch.search.setup.prepare import Request, prepare

STORAGE = "example.db"


def told(event: Event) -> None:
    """A line for each trial of the search; those of the confirmation are in the front."""
    if isinstance(event, Progress):
        print(event.trial.number, event.trial.origin, event.trial.values.get("delta_fid"))


if __name__ == "__main__":
    budget = 6  # of a demonstration; from 100 on a profile is made first
    plan = prepare(Request(model="mnist", target="4090", images=64), STORAGE)
    guide, starts = guided(plan, STORAGE, budget)
    status = run(
        plan.settings,
        plan.space,
        starts,
        plan.worker.make,
        storage=STORAGE,
        budget=budget,
        guide=guide,
        confirm=True,
        on_event=told,
    )
    with Store(STORAGE, create=False) as store:
        front = read_front(store, store.run(status.run))
    for entry in front.entries:
        print(entry.number, entry.origin, {name: round(m.value, 3) for name, m in entry.metrics.items()})
    export(select(front, "knee"), front.settings, status.run).write(Path("example-policy.json"))
