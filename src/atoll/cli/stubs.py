# SPDX-License-Identifier: Apache-2.0
"""``atoll stubs``: a typed client of a service, for editors and type checkers."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ManifestError
from .output import console


def stubs(
    source: Annotated[str, typer.Argument(help="A .py file, a folder with a service.yaml, or package.module[:Class].")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file to write; NAME_client.py beside the service if not given."),
    ] = None,
    stdout: Annotated[bool, typer.Option("--stdout", help="Print it, and write nothing.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit with 1 if the file is out of date.")
    ] = False,
) -> None:
    """Write a typed client of a service, so that its functions complete and type-check in an editor.

    Read from the service's text alone: nothing is built or run.
    """
    from ..client.stubs import client_file, client_module, is_client

    if stdout and check:
        raise typer.BadParameter("--stdout and --check: choose one of them")
    file = output if output is not None else Path(client_file(source))
    text = client_module(source, os.fspath(file))
    if stdout:
        sys.stdout.write(text)
        return
    try:
        current = file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        current = None
    except OSError as error:
        raise ManifestError(f"{file} cannot be read: {error.strerror}") from error
    if check:
        if current != text:
            state = "out of date" if current is not None else "not there"
            console(stderr=True).print(f"{file} is {state}: run atoll stubs {source}", soft_wrap=True)
            raise typer.Exit(1)
        console().print(f"✓ {file} is up to date", soft_wrap=True)
        return
    if current == text:
        console().print(f"✓ {file} was up to date", soft_wrap=True)
        return
    if current is not None and not is_client(current):
        raise ManifestError(f"{file} was not written by atoll stubs: move it away, or choose another file with -o")
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ManifestError(f"{file} cannot be written: {error.strerror}") from error
    console().print(f"✓ {file} written", soft_wrap=True)
