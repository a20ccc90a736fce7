"""The work folder of a recipe: what its finished stages made, and how long they took."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from safetensors.torch import load_file, save
from torch import nn

from varsearch.errors import UsageError
from varsearch.files import write_atomically

Module = TypeVar("Module", bound=nn.Module)


class Work:
    """Keeps the network of every finished stage.

    Args:
        folder: made if there is none.
        belongs: what is trained, and on what; a folder never mixes two.

    Raises:
        UsageError: the folder is of another training.
    """

    def __init__(self, folder: Path, belongs: str) -> None:
        self.folder = folder
        mark, self.clock = folder / "belongs.txt", folder / "minutes.json"
        if mark.exists() and mark.read_text() != belongs:
            raise UsageError(f"{folder} holds another training ({mark.read_text()}): name another folder with --work")
        write_atomically(mark, belongs)

    @property
    def minutes(self) -> dict[str, float]:
        """Wall-clock minutes of every finished stage."""
        return json.loads(self.clock.read_text()) if self.clock.exists() else {}

    def kept(self, name: str, empty: Callable[[], Module]) -> Module | None:
        """The network of a finished stage, in evaluation mode, or None."""
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            return None
        network = empty()
        network.load_state_dict(load_file(path))
        return network.eval()

    def keep(self, name: str, network: nn.Module, seconds: float) -> None:
        """Writes the network of a stage that is now finished."""
        write_atomically(self.clock, json.dumps(self.minutes | {name: seconds / 60}))
        state = {key: tensor.detach().cpu().contiguous() for key, tensor in network.state_dict().items()}
        write_atomically(self.folder / f"{name}.safetensors", save(state))
