# SPDX-License-Identifier: Apache-2.0
"""``atoll env``: the environments in the cache."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from ..environments import cache_folder
from ..environments.upkeep import (
    EnvironmentInfo,
    list_environments,
    prune_environments,
    rebuild_environment,
    show_environment,
)
from .output import ago_text, console, print_json, size_text

env = typer.Typer(help="List, show, prune and rebuild the environments in the cache.", no_args_is_help=True)

_Key = Annotated[str, typer.Argument(help="The environment's key, or an unambiguous part of it.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Offline = Annotated[bool, typer.Option("--offline", help="Fetch nothing.")]


@env.command("list")
def list_command(as_json: _Json = False) -> None:
    """Environments in the cache, the last used first."""
    found = list_environments()
    if as_json:
        print_json([asdict(one) for one in found])
        return
    out = console()
    if not found:
        out.print(f"no environments in {cache_folder()}", soft_wrap=True)
        return
    table = Table(box=None, pad_edge=False)
    for heading, justify in (("key", "left"), ("packages", "right"), ("size", "right"), ("last used", "left")):
        table.add_column(heading, justify="right" if justify == "right" else "left", no_wrap=True)
    table.add_column("for", overflow="ellipsis", no_wrap=True)
    for one in found:
        used = "in use" if one.in_use else ago_text(one.last_used)
        table.add_row(one.key, str(len(one.packages)), size_text(one.size), used, _purpose(one))
    if not out.is_terminal:
        out.width = 10_000  # whoever reads a pipe wants a line for each; a terminal cuts at its edge
    out.print(table)
    out.print(f"{len(found)} in {cache_folder()}, {size_text(sum(one.size for one in found))}", soft_wrap=True)


def _purpose(one: EnvironmentInfo) -> str:
    """What an environment is for, on one line of bounded length; ``show`` says all of it."""
    if not one.requests:
        return "nothing"
    first = one.requests[0] if len(one.requests[0]) <= 60 else one.requests[0][:59] + "…"
    return first if len(one.requests) == 1 else f"{first} and {len(one.requests) - 1} more"


@env.command("show")
def show_command(key: _Key, as_json: _Json = False) -> None:
    """One environment: what it is for, where it is, its packages and its lock."""
    one = show_environment(key)
    if as_json:
        print_json(asdict(one))
        return
    out = console()
    used = "in use now" if one.in_use else f"last used {ago_text(one.last_used)}"
    lines = [
        f"key       {one.key}",
        f"path      {one.path}",
        f"python    {one.python}",
        f"size      {size_text(one.size)}, built {ago_text(one.built)}, {used}",
        *(f"for       {request}" for request in one.requests or ("nothing",)),
        f"packages  {len(one.packages)}",
        *(f"    {name}=={version}" for name, version in one.packages.items()),
        "lock",
        *(f"    {line}" for line in one.lock.splitlines()),
    ]
    out.print("\n".join(lines), soft_wrap=True)


@env.command("prune")
def prune_command(
    keys: Annotated[list[str] | None, typer.Argument(help="Keys (or parts of them) to remove.")] = None,
    unused_days: Annotated[
        float | None, typer.Option("--unused", min=0, help="Remove those not opened for so many days.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove all that are not in use.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Remove environments, never one that is in use. Without options: only what killed builders left behind."""
    if everything and keys:
        raise typer.BadParameter("--all removes every environment that is not in use; give it or keys, not both")
    whole = [show_environment(key).key for key in keys or ()]
    done = prune_environments(unused_days=unused_days, keys=whole, everything=everything, dry_run=dry_run)
    out = console()
    verb = "would remove" if dry_run else "removed"
    for key in done.removed:
        out.print(f"{verb} {key}", soft_wrap=True)
    for key in done.kept:
        out.print(f"kept {key}: in use", soft_wrap=True)
    out.print(
        f"{verb} {len(done.removed)} environments ({size_text(done.size)}) and {done.leftovers} leftovers",
        soft_wrap=True,
    )
    if whole and done.kept:
        raise typer.Exit(1)


@env.command("rebuild")
def rebuild_command(
    key: _Key,
    resolve: Annotated[
        bool, typer.Option("--resolve", help="Resolve its requests anew instead of installing the same lock again.")
    ] = False,
    offline: _Offline = False,
) -> None:
    """Build an environment again."""
    done = rebuild_environment(key, resolve_anew=resolve, offline=offline or None)
    for key in sorted({one.key for one in done}):
        console().print(f"ready {key}", soft_wrap=True)
