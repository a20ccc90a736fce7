from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def jpeg(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=95)
    return file.getvalue()


def drawings(random: np.random.Generator, part: str, labels: np.ndarray, side: int) -> dict[str, np.ndarray]:
    """The arrays of a part: smooth random images."""
    coarse = random.integers(0, 256, (len(labels), 4, 4, 3), dtype=np.uint8)
    files = [jpeg(np.asarray(Image.fromarray(c).resize((side, side), Image.Resampling.BICUBIC))) for c in coarse]
    return {
        f"{part}_jpeg": np.frombuffer(b"".join(files), dtype=np.uint8),
        f"{part}_offsets": np.cumsum([0, *map(len, files)]),
        f"{part}_labels": labels.astype(np.uint8),
    }


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in the layout of `cifar10_jpeg.npz`, sorted by class as there."""
    random, arrays = np.random.default_rng(0), {}
    for part, n in (("train", 80), ("test", 70)):
        arrays |= drawings(random, part, np.sort(np.arange(n) % 10), 32)
    path = tmp_path_factory.mktemp("data") / "cifar10_jpeg.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="session")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in the layout of `emoji64_jpeg.npz`: two of every emoji, and two thirds of them of one class."""
    random, arrays = np.random.default_rng(0), {}
    for part, n in (("train", 54), ("test", 27)):
        of_emoji = np.minimum(np.arange(n) % 27, 8)
        order = random.permutation(2 * n)
        arrays |= drawings(random, part, of_emoji.repeat(2)[order], 64)
        arrays[f"{part}_emoji"] = np.arange(n, dtype=np.int32).repeat(2)[order]
    path = tmp_path_factory.mktemp("data") / "emoji64_jpeg.npz"
    np.savez(path, **arrays)
    return path


def killed_at(line: str, arguments: list[str], threads: int) -> list[str]:
    """What a Python process wrote that was killed as soon as it wrote a line that starts with `line`."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    written = []
    with subprocess.Popen([sys.executable, *arguments], stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        for found in process.stderr:
            written.append(found)
            if found.startswith(line):
                process.kill()
                break
        process.wait()
    assert process.returncode == -9, "".join(written)
    return written
