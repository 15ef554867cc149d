# SPDX-License-Identifier: Apache-2.0
"""The tree of commands, and how the command ends."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from ..errors import AtollError
from .doctor import doctor
from .env import env
from .extension import extension
from .manifest import manifest
from .output import print_error
from .serve import serve
from .stacks import stacks
from .stubs import stubs

app = typer.Typer(
    name="atoll",
    help="Any Python code in its own process, with its own packages and interpreter.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(env, name="env")
app.add_typer(extension, name="extension")
app.add_typer(manifest, name="manifest")
app.command()(doctor)
app.command()(serve)
app.command()(stacks)
app.command()(stubs)


def _version(wanted: bool) -> None:
    if wanted:
        from atoll import __version__

        print(f"atoll {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that come before any command."""


def run() -> int:
    """Run the command that this process was started with."""
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # here, where what it fails with is still ours to tell
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except AtollError as error:
        print_error(error)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`atoll env list | head`); Python would complain once more at its exit.
        _forget_output()
        return 1
    except OSError as error:  # such as a full disk that stdout goes to
        print_error(error)
        _forget_output()
        return 1
    return 0


def _forget_output() -> None:
    """Let what is left in stdout's buffer go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
