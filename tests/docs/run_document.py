# SPDX-License-Identifier: Apache-2.0
"""Runs a document's Python blocks as one program, each compiled like a notebook's cell: top-level ``await`` is allowed.

Arguments: a JSON file with the blocks (first line in the document, text), the document's program as a file whose line
numbers are the document's, and a JSON file to write what each line printed to. A program of its own, so that the test's
process has nothing to do with what the document does.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import faulthandler
import inspect
import json
import sys
from pathlib import Path
from typing import Any

from atoll.pool import escalation as ladder


def main() -> None:
    """Run the program. If it hangs, say where, before whoever started it gives up."""
    faulthandler.dump_traceback_later(150, exit=True)
    ladder._INTERRUPTION = 3600.0  # a busy machine costs no worker that is told to end its call
    blocks = json.loads(Path(sys.argv[1]).read_text())
    program, report = sys.argv[2], Path(sys.argv[3])
    printed: dict[int, list[str]] = {}
    real_print = builtins.print

    def recording_print(*values: Any, sep: str | None = " ", **options: Any) -> None:
        frame = sys._getframe(1)
        if frame.f_code.co_filename == program:
            printed.setdefault(frame.f_lineno, []).append((" " if sep is None else sep).join(map(str, values)))
        real_print(*values, sep=sep, **options)

    builtins.print = recording_print  # type: ignore[assignment]
    names: dict[str, Any] = {"__name__": "__main__", "__file__": program, "__builtins__": builtins}
    with asyncio.Runner() as runner:
        for first_line, text in blocks:
            padded = "\n" * (first_line - 1) + text
            code = compile(padded, program, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            if code.co_flags & inspect.CO_COROUTINE:
                runner.run(eval(code, names))
            else:
                exec(code, names)
    report.write_text(json.dumps(printed))


if __name__ == "__main__":
    main()
