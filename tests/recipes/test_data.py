from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from recipes.cifar10.data import HOLE, PAD, load
from recipes.common.augment import cropped, flipped, pierced


def test_every_image_keeps_its_label_and_nothing_trains_on_held_out_ones(archive: Path) -> None:
    splits = load(archive, None, held_out=10)
    assert [len(splits[name]) for name in ("train", "held_out", "test")] == [70, 10, 70]
    raw = np.load(archive)
    offsets = raw["test_offsets"]
    known = {}
    for i, label in enumerate(raw["test_labels"]):
        with Image.open(io.BytesIO(raw["test_jpeg"][offsets[i] : offsets[i + 1]].tobytes())) as image:
            known[np.asarray(image).tobytes()] = label
    for image, label in zip(splits["test"].images, splits["test"].labels, strict=True):
        pixels = ((image + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).contiguous()
        assert known.pop(pixels.numpy().tobytes()) == label
    assert not known
    held = {image.numpy().tobytes() for image in splits["held_out"].images}
    assert held.isdisjoint(image.numpy().tobytes() for image in splits["train"].images)
    assert len(set(splits["train"].labels[:30].tolist())) > 5, "sorted by class"


def test_augmented_images_are_moved_mirrored_and_pierced_each_in_its_own_way() -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 3, 32, 32)
    images = image.expand(64, -1, -1, -1)
    mirrored = flipped(images)
    same = (mirrored == image).flatten(1).all(1)
    assert 16 < same.sum() < 48 and torch.equal(mirrored[~same], images[~same].flip(3))
    padded = torch.nn.functional.pad(image, (PAD,) * 4, mode="reflect")[0]
    crops = [padded[:, y : y + 32, x : x + 32] for y in range(2 * PAD + 1) for x in range(2 * PAD + 1)]
    chosen = {next(i for i, crop in enumerate(crops) if torch.equal(crop, moved)) for moved in cropped(images, PAD)}
    assert len(chosen) > 30
    holed = pierced(images, HOLE)
    hidden = (holed == 0).all(1)
    sizes = hidden.flatten(1).sum(1)
    assert sizes.max() <= (HOLE + 1) ** 2 and sizes.float().mean() > HOLE**2 / 2 and sizes.min() > 0
    assert torch.equal(holed, images.masked_fill(hidden[:, None], 0))
