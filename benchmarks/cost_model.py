"""How well predicted `cpu` latency ranks policies: `python -m benchmarks.cost_model`."""

from __future__ import annotations

import random
import statistics
import time

import torch
from scipy.stats import spearmanr

from benchmarks.model import small_model
from varsearch.accel import Accelerated, apply
from varsearch.evaluators.cost_model import latency_seconds
from varsearch.evaluators.speed import machine
from varsearch.evaluators.trace import trace
from varsearch.evaluators.workload import default_sampler, run_batch
from varsearch.space import SearchSpace
from varsearch.target import Target, find_device

POLICIES, ROUNDS, BATCH_SIZE = 60, 5, 16


def seconds(applied: Accelerated) -> float:
    sampler = default_sampler(applied.model)
    start = time.perf_counter()
    run_batch(applied, BATCH_SIZE, sampler)
    return time.perf_counter() - start


def main() -> None:
    torch.set_num_threads(1)
    model, rng = small_model(), random.Random(0)
    space = SearchSpace(model.spec)
    policies = list({p.digest: p for p in (space.random(rng) for _ in range(2 * POLICIES))}.values())[:POLICIES]
    target, device = Target(device="cpu", dtype="float32", batch_size=BATCH_SIZE), find_device("cpu")
    predicted = [latency_seconds(trace(model, policy, target).ops, device, target) for policy in policies]
    rounds: list[list[float]] = [[] for _ in policies]
    # Whole rounds rather than repeats of one policy: what else runs on the machine then falls on all of them.
    for _ in range(ROUNDS):
        for policy, found in zip(policies, rounds, strict=True):
            with apply(model, policy) as applied:
                found.append(seconds(applied))
    measured = [min(found) for found in rounds]
    errors = sorted(abs(p / m - 1) for p, m in zip(predicted, measured, strict=True))
    print(machine(torch.device("cpu")))
    print(f"{POLICIES} random policies, best of {ROUNDS} runs of a batch of {BATCH_SIZE}")
    print("policy    predicted ms  measured ms  ratio")
    for policy, p, m in sorted(zip(policies, predicted, measured, strict=True), key=lambda row: row[2]):
        print(f"{policy.digest[:8]}  {p * 1e3:12.1f}  {m * 1e3:11.1f}  {p / m:5.2f}")
    print(
        f"median absolute error {statistics.median(errors):.0%}, 90th percentile {errors[int(0.9 * len(errors))]:.0%}"
    )
    print(f"Spearman rank correlation {spearmanr(predicted, measured).statistic:.3f}")


if __name__ == "__main__":
    main()
