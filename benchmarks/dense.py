"""The dense path next to the loop that VAR's paper and code describe: `python -m benchmarks.dense`.

One image of VAR-d16 with guidance, random weights, float32, two threads, without decoding, which is the same for all.
`published_loop.py` is the loop; `as PyTorch` is our path with the products that PyTorch takes by itself, so that what
the loop saves and what oneDNN saves are seen apart. The three run in turn; a ratio is that of the times of one round.
Ends with an error if any two draw different tokens.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.model import random
from benchmarks.published_loop import PublishedLoop
from varsearch.accel import labels_for
from varsearch.evaluators.speed import machine, median_interval
from varsearch.evaluators.trace import trace
from varsearch.evaluators.workload import device_of, with_tensors
from varsearch.models import ImageModel
from varsearch.models.checkpoints import stored_as
from varsearch.models.generation import generate
from varsearch.models.sampling import PublishedSampler
from varsearch.policy import Policy
from varsearch.target import DType, Target

ROUNDS, THREADS, SEED = 7, 2, 0
PUBLISHED, AS_PYTORCH, OURS = "published loop", "as PyTorch", "varsearch"


class Noting(PublishedSampler):
    """The published sampler, and the codes that it drew, (N, L, C) per scale."""

    def __init__(self, generator: torch.Generator, top_k: int, top_p: float) -> None:
        super().__init__(generator, top_k, top_p)
        self.codes: list[Tensor] = []

    def __call__(self, logits_NLV: Tensor, scale: int, codebook_VC: Tensor) -> Tensor:
        """Draws the codes of one scale."""
        self.codes.append(super().__call__(logits_NLV, scale, codebook_VC))
        return self.codes[-1]


def ours(model: ImageModel, labels_N: Tensor) -> list[Tensor]:
    """Codes of every scale by the dense plan."""
    sampling = model.sampling
    sampler = Noting(torch.Generator(labels_N.device).manual_seed(SEED), sampling.top_k, sampling.top_p)
    generate(
        model.transformer,
        model.tokenizer,
        labels_N,
        plan=model.dense_plan(),
        guidance=model.guided(),
        sampler=sampler,
    )
    return sampler.codes


def by_pytorch(model: ImageModel, labels_N: Tensor) -> list[Tensor]:
    """The same without oneDNN."""
    with patch("varsearch.linear._faster_in_onednn", return_value=False):
        return ours(model, labels_N)


def published(model: ImageModel, labels_N: Tensor) -> list[Tensor]:
    """Codes of every scale by the published loop."""
    _, tokens, _ = PublishedLoop(model).latent(labels_N, SEED)
    return [model.tokenizer.quantize.codebook[tokens_NL] for tokens_NL in tokens]


RUNS: dict[str, Callable[[ImageModel, Tensor], list[Tensor]]] = {
    PUBLISHED: published,
    AS_PYTORCH: by_pytorch,
    OURS: ours,
}


def check_tokens(model: ImageModel, labels_N: Tensor) -> int:
    """How many tokens all runs draw alike; ends the program if two differ."""
    with torch.inference_mode():
        want, *others = (run(model, labels_N) for run in RUNS.values())
    for name, codes in zip(list(RUNS)[1:], others, strict=True):
        for k, (one, other) in enumerate(zip(want, codes, strict=True)):
            if not torch.equal(one, other):
                differing = int((one != other).any(-1).sum())
                sys.exit(f"{name} draws other tokens than the {PUBLISHED}: {differing} of scale {k}")
    return sum(codes.shape[0] * codes.shape[1] for codes in want)


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds per round of each run."""

    seconds: dict[str, list[float]]

    def row(self, name: str) -> str:
        """Median time, and how much faster than the published loop, with a 95 % interval."""
        mine = self.seconds[name]
        ratios = [slow / fast for slow, fast in zip(self.seconds[PUBLISHED], mine, strict=True)]
        low, high = median_interval(ratios)
        return f"{statistics.median(mine):8.2f}  {statistics.median(ratios):5.2f}x ({low:.2f}-{high:.2f})"


def times(model: ImageModel, labels_N: Tensor, rounds: int) -> Times:
    """Times all runs in turn; who goes first changes from round to round."""
    found: dict[str, list[float]] = {name: [] for name in RUNS}
    names = list(RUNS)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = time.perf_counter()
            RUNS[name](model, labels_N)
            found[name].append(time.perf_counter() - start)
    return Times(found)


def cache_bytes(model: ImageModel, dtype: DType, n: int) -> tuple[int, int]:
    """Bytes of keys and values of `n` images, guided: of the published loop and of ours, by tensors without content."""
    target = Target(device="cpu", dtype=dtype, batch_size=n)
    held = trace(model, Policy.dense(model.spec.n_layers, len(model.spec.scales)), target).kv_bytes
    kind = getattr(torch, dtype)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = with_tensors(model, lambda name, t: torch.empty(t.shape, dtype=stored_as(name, t, kind)))
        _, _, joined = PublishedLoop(fake).latent(labels_for(n, model.spec.classes), SEED)
    return joined, held


def report(model: ImageModel, n: int, rounds: int) -> None:
    """Prints the table."""
    labels_N = labels_for(n, model.spec.classes, device_of(model))
    print(f"{machine(device_of(model))}; {model.spec.name}, random weights, {n} image, float32, without decoding")
    print(f"all draw the same {check_tokens(model, labels_N)} tokens")
    print(f"median of {rounds} rounds          seconds  speed-up (95 %)", flush=True)
    found = times(model, labels_N, rounds)
    for name in RUNS:
        print(f"{name:27}  {found.row(name)}")
    for dtype in ("float32", "float16"):
        joined, held = cache_bytes(model, dtype, n)
        print(f"keys and values in {dtype}: {joined / 1e6:.1f} MB, here {held / 1e6:.1f} MB: {held / joined:.1%}")


def main() -> None:
    torch.set_num_threads(THREADS)
    report(random("var-d16"), 1, ROUNDS)


if __name__ == "__main__":
    main()
