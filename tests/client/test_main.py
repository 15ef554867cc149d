# SPDX-License-Identifier: Apache-2.0
"""Where a program may come from: a script without a main guard, a pipe, a notebook. A worker never runs it again."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conditions import WITHIN, run_python

SCRIPT = """\
import sys, os
print("main runs", os.getpid() == int(sys.argv[1]) if len(sys.argv) > 1 else "once")
import atoll

@atoll.function
def f(x):
    import sys
    main = sys.modules["__main__"]
    return x + 1, "atoll" in sys.modules, hasattr(main, "f"), __name__

print(f(1))
"""


def test_a_script_without_a_main_guard(tmp_path: Path) -> None:
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)
    done = run_python(file)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["main runs once", "(2, False, False, '__main__')"]
    assert done.stderr == ""


@pytest.mark.parametrize("how", ["-c", "-"])
def test_code_that_is_in_no_file_is_a_clear_error(how: str) -> None:
    code = "import atoll\n@atoll.function\ndef f(x):\n    return x\nprint(f(1))\n"
    arguments, given = (["-c", code], None) if how == "-c" else (["-"], code)
    done = subprocess.run([sys.executable, *arguments], input=given, capture_output=True, text=True, timeout=2 * WITHIN)
    if sys.version_info >= (3, 13) and done.returncode == 0:  # which keeps the text of -c
        assert done.stdout == "1\n"
        return
    assert done.returncode == 1
    assert "FunctionSourceError: the source of 'f' cannot be read" in done.stderr
    assert "define it in a file or a notebook's cell" in done.stderr


CELLS = [
    "import atoll\nimport logging\n\n@atoll.function\ndef halve(x):\n    # in a cell\n    return 10 / x",
    "halve(4)",
    "await halve.aio(5)",
    "list(halve.map([1, 2])), halve.submit(10).result()",
    "halve(0)",
    "@atoll.function\ndef halve(x):\n    return x // 2",
    "halve(9)",
    "atoll.shutdown()",
]


EXECUTE = """\
import json, sys
import nbclient, nbformat, traitlets.config

notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in json.loads(sys.argv[1])])
notebook.cells[4].metadata["tags"] = ["raises-exception"]
notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
# By sockets in the file system: ports that are free when they are chosen may not be any more when they are taken.
config = traitlets.config.Config(KernelManager={"transport": "ipc"})
nbclient.NotebookClient(notebook, timeout=120, startup_timeout=120, config=config).execute()
print(json.dumps([cell.outputs for cell in notebook.cells]))
"""


@pytest.mark.slow
def test_a_notebook(tmp_path: Path) -> None:
    """Functions defined in cells work, awaited on the notebook's own loop too; an error shows the cell's line."""
    for module in ("nbclient", "nbformat", "ipykernel"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    (tmp_path / "execute.py").write_text(EXECUTE)
    done = run_python(tmp_path / "execute.py", json.dumps(CELLS), timeout=300)
    assert done.returncode == 0, done.stderr
    cells = json.loads(done.stdout)
    results = [
        [output["data"]["text/plain"] for output in outputs if output["output_type"] == "execute_result"]
        for outputs in cells
    ]
    assert results == [[], ["2.5"], ["2.0"], ["([10.0, 5.0], 1.0)"], [], [], ["4"], []]
    (error,) = [output for output in cells[4] if output["output_type"] == "error"]
    assert error["ename"] == "ZeroDivisionError"
    plain = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error["traceback"]))
    assert "return 10 / x" in plain
    assert "worker of 'halve'" in plain


def test_a_notebook_like_cell_has_its_lines_in_the_cache() -> None:
    """What IPython does for every cell: the text is in ``linecache`` under a made-up file name."""
    import linecache

    import atoll

    text = "def cell(x):\n    y = x\n    return 1 / y\n"
    filename = "<cell 7>"
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    namespace: dict[str, object] = {"__name__": "__main__"}
    exec(compile(text, filename, "exec"), namespace)
    function = atoll.function(namespace["cell"])  # type: ignore[call-overload]
    assert function(2) == 0.5
    with pytest.raises(ZeroDivisionError) as caught:
        function(0)
    assert 'File "<cell 7>", line 3, in cell\n    return 1 / y' in caught.value.remote_traceback  # type: ignore[attr-defined]
    linecache.cache.pop(filename)
