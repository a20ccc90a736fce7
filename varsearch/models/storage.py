"""How weights are stored in few bytes: int8 with one scale per output row, or bfloat16; and read back as fp32.

A tensor NAME of int8 has its scales, float32 (rows,), beside it as NAME.row_scale. A file too large for some place is
kept as pieces FILE.0, FILE.1, … which joined are the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from varsearch.errors import ModelError
from varsearch.files import write_atomically

ROW_SCALE = ".row_scale"
PIECE_BYTES = 15 * 2**20
Storage = Literal["float32", "bfloat16", "int8"]


def packed(state: dict[str, Tensor], storage: Storage) -> dict[str, Tensor]:
    """A state dict as it is stored; vectors and integers stay as they are, they are few.

    With "int8" the weights of linears, convolutions and embeddings are rounded to the nearest of 255 levels of their
    row, and all other large tensors to bfloat16.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        small = not tensor.is_floating_point() or tensor.ndim < 2
        if storage == "float32" or small:
            found[name] = tensor.contiguous()
        elif storage == "int8" and name.endswith("weight"):
            found[name], found[name + ROW_SCALE] = _rounded(tensor)
        else:
            found[name] = tensor.bfloat16().contiguous()
    return found


def _rounded(tensor: Tensor) -> tuple[Tensor, Tensor]:
    rows = tensor.float().flatten(1)
    scale = rows.abs().amax(1).div(127).clamp_min(torch.finfo(torch.float32).tiny)
    return (rows / scale[:, None]).round().to(torch.int8).view(tensor.shape), scale


def unpacked(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A stored state dict with floats in fp32; one that holds no int8 is returned as it is.

    Raises:
        ModelError: scales do not fit their tensor.
    """
    if not any(name.endswith(ROW_SCALE) for name in state):
        return state
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        scale = state.get(name + ROW_SCALE)
        if scale is not None:
            if tensor.dtype != torch.int8 or tensor.ndim < 2 or scale.shape != tensor.shape[:1]:
                got = f"{tensor.dtype} {tuple(tensor.shape)} with {tuple(scale.shape)} scales"
                raise ModelError(f"{name}: expected int8 rows with one scale each, got {got}")
            found[name] = (tensor.float().flatten(1) * scale.float()[:, None]).view(tensor.shape)
        elif not (name.endswith(ROW_SCALE) and name.removesuffix(ROW_SCALE) in state):
            found[name] = tensor.float() if tensor.is_floating_point() else tensor
    return found


def pieces(path: Path) -> list[Path]:
    """The file itself, or the pieces that it is kept as; neither need exist."""
    if path.exists():
        return [path]
    found = path.parent.glob(f"{path.name}.*")
    return sorted((p for p in found if p.suffix[1:].isdigit()), key=lambda p: int(p.suffix[1:])) or [path]


def read_pieces(path: Path) -> bytes:
    """Contents of a file that may be kept as pieces; `OSError` as a plain file would."""
    return b"".join(piece.read_bytes() for piece in pieces(path))


def write_pieces(path: Path, content: bytes) -> None:
    """Writes a file, as pieces of at most `PIECE_BYTES` if it is larger, and removes what an earlier call left."""
    for old in pieces(path):
        old.unlink(missing_ok=True)
    if len(content) <= PIECE_BYTES:
        write_atomically(path, content)
        return
    for i, start in enumerate(range(0, len(content), PIECE_BYTES)):
        write_atomically(path.with_name(f"{path.name}.{i}"), content[start : start + PIECE_BYTES])
