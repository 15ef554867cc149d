# SPDX-License-Identifier: Apache-2.0
"""The ``atoll`` command.

The rooms: ``app`` (the command tree and how it ends), ``env``, ``manifest``, ``doctor``, ``serve``,
``stacks`` and ``stubs`` (one command, or group of them, each), ``checks`` (what doctor looks at), ``output`` (how
errors, tables and sizes are printed).

What always holds here: commands hold no rules, they print what the layers below say; an ``AtollError`` is a message,
never a traceback. Nothing of typer or rich is imported before it is known that they are installed.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    """Run the command line of this process and give its exit status.

    0: done; 1: an error, or ``doctor`` found something that stops atoll from working; 2: wrong usage, or the command
    line's own packages are missing; 130: interrupted.
    """
    try:
        import rich
        import typer
    except ImportError as error:
        print(
            f'the atoll command needs {error.name}, which is not installed: pip install "atoll[cli]"', file=sys.stderr
        )
        return 2
    del rich, typer
    from .app import run

    return run()
