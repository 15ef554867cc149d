# SPDX-License-Identifier: Apache-2.0
"""Makes ``benchmarks`` importable: it is part of the repository, not of what is installed."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
