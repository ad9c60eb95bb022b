"""A piece of work in a process of its own, and how far its memory rose above where it began."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ntkprobe.models.memory import return_freed_memory


def alone(script: str, *arguments: str) -> dict[str, Any]:
    """Return what `script` prints as its last line, in JSON, when run in a fresh process."""
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == -signal.SIGKILL:  # the system's way when memory runs out
        return {"failed": "killed: it took more memory than there is"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["killed"])[-1][:200]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def peak(work: Callable[[], Any]) -> tuple[Any, int]:
    """Return what the work gave, and the bytes of resident memory that it took at its highest.

    Freed memory is first given back to the system: what building the model left would hide some.
    """
    return_freed_memory()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins here
    before = _status("VmRSS")
    found = work()
    return found, _status("VmHWM") - before


def _status(field: str) -> int:
    """Return a field of the process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))
