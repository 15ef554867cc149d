# SPDX-License-Identifier: Apache-2.0
"""Starts what the catalogue names: the floor's two processes, or a peer in a host process."""

from __future__ import annotations

from pathlib import Path

from benchmarks.catalogue import FLOOR, Entry
from benchmarks.contender import ROOT, Contender, Measured
from benchmarks.floor import Floor, compile_floor
from benchmarks.placement import chosen_processors

BUILD = ROOT / ".build"


def start(entry: Entry, python: Path) -> Measured:
    """Starts one contender under the given interpreter. Raises ContenderError, FloorError or
    PlacementError.
    """
    if entry.peer == FLOOR:
        caller, far_side = chosen_processors(entry.placement)
        return Floor(compile_floor(BUILD / "benchmarks"), caller, far_side)
    log = BUILD / "benchmarks" / f"{entry.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    return Contender(python, entry.peer, placement=entry.placement, environment=dict(entry.environment), log=log)
