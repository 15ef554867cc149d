# SPDX-License-Identifier: Apache-2.0
"""``atoll manifest``: the form of ``service.yaml``, and whether one is right."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from ..environments import environment_request
from ..manifest import load_spec, manifest_schema
from ..manifest.sources import mistyped
from .output import console, print_json

manifest = typer.Typer(help="The form of service.yaml, and checks of one.", no_args_is_help=True)


@manifest.command("schema")
def schema_command() -> None:
    """JSON Schema of service.yaml, for editors and programs."""
    print_json(manifest_schema())


@manifest.command("check")
def check_command(
    source: Annotated[str, typer.Argument(help="A service.yaml, its folder, a .py file, or package.module[:Class].")],
) -> None:
    """Check a manifest or header, and say what it came to. Nothing is built or run."""
    logging.getLogger("atoll.manifest").addHandler(logging.NullHandler())  # what it warns of is printed below
    spec = load_spec(source)
    request = environment_request(spec)
    out = console()
    known = "" if spec.folder is not None else " (a module; not looked up until a worker starts)"
    out.print(f"✓ {spec.name}: {spec.entry}{known}", soft_wrap=True)
    out.print(f"  environment: {request}", soft_wrap=True)
    for key in spec.extra:
        near = mistyped(key)
        if near is not None:
            out.print(f"! {key}: not a key that atoll knows, so it has no effect; did you mean {near}?", soft_wrap=True)
        elif key == "dependencies":
            out.print(f"  {key}: names other services, which are kept for the server", soft_wrap=True)
        else:
            out.print(f"  {key}: kept", soft_wrap=True)
