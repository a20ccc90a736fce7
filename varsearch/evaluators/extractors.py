"""What turns images into the features that distances are measured in.

Shape suffixes: N images, C channels, H W pixels, D features, A labels.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from varsearch.errors import EvaluationError, ModelError, UsageError
from varsearch.models.classifier import Classifier

INCEPTION_FEATURES = 2048


@dataclass(frozen=True, slots=True)
class Extractor:
    """A named feature space. Numbers from two extractors, or from two sets of weights, are never compared.

    Args:
        name: the architecture, for people.
        weights: sha256 of the weights.
        num_features: D.
        image_shape: (channels, height, width) that `network` takes; None where it takes any.
        network: images (N, C, H, W) in [0, 1] to features (N, D).
        head: features (N, D) to class logits (N, A), where the extractor is a classifier.
    """

    name: str
    weights: str
    num_features: int
    image_shape: tuple[int, int, int] | None
    network: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Tensor] | None = None

    @property
    def identity(self) -> str:
        """Name and weights: what a protocol and a reference file record."""
        return f"{self.name}@{self.weights[:16]}"

    def features(self, images_NCHW: Tensor) -> Tensor:
        """Features (N, D), float32, of images (N, C, H, W) in [0, 1], on the images' device.

        Raises:
            UsageError: the images have another shape than the extractor takes.
            EvaluationError: images or features hold NaN or infinity; the message counts them.
        """
        shape = tuple(images_NCHW.shape[1:])
        if self.image_shape is not None and shape != self.image_shape:
            raise UsageError(
                f"extractor {self.identity} takes images of shape {self.image_shape}, got {shape}: "
                "choose an extractor trained on the model's images"
            )
        check_finite(images_NCHW, "images")
        with torch.inference_mode():
            features_ND = self.network(images_NCHW.float()).float()
        check_finite(features_ND, "feature vectors")
        return features_ND


def check_finite(values: Tensor, what: str) -> None:
    """Raises `EvaluationError` if a row of `values` holds NaN or infinity."""
    bad_N = ~values.isfinite().flatten(1).all(1)
    if bad_N.any():
        raise EvaluationError(f"{int(bad_N.sum())} of {len(values)} {what} hold NaN or infinity: no metric is defined")


def weights_digest(module: nn.Module) -> str:
    """Sha256 over names, types, shapes and bytes of a module's state."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def classifier_extractor(classifier: Classifier) -> Extractor:
    """The penultimate layer of a zoo model's small classifier, which also tells labels."""

    def network(images_NCHW: Tensor) -> Tensor:
        return classifier.features(images_NCHW * 2 - 1)

    return Extractor(
        name="classifier",
        weights=weights_digest(classifier),
        num_features=classifier.num_features,
        image_shape=(classifier.channels, classifier.side, classifier.side),
        network=network,
        head=classifier.logits,
    )


def inception_extractor(weights: Path, device: str = "cpu") -> Extractor:
    """The 2048 pooled features of Inception-v3 with the TensorFlow weights that FID is defined on.

    Built by torch-fidelity, which resizes as TensorFlow did. Images of one channel are repeated to three; images are
    rounded to 8 bits, as if they had been written to PNG.

    Args:
        weights: torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`. It is read as plain tensors, never as
            a pickle that can run code, and never downloaded.
        device: where the network runs.

    Raises:
        UsageError: torch-fidelity is not installed, or cannot be imported with this torch.
        ModelError: the file is missing or does not hold these weights.
    """
    net = _inception(_read_state(weights)).to(device)

    def network(images_NCHW: Tensor) -> Tensor:
        rgb_N3HW = images_NCHW.expand(-1, 3, -1, -1).mul(255).round().clamp(0, 255).to(torch.uint8)
        features_ND: Tensor = net(rgb_N3HW)[0]
        return features_ND

    return Extractor("inception-v3", weights_digest(net), INCEPTION_FEATURES, None, network)


def _read_state(weights: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(
            f"cannot read Inception weights {weights}: {error.strerror}; "
            "download weights-inception-2015-12-05-6726825d.pth from torch-fidelity's release v0.2.0"
        ) from None
    except (UnpicklingError, RuntimeError, EOFError) as error:
        reason = (str(error) or "it ends too early").splitlines()[0]
        raise ModelError(f"{weights} does not hold plain tensors saved by torch: {reason}") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{weights} holds {type(state).__name__} of other things than tensors, expected a state dict")
    return state


def _inception(state: dict[str, Tensor]) -> nn.Module:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except (ImportError, RuntimeError) as error:  # a torchvision built for another torch raises RuntimeError
        raise UsageError(
            f"Inception features need torch-fidelity and a torchvision that fits this torch ({error}): "
            "pip install 'varsearch[inception]'"
        ) from None
    # The constructor unpickles whatever path it is given, so it is given a copy of the tensors we read safely.
    safe = io.BytesIO()
    torch.save(state, safe)
    safe.seek(0)
    try:
        net: Any = FeatureExtractorInceptionV3("inception-v3-compat", [str(INCEPTION_FEATURES)], safe)
    except RuntimeError as error:
        raise ModelError(f"not the weights of torch-fidelity's Inception-v3: {str(error).splitlines()[0]}") from None
    module: nn.Module = net
    return module
