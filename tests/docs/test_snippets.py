# SPDX-License-Identifier: Apache-2.0
"""Every snippet of the README and the docs runs, and prints what it says it prints.

A Python or YAML block whose first line is ``# some/path.py`` is that file. The other Python blocks of a document are
one program, run in order. A comment behind a ``print``, or on the lines below it, is what it prints; ``…`` stands for
anything, and ``: `` may introduce an explanation. ``$ atoll …`` lines of console blocks must succeed.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tokenize
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [pytest.mark.network, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
RUNNER = Path(__file__).with_name("run_document.py")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# ([\w./-]+\.(?:py|ya?ml))\n")


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, the line its text begins at, its text."""

    language: str
    line: int
    text: str

    @property
    def file(self) -> str | None:
        """The file it is, if its first line says so."""
        found = _FILE.match(self.text)
        return found[1] if found and self.language in ("python", "yaml") else None


def blocks_of(document: Path) -> list[Block]:
    """All fenced blocks of a document."""
    text = document.read_text()
    return [
        Block(found[1], text.count("\n", 0, found.start(2)) + 1, found[2])
        for found in _FENCE.finditer(text)
        if found[1]
    ]


def matches(expected: str, printed: str) -> bool:
    """Whether a comment says what was printed: all of it, or up to a colon that introduces an explanation."""
    ends = [len(expected), *(found.start() for found in re.finditer(": ", expected))]
    for end in ends:
        pattern = ".*".join(re.escape(" ".join(part.split())) for part in re.split(r"\s*…\s*", expected[:end]))
        if re.fullmatch(pattern.replace("\\ ", r"\s*"), " ".join(printed.split())):
            return True
    return False


def test_matching_can_fail() -> None:
    assert matches("3", "3")
    assert matches("('2.…', 0.816…): one program", "('2.3.5', 0.81649)")
    assert matches("{'found': 2}", "{'found': 2}")
    assert not matches("3", "4")
    assert not matches("('2.…', 0.816…)", "('1.26', 0.8165)")
    assert not matches("run", "running")
    assert not matches("{'found': 2}", "{'found': 3}")


def expectations(text: str) -> dict[int, str]:
    """Line of a statement that prints -> what its comment, behind it or on the lines below, says it prints."""
    comments: dict[int, str] = {}
    alone: set[int] = set()
    prints: dict[int, int] = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        line = token.start[0]
        if token.type == tokenize.COMMENT:
            comments[line] = token.string.lstrip("# ")
            if token.line.lstrip().startswith("#"):
                alone.add(line)
        elif token.type == tokenize.NAME and token.string == "print" and token.line.lstrip().startswith("print("):
            prints[line] = line
    found = {}
    for line in prints:
        if line in comments:
            found[line] = comments[line]
        else:
            below = []
            while line + 1 + len(below) in alone:
                below.append(comments[line + 1 + len(below)])
            if below:
                found[line] = " ".join(below)
    return found


def program_of(document: Path) -> list[Block]:
    """The Python blocks that are run."""
    return [block for block in blocks_of(document) if block.language == "python" and block.file is None]


def write_files(document: Path, folder: Path) -> None:
    """The files that a document shows."""
    for block in blocks_of(document):
        if block.file is not None:
            file = folder / block.file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)


@pytest.mark.parametrize("document", [one for one in DOCUMENTS if program_of(one)], ids=lambda path: path.name)
def test_a_document(document: Path, tmp_path: Path) -> None:
    write_files(document, tmp_path)
    program = program_of(document)
    lines = [""] * max(block.line + block.text.count("\n") for block in program)
    for block in program:
        lines[block.line - 1 : block.line - 1 + block.text.count("\n")] = block.text.splitlines()
    text = "\n".join(lines) + "\n"
    file = tmp_path / (document.stem.replace("-", "_") + "_document.py")
    file.write_text(text)
    (tmp_path / "blocks.json").write_text(json.dumps([(block.line, block.text) for block in program]))
    done = subprocess.run(
        [sys.executable, str(RUNNER), "blocks.json", str(file), "printed.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, f"{document.name} (line numbers are the document's):\n{done.stdout}\n{done.stderr}"
    assert "--- Logging error ---" not in done.stderr
    printed = {int(line): texts for line, texts in json.loads((tmp_path / "printed.json").read_text()).items()}
    wrong = []
    for line, expected in expectations(text).items():
        texts = printed.get(line, [])
        if len(texts) != 1 or not matches(expected, texts[0]):
            wrong.append(f"{document.name}:{line}: says {expected!r}, printed {texts!r}")
    assert not wrong, "\n".join(wrong)


COMMANDS = [
    pytest.param(document, line[2:], id=f"{document.name}: {line[2:]}")
    for document in DOCUMENTS
    for block in blocks_of(document)
    if block.language == "console"
    for line in block.text.splitlines()
    if line.startswith("$ atoll ")
]


@pytest.mark.parametrize(("document", "command"), COMMANDS)
def test_a_command(document: Path, command: str, tmp_path: Path) -> None:
    write_files(document, tmp_path)
    environ = {**os.environ, "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]}
    done = subprocess.run(
        ["/bin/sh", "-c", command], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()


def test_there_is_something_to_run() -> None:
    """The documents are found and read; most of what the README and the tutorial show is checked."""
    counts = {
        document.name: sum(len(expectations(block.text)) for block in blocks_of(document) if block.language == "python")
        for document in DOCUMENTS
    }
    assert counts["README.md"] >= 4
    assert counts["tutorial.md"] >= 10
    assert COMMANDS
