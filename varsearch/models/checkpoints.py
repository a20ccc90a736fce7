"""Reads weights from files and fills networks with them, refusing whatever does not fit exactly.

A checkpoint is a safetensors file, a PyTorch file (opened without running code, so tensors only), or a folder or index
of several such files. What stays in fp32 at any precision: the parameters named in `FP32`, and what `Mamba2` computes
in it. Integer buffers keep their type.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from varsearch.errors import ModelError
from varsearch.target import DType

FP32 = {"scale_mul_1H11", "A_log", "dt_bias", "D"}
"""Few numbers that matter: exponents, step sizes and skip weights. Rounded to bf16, a factor of 100 on attention logits
would be off by more than one."""

PICKLES = {".pth", ".pt", ".ckpt", ".bin"}
NESTED = "vae"
"""Name of the network's tensors in a file that holds more: Infinity's tokenizers are published beside what their
training left."""
SHOWN = 3
Module = TypeVar("Module", bound=nn.Module)


def load(make: Callable[[], Module], path: Path, dtype: DType = "float32", device: str = "cpu") -> Module:
    """The network that `make` builds with the weights at `path`, frozen and in evaluation mode.

    Args:
        make: builds the network; its state dict is the layout that the checkpoint must have.
        path: a `.safetensors` or `.pth` file, an index `*.index.json` of several, or a folder with one of these.
        dtype: of the weights, but for what the module's docstring names.
        device: where the network shall be.

    Raises:
        ModelError: the checkpoint is missing, damaged, or has other tensors than the network.
    """
    return filled(make, read(path), str(path), dtype, device)


def filled(
    make: Callable[[], Module], state: dict[str, Tensor], what: str, dtype: DType = "float32", device: str = "cpu"
) -> Module:
    """`load` from tensors in memory, which errors call `what`."""
    try:
        # Without memory, until the sizes asked for are known to be those of the file.
        with torch.device("meta"):
            module = make()
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{what}: no network has the manifest's sizes: {str(error).splitlines()[0]}") from None
    state = _with_aliases(module, state)
    check_layout(module.state_dict(), state, what)
    for name, t in (*module.named_parameters(), *module.named_buffers()):
        t.data = t.data.to(stored_as(name, t, getattr(torch, dtype)))
    module.to_empty(device=device).load_state_dict(state)
    broken = [name for name, t in module.named_parameters() if t.is_floating_point() and not t.isfinite().all()]
    if broken:
        raise ModelError(f"{what}: {len(broken)} tensors are not finite in {dtype}, first {', '.join(broken[:SHOWN])}")
    return module.eval().requires_grad_(False)


def _with_aliases(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` with the tensors that the network has under several names under all of them: some formats keep one."""
    names: dict[int, list[str]] = {}
    for name, t in module.state_dict(keep_vars=True).items():
        names.setdefault(id(t), []).append(name)
    aliases = {
        name: state[known]
        for group in names.values()
        for name in group
        for known in group
        if known in state and name not in state
    }
    return state | aliases


def stored_as(name: str, t: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The dtype of a parameter or buffer of a model in `dtype`, by its name."""
    if not t.is_floating_point():
        return t.dtype
    return torch.promote_types(dtype, torch.float32) if name.rpartition(".")[2] in FP32 else dtype


def check_layout(own: dict[str, Tensor], given: dict[str, Tensor], what: str) -> None:
    """Raises `ModelError` unless both have the same names and shapes; floating-point types count as one."""
    expected, got = ({name: _shape(t) for name, t in state.items()} for state in (own, given))
    wrong = [name for name in sorted(expected) if got.get(name) != expected[name]]
    unknown = sorted(got.keys() - expected.keys())
    if wrong or unknown:
        # Both sides, so that a common prefix or another naming shows.
        shown = [*wrong[:SHOWN], *unknown[:SHOWN]]
        first = "; ".join(
            f"{name}: expected {expected.get(name, 'none')}, got {got.get(name, 'none')}" for name in shown
        )
        raise ModelError(f"{what}: {len(wrong) + len(unknown)} tensors differ from the layout, first {first}")


def _shape(t: Tensor) -> str:
    kind = "" if t.is_floating_point() else f" {str(t.dtype).removeprefix('torch.')}"
    return f"{tuple(t.shape)}{kind}"


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name; raises `ModelError` as `load` does."""
    try:
        return _read(_only_checkpoint(path) if path.is_dir() else path)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from None


def _read(path: Path) -> dict[str, Tensor]:
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in PICKLES:
        return _read_pickle(path)
    raise ModelError(f"{path} is no checkpoint: expected .safetensors, {', '.join(sorted(PICKLES))} or .index.json")


def _only_checkpoint(folder: Path) -> Path:
    for kinds in ((".index.json",), (".safetensors",), tuple(PICKLES)):
        found = sorted(path for path in folder.iterdir() if path.name.endswith(kinds))
        if len(found) == 1:
            return found[0]
        if found:
            raise ModelError(f"{folder} has {len(found)} checkpoints, name one: {', '.join(p.name for p in found)}")
    raise ModelError(f"{folder} has no checkpoint")


def _read_shards(index: Path) -> dict[str, Tensor]:
    try:
        places = json.loads(index.read_bytes())["weight_map"]
        names = sorted({str(name) for name in places.values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ModelError(f"{index} is no index of a checkpoint: expected a weight_map of names to files") from None
    state: dict[str, Tensor] = {}
    for name in names:
        if not _is_shard(index, name):
            raise ModelError(f"{index} names {name!r}, which is no checkpoint beside it")
        shard = read(index.with_name(name))
        wanted = {key for key, place in places.items() if place == name}
        wrong = sorted(wanted ^ shard.keys())
        if wrong:
            raise ModelError(
                f"{index.with_name(name)}: {len(wrong)} tensors differ from the index, first {', '.join(wrong[:SHOWN])}"
            )
        state |= shard
    return state


def _is_shard(index: Path, name: str) -> bool:
    try:
        return Path(name).name == name and not name.endswith(".json") and index.with_name(name).is_file()
    except ValueError:  # no name that a file can have
        return False


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ModelError(f"{path} is not a safetensors file: {error}") from None


def _read_pickle(path: Path) -> dict[str, Tensor]:
    path.open("rb").close()  # what fails later is no matter of access: a file that was cut off may give any OSError
    try:
        # Files of before PyTorch 1.6 are no archives, and cannot be mapped into memory.
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        if isinstance(found, dict) and isinstance(found.get(NESTED), dict):
            found = found[NESTED]
        plain = isinstance(found, dict) and all(isinstance(name, str) and _plain(t) for name, t in found.items())
    except pickle.UnpicklingError:
        reason = "nothing else is opened, because it could run code"
        raise ModelError(f"{path} is not a file of tensors alone: {reason}") from None
    except Exception as error:  # A damaged pickle fails wherever the damage is.
        raise ModelError(
            f"{path} is not a file of tensors alone, or damaged: {(str(error) or repr(error)).splitlines()[0]}"
        ) from None
    if not plain:
        held = ", ".join(map(str, list(found)[:SHOWN])) if isinstance(found, dict) else type(found).__name__
        raise ModelError(f"{path} does not map names to tensors, it holds {held}: save the network's state dict alone")
    return found


def _plain(t: object) -> bool:
    return isinstance(t, Tensor) and not t.is_nested and t.layout == torch.strided and t.device.type == "cpu"
