# SPDX-License-Identifier: Apache-2.0
"""What the figures were measured on: processor, kernel, interpreter, and how busy the machine was
otherwise.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.placement import processors

UNKNOWN = "unknown"


def describe_machine(python: Path) -> dict[str, Any]:
    """The description that stands beside the figures. ``python`` is the interpreter that the contenders ran
    under.
    """
    return {
        "processor": _processor_model(),
        "cores": os.cpu_count(),
        "usable_cores": len(processors()),
        "virtual_machine": "hypervisor" in _read("/proc/cpuinfo"),
        "memory_gib": _memory_gib(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or "not readable",
        "system": platform.system(),
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()).strip() or UNKNOWN,
        "python": _first_line([str(python), "-VV"]),
        "compiler": _first_line([os.environ.get("CC", "cc"), "--version"]),
        "load_average": list(os.getloadavg()),
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _processor_model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return found.group(1) if found else platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    found = re.search(r"^MemTotal:\s*(\d+) kB$", _read("/proc/meminfo"), re.MULTILINE)
    return round(int(found.group(1)) / 2**20, 1) if found else None


def _first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return UNKNOWN
    return (done.stdout.strip() or UNKNOWN).splitlines()[0]
