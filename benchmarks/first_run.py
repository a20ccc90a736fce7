"""The first run on a GPU, one command of at most nine minutes: `python -m benchmarks.first_run [OPTIONS]`.

Each step of `first_run_steps.py` is a process of its own with a limit, because an error of a GPU's context ends the
process that has it. Every step appends one JSON line to `first_run.jsonl` and its output to `log.txt`; one that fails
does not stop the next. `--small` runs all of it on this machine's CPU with tiny models: what it prints is no result,
and shows that the steps work.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.first_run_steps import STEPS

OUT = Path(__file__).parent / "results"


def run_step(name: str, limit: float, small: bool, out: Path) -> dict[str, Any]:
    """One step in its own process: what it found, or why it found nothing."""
    command = [sys.executable, "-m", "benchmarks.first_run_steps", name, *(["--small"] if small else [])]
    started = time.monotonic()
    with (out / "log.txt").open("a", encoding="utf-8") as log:
        print(f"== {name}", file=log, flush=True)
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True, timeout=limit, check=False)
            told, code = done.stdout, done.returncode
        except subprocess.TimeoutExpired as error:
            told = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
            code = None
        log.write(told)
    found: dict[str, Any] = {"step": name, "code": code, "seconds": round(time.monotonic() - started, 1)}
    # Steps print each part when they have it, so that one that was cut short leaves what it found.
    for line in told.splitlines():
        if line.startswith("{"):
            found |= json.loads(line)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_run")
    parser.add_argument("--only", help="steps by name, with commas; default: all")
    parser.add_argument("--small", action="store_true", help="tiny models on the CPU, to try the steps themselves")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for first_run.jsonl and log.txt")
    parser.add_argument("--slow", type=float, default=1.0, help="factor on all limits, for a busy machine")
    asked = parser.parse_args()
    only = asked.only.split(",") if asked.only else list(STEPS)
    asked.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in only:
        found = run_step(name, STEPS[name].limit_s * asked.slow, asked.small, asked.out)
        with (asked.out / "first_run.jsonl").open("a", encoding="utf-8") as lines:
            print(json.dumps(found), file=lines, flush=True)
        print(json.dumps(found), flush=True)
        if found["code"] != 0:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; see {asked.out / 'log.txt'}")


if __name__ == "__main__":
    main()
