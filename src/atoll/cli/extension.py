# SPDX-License-Identifier: Apache-2.0
"""``atoll extension``: whether a pack of nodes can run isolated."""

from __future__ import annotations

from typing import Annotated

import typer

from .output import console, print_json

extension = typer.Typer(help="Packs of nodes that run isolated.", no_args_is_help=True)


@extension.callback()
def _group() -> None:
    """Packs of nodes that run isolated."""


@extension.command("check")
def check_command(
    pack: Annotated[str, typer.Argument(help="The pack's folder, or its .py file.")],
    module: Annotated[
        list[str] | None,
        typer.Option(help="A module that the host will offer to the pack, such as folder_paths. May be repeated."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Say what of a pack of nodes can run isolated, and why not. Read from its text: nothing is built or run.

    Ends with status 1 if something in it cannot.
    """
    from ..extensions.check import check_pack

    report = check_pack(pack, module or ())
    if json:
        print_json(
            {
                "path": report.path,
                "can_be_isolated": report.can_be_isolated,
                "nodes": report.nodes,
                "findings": [finding._asdict() for finding in report.findings],
            }
        )
    else:
        out = console()
        signs = {"yes": "✓", "look": "!", "no": "✗"}
        for node, level in report.nodes.items():
            out.print(f"{signs[level]} {node}", soft_wrap=True)
        for finding in report.findings:
            of = f" ({finding.node})" if finding.node else ""
            out.print(f"{signs[finding.level]} {finding.place}{of}: {finding.text}", soft_wrap=True)
        counts = {level: list(report.nodes.values()).count(level) for level in signs}
        out.print(
            f"of {len(report.nodes)} nodes, {counts['yes'] + counts['look']} can run isolated, "
            f"{counts['look']} of them with a look at what is said above; {counts['no']} cannot as they are",
            soft_wrap=True,
        )
    if not report.can_be_isolated:
        raise typer.Exit(1)
