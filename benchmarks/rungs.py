"""How well early looks tell ΔFID, in a run with `--rungs`: `python -m benchmarks.rungs --storage FILE [--run NAME]`.

For each rung and metric: Spearman's rank correlation with the final ΔFID over the complete trials that climbed it, the
same for the better half of them, and the error of a line between bent numbers: there, and relative to ΔFID elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr

from benchmarks.stored import parser, stored_run
from varsearch.db import RunRecord, State, Store, TrialRecord
from varsearch.evaluators.cost_model import predicted_protocol
from varsearch.evaluators.draws import BATCH
from varsearch.search.core.objectives import dense_trial
from varsearch.search.core.settings import RunSettings
from varsearch.search.run.rungs import Rung, rungs_of

METRICS = ("delta_fid", "kid", "feature_distance")
FEWEST = 8


def line(name: str, early: Sequence[float], final: Sequence[float], scale: float) -> str:
    """One metric of one rung."""
    x_N, y_N = np.array(early), np.array(final)
    half = y_N <= np.median(y_N)
    ranks = [float(spearmanr(x_N[rows], y_N[rows]).statistic) for rows in (slice(None), half)]
    slope, offset = np.polyfit(np.arcsinh(x_N / scale), np.arcsinh(y_N / scale), 1)
    told_N = offset + slope * np.arcsinh(x_N / scale)
    near = float(np.std((scale * np.sinh(told_N) - y_N)[half]))
    far = float(np.std((told_N - np.arcsinh(y_N / scale))[~half]))
    return f"{name:<30}{len(y_N):>7}{ranks[0]:>9.3f}{ranks[1]:>13.3f}{near:>13.3f}{far:>12.0%}"


def lines(store: Store, run: RunRecord, rung: Rung, trials: Sequence[TrialRecord], dense: TrialRecord) -> list[str]:
    """All metrics of one rung that draws images."""
    others = [t for t in trials if t is not dense]
    found = [store.find("quality", t.policy.digest, run.fingerprint, rung.protocol.digest) for t in others]
    both = [(e.values, t.values["delta_fid"]) for t, e in zip(others, found, strict=True) if e]
    if len(both) < FEWEST:
        return [f"{rung.name:<30}{len(both):>7}   too few"]
    final = [delta for _, delta in both]
    return [line(f"{rung.name}: {m}", [v[m] for v, _ in both], final, dense.values["fid"]) for m in METRICS]


def main(given: Sequence[str] | None = None) -> None:
    """Reads a run and prints."""
    with stored_run(parser(__doc__).parse_args(given)) as (store, run):
        settings = RunSettings.parse(run.settings)
        trials = [t for t in store.trials(run) if t.state is State.COMPLETE]
        dense = dense_trial(trials)
        rungs = rungs_of(settings, predicted_protocol(settings.target), BATCH)[1:]
        if dense is None or not rungs:
            raise SystemExit(f"{run.name} has no dense trial, or no rungs that draw images")
        print(f"{run.name}: ΔFID of dense's {dense.values['fid']:.3f}, from fewer images")
        print(f"{'rung: metric':<30}{'trials':>7}{'rank':>9}{'better half':>13}{'error there':>13}{'elsewhere':>12}")
        for rung in rungs:
            print("\n".join(lines(store, run, rung, trials, dense)))


if __name__ == "__main__":
    main()
