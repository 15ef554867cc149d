# SPDX-License-Identifier: Apache-2.0
"""What a build shows while it runs: a live line where somebody watches, one log line at start and end elsewhere.

What always holds here: stdout is never touched; without rich, or without a terminal, everything still works. What
does not belong here: deciding what happens.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from types import TracebackType
from typing import Any

_log = logging.getLogger("atoll.environments")
# Two displays would draw over each other: the second build at a time, in another thread, is told of in plain form.
_display = threading.Lock()


class Progress:
    """One build, from its first stage to its end. The plain form: a log line at start and end.

    Args:
        title: what is being built, for whom.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.stage_name = ""
        self.started = time.monotonic()

    def stage(self, name: str) -> None:
        """A new stage begins."""
        self.stage_name = name

    def line(self, text: str) -> None:
        """uv said something."""
        _log.debug("%s: %s: %s", self.title, self.stage_name, text)

    def done(self, summary: str) -> None:
        """It is ready."""
        _log.info("%s: %s in %.1f s", self.title, summary, self.elapsed)

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.started

    def __enter__(self) -> Progress:
        _log.info("%s: preparing", self.title)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            _log.info("%s: failed in %.1f s while %s", self.title, self.elapsed, self.stage_name or "beginning")


class _LiveProgress(Progress):
    """The form for a terminal: stage, elapsed time and uv's last words on lines that redraw themselves."""

    def __init__(self, title: str, rich: Any) -> None:
        super().__init__(title)
        console, live, spinner, self._text = rich
        self._console = console(stderr=True)
        self._spinner = spinner("dots")
        self._words = ""
        self._live = live(self, console=self._console, refresh_per_second=10, transient=True, redirect_stdout=False)

    def line(self, text: str) -> None:
        self._words = text

    def done(self, summary: str) -> None:
        super().done(summary)
        self._live.stop()
        self._console.print(self._text(f"✓ {self.title}: {summary} in {self.elapsed:.1f} s"), highlight=False)

    def __rich__(self) -> Any:
        words = f"\n  {self._words}" if self._words else ""
        self._spinner.update(text=self._text(f"{self.title}: {self.stage_name} ({self.elapsed:.0f} s){words}"))
        return self._spinner

    def __enter__(self) -> Progress:
        super().__enter__()
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()
        _display.release()
        super().__exit__(kind, error, traceback)


def build_progress(title: str, wanted: bool | None) -> Progress:
    """The form for these circumstances, to be entered at once.

    Args:
        title: what is being built.
        wanted: live or not; None asks whether stderr is a terminal.
    """
    if wanted or (wanted is None and sys.stderr is not None and sys.stderr.isatty()):
        try:
            from rich.console import Console
            from rich.live import Live
            from rich.spinner import Spinner
            from rich.text import Text
        except ImportError:
            return Progress(title)
        if not _display.acquire(blocking=False):
            return Progress(title)
        return _LiveProgress(title, (Console, Live, Spinner, Text))
    return Progress(title)
