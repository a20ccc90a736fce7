"""Measures the quality of the images that a model draws under a policy.

Shape suffixes: N images, C channels, H W pixels, D features, R resamples.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version

import torch
from torch import Tensor

from varsearch.accel import Accelerated, apply, labels_for
from varsearch.errors import EvaluationError, ModelError, UsageError
from varsearch.evaluators.batches import Batches, reading
from varsearch.evaluators.draws import BATCH, Drawing, Draws
from varsearch.evaluators.extractors import Extractor, classifier_extractor
from varsearch.evaluators.fid import Bootstrap, frechet_distance, kid
from varsearch.evaluators.manifold import NEIGHBOURS, Manifold, precision_recall
from varsearch.evaluators.per_image import Z_95, feature_distance, label_agreement, measured, nll
from varsearch.evaluators.reference import Reference, zoo_reference
from varsearch.evaluators.speed import machine
from varsearch.evaluators.workload import device_of, dtype_of
from varsearch.measurement import Evidence, Measurement, QualityProtocol
from varsearch.models import zoo
from varsearch.models.image_model import ImageModel, SamplingDefaults
from varsearch.models.noise import usual_noise
from varsearch.policy import Policy
from varsearch.target import DType, Noise

SAMPLE, THREADS, DEVICE_TYPE, AT_ONCE = "sample_sha256", "threads", "device_type", "images_at_once"
"""In the environment of evidence: hash of the first `BATCH` images in 8 bits, and what it depends on besides."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """Features (N, D) of drawn images, their Fréchet distance, and that of their resamples (R,).

    `sha256` is of the first batch as 8-bit images.
    """

    features_ND: Tensor
    fid: float
    resampled_R: Tensor
    sha256: str


class QualityEvaluator:
    """Draws the protocol's images under a policy, and compares them with real ones and with those of the dense model.

    Image i has label i modulo the classes and its own noise from (seed, i), whatever the policy. Equal policies give
    bitwise equal numbers in the same environment.

    Args:
        model: it is sampled with the guidance, top_k and top_p of `protocol`.
        protocol: as made by `protocol_for` from the same extractor and reference.
        extractor: on the model's device.
        reference: statistics of real images.
        held_out: tokens per scale, each (N, tokens) int64, and labels (N,) int64, of at least `nll_images` images.
        draws: of the same model and extractor; evaluators that share it draw no image twice.

    Raises:
        UsageError: the protocol is not of this extractor and reference, or names more images than there are.
    """

    def __init__(
        self,
        model: ImageModel,
        protocol: QualityProtocol,
        extractor: Extractor,
        reference: Reference,
        held_out: tuple[list[Tensor], Tensor] | None = None,
        draws: Draws | None = None,
    ) -> None:
        reference.require(extractor)
        _check(protocol, dtype_of(model), extractor, reference, len(held_out[1]) if held_out else 0)
        self.model = dataclasses.replace(model, sampling=SamplingDefaults.of(protocol))
        self.protocol, self.extractor, self.reference = protocol, extractor, reference
        self.device, self.draws = device_of(model), draws or Draws(extractor)
        self.held_out = _first(held_out, protocol.nll_images, self.device) if held_out else None
        self.batches, self.readings = Batches(self.model, BATCH), Batches(self.model, BATCH, reading)
        self.bootstrap = Bootstrap(reference, protocol.n_images)
        self.real = Manifold(reference.features_MD)
        self.dense_policy = Policy.dense(model.spec.n_layers, len(model.spec.scales))

    @cached_property
    def dense(self) -> Sample:
        """The unmodified model's sample, drawn once."""
        with self._applied(self.dense_policy) as accelerated:
            return self._sample(accelerated, self.dense_policy)

    def sample(self, policy: Policy, n: int) -> Tensor:
        """The first `n` images of the protocol, (n, C, H, W) in [0, 1], on the CPU."""
        with self._applied(policy) as accelerated:
            return torch.cat([images.cpu() for images in self._drawing(policy).images(accelerated, n)])

    def evaluate(self, policy: Policy) -> Evidence:
        """All quality metrics of `policy`. Likelihood is left out where a scale is skipped: it is not defined there.

        The first call also draws the dense model's images; that time is not counted as the policy's.

        Raises:
            PolicyError: the policy does not fit the model.
            EvaluationError: images, features or a metric are not finite.
        """
        dense = self.dense
        start = time.perf_counter()
        with self._applied(policy) as accelerated:
            sample = dense if policy == self.dense_policy else self._sample(accelerated, policy)
            measurements = (*self._compare(sample), *self._labels(sample), *self._likelihood(accelerated, policy))
        return Evidence(
            kind="quality",
            policy=policy.digest,
            model=self.model.spec.identity,
            protocol=self.protocol.digest,
            measurements=measurements,
            seconds=time.perf_counter() - start,
            environment={
                "torch": torch.__version__,
                "torchmetrics": version("torchmetrics"),
                "device": machine(self.device),
                "attention": accelerated.attention,
                THREADS: str(torch.get_num_threads()),
                DEVICE_TYPE: self.device.type,
                SAMPLE: sample.sha256,
                AT_ONCE: str(self.batches.of(policy)),
            },
        )

    @contextmanager
    def _applied(self, policy: Policy) -> Iterator[Accelerated]:
        try:
            with apply(self.model, policy) as accelerated:
                yield accelerated
        except EvaluationError as error:
            raise EvaluationError(f"policy {policy.digest[:12]}: {error}") from None

    def _sample(self, accelerated: Accelerated, policy: Policy) -> Sample:
        protocol, sampling = self.protocol, self.model.sampling
        key = policy.digest, protocol.seed, protocol.noise, dataclasses.astuple(sampling)
        features_ND, sha256 = self.draws.features(accelerated, protocol.n_images, self._drawing(policy), key)
        distance, resampled_R = frechet_distance(features_ND, self.reference), self.bootstrap.distances(features_ND)
        return Sample(features_ND, distance, resampled_R, sha256)

    def _drawing(self, policy: Policy) -> Drawing:
        return Drawing(self.protocol.seed, self.protocol.noise, self.batches.of(policy))

    def _compare(self, sample: Sample) -> Iterator[Measurement]:
        n, dense = self.protocol.n_images, self.dense
        half = Z_95 * Bootstrap.error(sample.resampled_R)
        yield measured("fid", sample.fid, n, (max(0.0, sample.fid - half), sample.fid + half))
        delta, half = sample.fid - dense.fid, Z_95 * Bootstrap.error(sample.resampled_R - dense.resampled_R)
        yield measured("delta_fid", delta, n, (delta - half, delta + half))
        yield kid(sample.features_ND, self.reference)
        yield from precision_recall(sample.features_ND, self.real)
        yield feature_distance(sample.features_ND, dense.features_ND)

    def _labels(self, sample: Sample) -> Iterator[Measurement]:
        if self.extractor.head is not None:
            with torch.inference_mode():
                logits_NA = self.extractor.head(sample.features_ND.to(self.device)).cpu()
            yield label_agreement(logits_NA, labels_for(len(logits_NA), self.model.spec.classes))

    def _likelihood(self, accelerated: Accelerated, policy: Policy) -> Iterator[Measurement]:
        if self.held_out is not None and all(scale.run for path in policy.paths() for scale in path.scales):
            tokens, labels_N = self.held_out
            yield nll(accelerated, tokens, labels_N, self.readings.of(policy))


def protocol_for(
    model: ImageModel,
    extractor: Extractor,
    reference: Reference,
    *,
    n_images: int,
    nll_images: int = 0,
    seed: int = 0,
    noise: Noise | None = None,
) -> QualityProtocol:
    """The protocol that samples `model` as its card says, in its number format.

    `noise` is what images are drawn with; None takes the usual one of the model's device.
    """
    return QualityProtocol(
        extractor=extractor.identity,
        reference=reference.digest,
        n_images=n_images,
        nll_images=nll_images,
        seed=seed,
        noise=noise or usual_noise(device_of(model)),
        dtype=dtype_of(model),
        **dataclasses.asdict(model.sampling),
    )


def for_zoo(
    model: str, n_images: int = 512, *, nll_images: int = 256, seed: int = 0, device: str = "cpu"
) -> QualityEvaluator:
    """The evaluator of a zoo model, in the features of the classifier that ships with it.

    Raises:
        ModelError: the model is unknown, or one of its files is missing or damaged.
    """
    if refusal := zoo.quality_refusal(model):
        raise ModelError(f"the quality of {model} cannot be evaluated: {refusal}")
    image_model, reference = zoo.load(model, device), zoo_reference(model)
    extractor = classifier_extractor(zoo.load_classifier(model, device))
    protocol = protocol_for(image_model, extractor, reference, n_images=n_images, nll_images=nll_images, seed=seed)
    return QualityEvaluator(image_model, protocol, extractor, reference, zoo.held_out(model))


def _check(protocol: QualityProtocol, dtype: DType, extractor: Extractor, reference: Reference, held_out: int) -> None:
    for what, got, expected in (
        ("number format", protocol.dtype, dtype),
        ("extractor", protocol.extractor, extractor.identity),
        ("reference", protocol.reference, reference.digest),
    ):
        if got != expected:
            raise UsageError(f"the protocol is of {what} {got}, but {expected} was given: make it with protocol_for")
    fewest = min(protocol.n_images, len(reference.features_MD))
    if fewest <= NEIGHBOURS:
        raise UsageError(
            f"quality needs at least {NEIGHBOURS + 1} images and reference features, got {protocol.n_images} "
            f"and {len(reference.features_MD)}"
        )
    if protocol.nll_images == 1 or protocol.nll_images > held_out:
        raise UsageError(
            f"likelihood needs 0 (none) or 2 to {held_out} of the held-out images, the protocol asks for "
            f"{protocol.nll_images}"
        )


def _first(held_out: tuple[list[Tensor], Tensor], n: int, device: torch.device) -> tuple[list[Tensor], Tensor] | None:
    tokens, labels_N = held_out
    return ([t[:n].to(device) for t in tokens], labels_N[:n].to(device)) if n else None
