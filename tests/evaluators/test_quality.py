from __future__ import annotations

import copy
import hashlib
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from tests.accel.techniques import DENSE, TECHNIQUES
from varsearch.accel import labels_for
from varsearch.errors import EvaluationError, ModelError, PolicyError, UsageError
from varsearch.evaluators.draws import BATCH
from varsearch.evaluators.extractors import Extractor, classifier_extractor, weights_digest
from varsearch.evaluators.fid import Precomputed
from varsearch.evaluators.quality import SAMPLE, THREADS, QualityEvaluator, for_zoo, protocol_for
from varsearch.evaluators.reference import Reference, build_reference
from varsearch.measurement import METRICS, Evidence, Measurement
from varsearch.models import zoo
from varsearch.models.classifier import ClassifierConfig, PlainClassifier
from varsearch.models.image_model import ImageModel
from varsearch.models.manifest import Manifest
from varsearch.models.pictures import to_bytes
from varsearch.models.random_weights import random_model
from varsearch.models.sampling import PairedSampler
from varsearch.models.var import VARConfig
from varsearch.models.vqvae import TokenizerConfig
from varsearch.policy import Policy

N = 70
"""More than one batch, and not a whole number of them."""

PROJECTION = torch.randn(144, 12, generator=torch.Generator().manual_seed(0)) / 12
HEAD = torch.randn(12, 10, generator=torch.Generator().manual_seed(1))


def projection(broken_from: float = torch.inf) -> Extractor:
    """Twelve random projections of a 12x12 image; features above `broken_from` come out as NaN."""

    def network(images: Tensor) -> Tensor:
        features = images.flatten(1) @ PROJECTION
        return features.masked_fill(features > broken_from, torch.nan)

    return Extractor("projection", f"{broken_from}".ljust(64, "0"), 12, (1, 12, 12), network, lambda f: f @ HEAD)


def real_images() -> list[Tensor]:
    return list(torch.rand(200, 1, 12, 12, generator=torch.Generator().manual_seed(7)).split(50))


@cache
def reference() -> Reference:
    return build_reference(real_images(), projection(), keep_features=100, dtype=torch.float32)


def held_out(model: ImageModel) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(32, (20, n), generator=generator) for n in model.spec.tokens], labels_for(20, 10)


def make(model: ImageModel, seed: int = 0, nll_images: int = 12) -> QualityEvaluator:
    protocol = protocol_for(model, projection(), reference(), n_images=N, nll_images=nll_images, seed=seed)
    return QualityEvaluator(model, protocol, projection(), reference(), held_out(model))


@pytest.fixture(scope="module")
def evaluator(tiny: ImageModel) -> QualityEvaluator:
    return make(tiny)


@pytest.fixture(scope="module")
def w3(evaluator: QualityEvaluator) -> Evidence:
    return evaluator.evaluate(TECHNIQUES["w3-ada"])


def by_name(evidence: Evidence) -> dict[str, Measurement]:
    return {m.metric: m for m in evidence.measurements}


def test_dense_is_exactly_no_change(evaluator: QualityEvaluator) -> None:
    found = by_name(evaluator.evaluate(DENSE))
    for name in ("delta_fid", "feature_distance"):
        assert (found[name].value, found[name].low, found[name].high) == (0, 0, 0)


@pytest.mark.numerics
def test_a_policy_that_changes_nothing_is_measured_as_no_change(
    tiny: ImageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of the dense model drawn a second time, and not taken from the cache, still give a difference of zero."""
    evaluator = make(tiny)
    cached = evaluator.dense
    monkeypatch.setattr(evaluator, "dense_policy", TECHNIQUES["w8"])
    found = evaluator.evaluate(DENSE).values
    assert found["delta_fid"] == 0 and found["feature_distance"] == 0
    assert found["fid"] == cached.fid > 0


def test_every_metric_of_quality_is_there(w3: Evidence, evaluator: QualityEvaluator) -> None:
    names = [m.metric for m in w3.measurements]
    want = ["fid", "delta_fid", "kid", "precision", "recall", "feature_distance", "label_agreement", "nll"]
    assert names == want and set(names) <= METRICS.keys()
    assert {m.n for m in w3.measurements if m.metric != "nll"} == {N} and by_name(w3)["nll"].n == 12
    assert (w3.kind, w3.policy) == ("quality", TECHNIQUES["w3-ada"].digest)
    assert (w3.model, w3.protocol) == (evaluator.model.spec.fingerprint, evaluator.protocol.digest)
    assert w3.seconds > 0 and {"torch", "torchmetrics", "device", THREADS} <= w3.environment.keys()


def test_the_first_batch_is_recorded_by_its_hash(evaluator: QualityEvaluator, w3: Evidence) -> None:
    pixels = to_bytes(evaluator.sample(TECHNIQUES["w3-ada"], BATCH)).numpy().tobytes()
    assert w3.environment[SAMPLE] == hashlib.sha256(pixels).hexdigest()
    assert evaluator.evaluate(DENSE).environment[SAMPLE] != w3.environment[SAMPLE]


@pytest.mark.numerics
def test_values_are_those_of_the_sampled_images(evaluator: QualityEvaluator, w3: Evidence) -> None:
    features = projection().features(evaluator.sample(TECHNIQUES["w3-ada"], N))
    dense = projection().features(evaluator.sample(DENSE, N))
    metric = FrechetInceptionDistance(Precomputed(12))
    metric.update(projection().features(torch.cat(real_images())).double(), real=True)
    metric.update(features.double(), real=False)
    assert w3.values["fid"] == pytest.approx(metric.compute().item(), rel=1e-9)
    assert w3.values["delta_fid"] == w3.values["fid"] - evaluator.dense.fid != 0
    assert w3.values["feature_distance"] == pytest.approx((features - dense).square().mean().item(), rel=1e-5)
    agree = ((features @ HEAD).argmax(1) == torch.arange(N) % 10).double().mean()
    assert w3.values["label_agreement"] == pytest.approx(agree.item())
    tokens, labels = held_out(evaluator.model)
    with torch.inference_mode():
        want = evaluator.model.likelihood(labels[:12], [t[:12] for t in tokens]).mean().item()
    assert evaluator.evaluate(DENSE).values["nll"] == pytest.approx(want, rel=1e-6)
    assert w3.values["nll"] != pytest.approx(want, rel=1e-4)


def test_intervals_hold_their_value(w3: Evidence) -> None:
    for m in w3.measurements:
        assert m.metric == "recall" or (m.low is not None and m.high is not None and m.low <= m.value <= m.high)


@pytest.mark.numerics
def test_equal_policies_give_equal_bits(tiny: ImageModel, w3: Evidence) -> None:
    torch.manual_seed(123)
    again = make(tiny)
    again.evaluate(TECHNIQUES["kv-none"])
    assert again.evaluate(TECHNIQUES["w3-ada"]).measurements == w3.measurements


def test_another_seed_is_another_protocol_and_other_images(tiny: ImageModel, w3: Evidence) -> None:
    found = make(tiny, seed=1).evaluate(TECHNIQUES["w3-ada"])
    assert found.protocol != w3.protocol
    assert found.values["fid"] != w3.values["fid"] and found.values["nll"] == w3.values["nll"]


def test_likelihood_is_left_out_where_it_is_not_defined(tiny: ImageModel, evaluator: QualityEvaluator) -> None:
    assert "nll" not in evaluator.evaluate(TECHNIQUES["skip-last"]).values
    assert "nll" not in make(tiny, nll_images=0).evaluate(DENSE).values


def test_a_worse_policy_is_further_away(evaluator: QualityEvaluator) -> None:
    mild, severe = (evaluator.evaluate(TECHNIQUES[name]).values for name in ("w8", "skip-last"))
    assert 0 < mild["feature_distance"] < severe["feature_distance"]


def test_evaluation_leaves_model_and_generator_as_they_were(tiny: ImageModel) -> None:
    torch.manual_seed(11)
    state, weights = torch.get_rng_state(), weights_digest(tiny.transformer)
    make(tiny).evaluate(TECHNIQUES["w3-ada"])
    assert torch.equal(torch.get_rng_state(), state) and weights_digest(tiny.transformer) == weights


def test_the_protocol_decides_how_the_model_is_sampled(tiny: ImageModel) -> None:
    protocol = protocol_for(tiny, projection(), reference(), n_images=N).model_copy(
        update={"guidance": 0.0, "top_k": 3}
    )
    images = QualityEvaluator(tiny, protocol, projection(), reference()).sample(DENSE, 4)
    want = tiny.generate(labels_for(4, 10), PairedSampler(0, range(4), top_k=3), guidance=0.0)
    assert torch.equal(images, want)
    assert not torch.equal(images, make(tiny).sample(DENSE, 4))


def test_images_beyond_a_batch_continue_the_labels_and_the_noise(tiny: ImageModel, evaluator: QualityEvaluator) -> None:
    images = evaluator.sample(DENSE, 67)
    want = tiny.generate(labels_for(67, 10)[64:], PairedSampler(0, range(64, 67)))
    assert images.shape == (67, 1, 12, 12)
    assert torch.equal(images[64:], want)


def test_mismatched_parts_are_refused(tiny: ImageModel) -> None:
    protocol = protocol_for(tiny, projection(), reference(), n_images=N)
    other = projection(broken_from=99.0)
    with pytest.raises(UsageError, match="cannot be compared"):
        QualityEvaluator(tiny, protocol, other, reference())
    with pytest.raises(UsageError, match="the protocol is of extractor"):
        QualityEvaluator(tiny, protocol, other, replace(reference(), extractor=other.identity))
    with pytest.raises(UsageError, match="the protocol is of reference"):
        QualityEvaluator(tiny, protocol, projection(), replace(reference(), count=201))


@pytest.mark.parametrize("n", [1, 21])
def test_more_held_out_images_than_there_are_is_refused(tiny: ImageModel, n: int) -> None:
    with pytest.raises(UsageError, match=r"0 \(none\) or 2 to 20 of the held-out images"):
        make(tiny, nll_images=n)


def test_too_few_images_are_refused(tiny: ImageModel) -> None:
    few = build_reference(real_images(), projection(), keep_features=3)
    for protocol, ref in (
        (protocol_for(tiny, projection(), reference(), n_images=3), reference()),
        (protocol_for(tiny, projection(), few, n_images=N), few),
    ):
        with pytest.raises(UsageError, match="at least 4 images and reference features"):
            QualityEvaluator(tiny, protocol, projection(), ref)


def test_a_policy_of_another_model_is_refused(evaluator: QualityEvaluator) -> None:
    with pytest.raises(PolicyError, match="policy has 2 layers"):
        evaluator.evaluate(Policy.dense(2, 5))


def test_images_that_are_no_numbers_are_a_failed_evaluation(tiny: ImageModel) -> None:
    broken = replace(tiny, tokenizer=copy.deepcopy(tiny.tokenizer))
    broken.tokenizer.decoder.conv_out.bias.fill_(torch.nan)
    with pytest.raises(EvaluationError, match=f"policy {DENSE.digest[:12]}: 64 of 64 images hold NaN"):
        make(broken).evaluate(TECHNIQUES["w8"])


def test_features_that_are_no_numbers_are_a_failed_evaluation(tiny: ImageModel, evaluator: QualityEvaluator) -> None:
    limit = evaluator.dense.features_ND.max().item()
    fragile = projection(broken_from=limit)
    ref = replace(reference(), extractor=fragile.identity)
    sound = QualityEvaluator(tiny, protocol_for(tiny, fragile, ref, n_images=N), fragile, ref)
    with pytest.raises(EvaluationError, match=f"policy {TECHNIQUES['skip-last'].digest[:12]}: .* feature vectors"):
        sound.evaluate(TECHNIQUES["skip-last"])
    # The evaluator is none the worse for it.
    assert sound.evaluate(DENSE).values["delta_fid"] == 0


def test_a_likelihood_that_is_no_number_is_a_failed_evaluation(tiny: ImageModel) -> None:
    """A NaN in the transformer picks some code and never reaches an image; the likelihood shows it."""
    broken = replace(tiny, transformer=copy.deepcopy(tiny.transformer))
    broken.transformer.head.bias.fill_(torch.nan)
    with pytest.raises(EvaluationError, match="nll is nan"):
        make(broken).evaluate(DENSE)


@pytest.fixture
def zoo_folder(tmp_path: Path) -> str:
    """A model folder with all parts, as the recipe makes it; 32x32 images, because the classifier takes those."""
    scales = ((1, 1), (2, 2), (4, 4))
    transformer = VARConfig(scales, depth=1, width=32, heads=2, classes=10, vocab=16, z_channels=8)
    tokenizer = TokenizerConfig(
        scales, vocab=16, z_channels=8, ch=8, ch_mult=(1, 1, 1, 1), res_blocks=1, image_channels=1, norm_groups=8
    )
    with torch.random.fork_rng():
        model = random_model(transformer, tokenizer, (32, 32))
        classifier = PlainClassifier(ClassifierConfig(width=4, num_features=8)).eval()
    tokens = torch.cat(model.tokenizer.encode(torch.rand(6, 1, 32, 32) * 2 - 1), 1)
    states = {
        "transformer": model.transformer.state_dict(),
        "tokenizer": model.tokenizer.state_dict(),
        "classifier": classifier.state_dict(),
        "held_out": {"tokens": tokens.short(), "labels": labels_for(6, 10).short()},
    }
    for part, state in states.items():
        save_file(state, tmp_path / f"{part}.safetensors")
    images = torch.rand(40, 1, 32, 32).split(20)
    build_reference(images, classifier_extractor(classifier), 16).save(tmp_path / "reference.safetensors")
    names = [*states, "reference"]
    digests = {name: hashlib.sha256((tmp_path / f"{name}.safetensors").read_bytes()).hexdigest() for name in names}
    manifest = Manifest(
        name="mine",
        description="test",
        licence="none",
        data="none",
        image_size=(32, 32),
        transformer=transformer,
        tokenizer=tokenizer,
        sampling=model.sampling,
        classifier={"channels": 1, "width": 4, "num_features": 8, "classes": 10},
        files={name: (f"{name}.safetensors", digest) for name, digest in digests.items()},
    )
    (tmp_path / "manifest.json").write_text(manifest.model_dump_json())
    return str(tmp_path)


def test_a_zoo_model_is_evaluated_by_name(zoo_folder: str) -> None:
    evaluator = for_zoo(zoo_folder, n_images=8, nll_images=6, seed=4)
    found = evaluator.evaluate(evaluator.dense_policy)
    assert evaluator.protocol.extractor.startswith("classifier@") and evaluator.protocol.seed == 4
    assert found.values["delta_fid"] == 0 and found.values["nll"] > 0 and "label_agreement" in found.values
    assert found.model == zoo.load(zoo_folder).spec.fingerprint


def test_a_tampered_reference_is_refused(zoo_folder: str) -> None:
    path = Path(zoo_folder) / "reference.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match="is not the file the manifest names"):
        for_zoo(zoo_folder)
