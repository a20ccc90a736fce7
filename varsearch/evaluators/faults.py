"""What a device can do to a process: run out of memory, which passes, or end its context, which does not."""

from __future__ import annotations

import gc

import torch


class DeviceLost(Exception):
    """The GPU's context of this process is beyond use: every later call would fail. The process has to end."""


def is_fatal(error: BaseException) -> bool:
    """Whether `error`, or what it came from, leaves the device unusable for this process."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, torch.AcceleratorError) or (
            isinstance(seen, RuntimeError)
            and not isinstance(seen, torch.OutOfMemoryError)
            and ("CUDA error" in str(seen) or "device-side assert" in str(seen))
        ):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def out_of_memory() -> str:
    """What a policy that ran out of a GPU's memory needed, in one line; to be asked before `clean`."""
    peak, (free, whole) = torch.cuda.max_memory_allocated(), torch.cuda.mem_get_info()
    return (
        f"out of GPU memory: {peak:,} bytes were in use when more were asked for, of {whole:,} in all "
        f"({free:,} were free): a smaller --batch-size, or a policy that keeps less"
    )


def clean() -> None:
    """Gives back what PyTorch keeps of a GPU's memory, so that the next policy finds all of it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
