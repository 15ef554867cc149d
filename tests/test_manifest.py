# SPDX-License-Identifier: Apache-2.0
"""Manifests, headers and options: what they come to, and how a wrong one is refused."""

from __future__ import annotations

import inspect
import json
import math
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, get_overloads

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import atoll
from atoll.errors import ManifestError
from atoll.manifest import ServiceSpec, function_spec, load_spec, manifest_schema
from atoll.manifest.script_header import header_text
from atoll.manifest.sources import DOCUMENTED, MORE_DOCUMENTED
from atoll.manifest.spec import FIELDS

HEADER = """\
#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "six",  # a comment
#     "idna==3.7",
# ]
#
# [tool.uv]
# index = [{url = "https://index.invalid/simple"}]
# find-links = ["wheels"]
#
# [tool.atoll]
# start-timeout = 5
# env_vars = {MODE = "fast"}
# shape = [1, 2]
# ///
raise SystemExit("never run")
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def service(folder: Path, manifest: str) -> Path:
    write(folder / "service.py", "")
    return write(folder / "service.yaml", manifest)


def refusal(source: Any, **options: Any) -> str:
    with pytest.raises(ManifestError) as caught:
        load_spec(source, **options)
    return str(caught.value)


# --- files with a header


def test_a_file_without_header(tmp_path: Path) -> None:
    file = write(tmp_path / "vision.py", "x = 1\n")
    assert load_spec(file) == ServiceSpec(name="vision", entry=str(file), folder=str(tmp_path))


def test_a_header_is_read_and_the_file_not_run(tmp_path: Path) -> None:
    file = write(tmp_path / "vision.py", HEADER)
    spec = load_spec(str(file))
    assert spec.python == ">=3.11"
    assert spec.dependencies == ("six", "idna==3.7")
    assert spec.indexes == ("https://index.invalid/simple",)
    assert spec.find_links == (str(tmp_path / "wheels"),)
    assert spec.start_timeout == 5.0
    assert spec.env_vars == {"MODE": "fast"}
    assert spec.extra == {"shape": [1, 2]}


def test_one_class_of_a_file(tmp_path: Path) -> None:
    file = write(tmp_path / "vision.py", HEADER)
    spec = load_spec(f"{file}:Edges")
    assert (spec.name, spec.entry) == ("Edges", f"{file}:Edges")


def test_a_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "sub" / "vision.py", "")
    monkeypatch.chdir(tmp_path)
    assert load_spec("sub/vision.py").entry == str(tmp_path / "sub" / "vision.py")
    assert load_spec("./sub/vision.py").folder == str(tmp_path / "sub")


def test_line_ends_coding_and_byte_order_marks(tmp_path: Path) -> None:
    crlf = tmp_path / "crlf.py"
    crlf.write_bytes(HEADER.replace("\n", "\r\n").encode())
    latin = tmp_path / "latin.py"
    latin.write_bytes(b"# coding: latin-1\n# caf\xe9\n" + HEADER.encode())
    marked = tmp_path / "marked.py"
    marked.write_bytes(b"\xef\xbb\xbf" + HEADER.encode())
    for file in (crlf, latin, marked):
        assert load_spec(file).dependencies == ("six", "idna==3.7")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# /// script\n# x = 1\n# ///\n\n" * 2, ", lines 1 and 5: two `# /// script` blocks, expected at most one"),
        ("# /// script\n# x = 1\n# ///\n" * 2, ", lines 1 and 4: two `# /// script` blocks"),
        ("x = 1\n# /// script\n# x = 1\nimport six\n", ", line 2: `# /// script` is never closed, expected a line"),
        ("# /// script\n# x = 1", ", line 1: `# /// script` is never closed"),
        ("# /// script\n# x = 1\n# /// \n", ", line 1: `# /// script` is never closed"),
        (
            "# /// script\n# x = 1\n#dependencies=['six']\n# ///\n",
            ", line 3: found \"#dependencies=['six']\" in the `# /// script` block of line 1, expected a line that is",
        ),
        ("# /// script\n# x = 1\n\n# y = 2\n# ///\n", ", line 3: found '' in the `# /// script` block"),
        ("# /// script\n# x = = 1\n# ///\n", "the PEP 723 header is not TOML"),
        (
            "# /// script\n# dependencies = 'six'\n# ///\n",
            "key dependencies: found 'six', expected a list of requirements",
        ),
        (
            "# /// script\n# requires-python = 3.12\n# ///\n",
            "key requires-python: found 3.12 (a number), expected a version",
        ),
        ("# /// script\n# [tool.atoll]\n# timeout = nan\n# ///\n", "key [tool.atoll] timeout: found nan"),
        ("# /// script\n# [tool]\n# atoll = 3\n# ///\n", "key tool.atoll: found 3, expected a table"),
    ],
)
def test_wrong_headers(tmp_path: Path, text: str, expected: str) -> None:
    file = write(tmp_path / "vision.py", text)
    message = refusal(file)
    assert message.startswith((f"{file}: ", f"{file}, line"))
    assert expected in message


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as a Python file" in refusal(tmp_path / "x.py")


def test_missing_sources(tmp_path: Path) -> None:
    assert "there is no such file" in refusal(tmp_path / "none.py")
    assert "there is no such file" in refusal(tmp_path / "service.yaml")
    assert "a folder without a service.yaml" in refusal(tmp_path)
    assert "there is nothing at" in refusal("no/where")
    assert "another kind of file" in refusal(write(tmp_path / "x.txt", ""))
    assert "expected a file, a folder or a module" in refusal("")


# The parser that PEP 723 itself gives as the reference, for comparison.
_REFERENCE = r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$"

_LINES = st.sampled_from(
    ["# /// script", "# /// other", "# ///", "# a = 1", "#", "#b", "# ", "", "x = 1", "# /// script ", " # ///"]
)


@given(st.lists(_LINES, max_size=12))
def test_blocks_are_found_as_the_reference_finds_them(lines: list[str]) -> None:
    text = "\n".join(lines) + "\n"
    blocks = list(re.finditer(_REFERENCE, text))
    expected = [one for one in blocks if one.group("type") == "script"]
    outside = re.sub(_REFERENCE, "", text)
    inside = "".join(one.group("content") for one in expected)
    empty = "# /// script\n# ///\n"
    if len(expected) > 1 or "# /// script\n" in inside or "# /// script\n" in outside.replace(empty, ""):
        with pytest.raises(ManifestError):
            header_text(text)
    elif not expected:
        assert header_text(text) is None
    else:
        found = header_text(text)
        assert found is not None
        assert found.count("\n") == expected[0].group("content").count("\n")


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1), max_size=5))
def test_any_text_in_a_header_survives(values: list[str]) -> None:
    body = "\n".join(f"# key{index} = {json.dumps(value, ensure_ascii=False)}" for index, value in enumerate(values))
    body = body.replace("\x7f", "\\u007f")
    found = header_text(f"# /// script\n{body}\n# ///\n" if body else "# /// script\n#\n# ///\n")
    assert found is not None
    assert list(tomllib.loads(found).values()) == values


# --- service.yaml


def test_a_manifest_of_the_wild_is_kept(tmp_path: Path) -> None:
    service(
        tmp_path / "minimal-sd-api",
        """\
name: minimal-sd-api
description: images from text
port: 8000
gpu_required: true
vram_gb: 8
health_endpoint: /health
dependencies:
  - service: vector-db
    required: false
  - idna==3.7
mcp: {enabled: true, tools: [{name: generate_image}]}
resources: {cpu_limit: "4.0"}
""",
    )
    spec = load_spec(tmp_path / "minimal-sd-api")
    assert spec.name == "minimal-sd-api"
    assert spec.entry == str(tmp_path / "minimal-sd-api" / "service.py")
    assert spec.folder == str(tmp_path / "minimal-sd-api")
    assert spec.dependencies == ("idna==3.7",)
    assert spec.extra == {
        "description": "images from text",
        "port": 8000,
        "gpu_required": True,
        "vram_gb": 8,
        "health_endpoint": "/health",
        "dependencies": [{"service": "vector-db", "required": False}],
        "mcp": {"enabled": True, "tools": [{"name": "generate_image"}]},
        "resources": {"cpu_limit": "4.0"},
    }


def test_relative_paths_are_the_manifests_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "svc"
    write(folder / "src" / "main.py", "")
    write(folder / "requirements.txt", "six")
    write(folder / "lock.txt", "six==1.17.0")
    manifest = write(
        folder / "service.yaml",
        "entry: src/main.py:Vision\nenvironment: requirements.txt\nlock: lock.txt\n"
        "find-links: [wheels, 'https://links.invalid/']\npython: ../python/bin/python\nindexes: [./simple]\n",
    )
    monkeypatch.chdir(tmp_path)
    spec = load_spec("svc/service.yaml")
    assert load_spec(manifest) == spec
    assert spec.name == "svc"
    assert spec.entry == f"{folder}/src/main.py:Vision"
    assert spec.environment == f"{folder}/requirements.txt"
    assert spec.lock == f"{folder}/lock.txt"
    assert spec.find_links == (f"{folder}/wheels", "https://links.invalid/")
    assert spec.indexes == (f"{folder}/simple",)
    assert spec.python == f"{tmp_path}/python/bin/python"


def test_the_folder_is_the_place_of_a_module_entry(tmp_path: Path) -> None:
    write(tmp_path / "service.yaml", "entry: package.module:Vision\ndependencies: [./local]")
    spec = load_spec(tmp_path)
    assert (spec.entry, spec.folder) == ("package.module:Vision", str(tmp_path))
    assert spec.dependencies == (str(tmp_path / "local"),)


def test_a_manifest_goes_before_a_header_and_options_before_both(tmp_path: Path) -> None:
    write(tmp_path / "service.py", HEADER)
    write(tmp_path / "service.yaml", "dependencies: [packaging]\ntimeout: 2\nport: 1")
    spec = load_spec(tmp_path, timeout=9, dependencies=["attrs"])
    assert spec.dependencies == ("attrs",)
    assert spec.timeout == 9.0
    assert spec.python == ">=3.11"
    assert spec.extra == {"shape": [1, 2], "port": 1}


def test_an_environment_given_later_replaces_packages_named_earlier(tmp_path: Path) -> None:
    file = write(tmp_path / "vision.py", HEADER)
    spec = load_spec(file, environment=tmp_path)
    assert spec.environment == str(tmp_path)
    assert (spec.dependencies, spec.indexes, spec.find_links) == ((), (), ())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3, column 1: key 'a' is written twice (first in line 1)"),
        ("a: {b: 1, b: 2}\n", "line 1, column 11: key 'b' is written twice"),
        ("a: [1,\nb: 2\n", "line 3, column 1: expected ',' or ']'"),
        ("\ta: 1\n", "line 1, column 1"),
        ("x: !!python/object:os.system {}\n", "line 1, column 4: could not determine a constructor"),
        ("- a\n", "found list, expected keys and values"),
        ("3: a\n", "key 3: found int, expected text"),
        ("timeout: soon\n", "key timeout: found 'soon', expected a number of seconds above 0"),
        ("timeout: .nan\n", "key timeout: found nan (a number), expected a number of seconds above 0"),
        ("timeout: .inf\n", "key timeout: found inf"),
        ("timeout: -1\n", "key timeout: found -1"),
        ("timeout: 0\n", "key timeout: found 0"),
        ("timeout: true\n", "key timeout: found True (true or false)"),
        ("start-timeout:\n", "key start-timeout: found None, expected a value"),
        ("start_timeout: 1\nstart-timeout: 1\n", "key start-timeout: found 1 (a number), expected the key once"),
        ("python: 3.10\n", "key python: found 3.1 (a number), expected a version"),
        ("python: latest\n", "key python: found 'latest', expected a version"),
        ("dependencies: six\n", "key dependencies: found 'six', expected a list"),
        ("dependencies: [six, 3]\n", "key dependencies[1]: found 3 (a number), expected text"),
        ("dependencies: [-e ./x]\n", "key dependencies[0]: found '-e ./x', expected a requirement, not an option"),
        ("dependencies: ['']\n", "key dependencies[0]: found '', expected a requirement"),
        ("env_vars: {PORT: 80}\n", "key env_vars['PORT']: found 80 (a number), expected text"),
        ("env_vars: {A=B: x}\n", "key env_vars['A=B']: found 'x', expected a name without '='"),
        ("entry: none.py\n", "key entry: found 'none.py', expected a .py file that exists"),
        ("entry: a b\n", "key entry: found 'a b', expected"),
        ("environment: nowhere\n", "key environment: found 'nowhere', expected the path of an interpreter"),
        ("lock: nowhere\n", "key lock: found 'nowhere', expected the path of a lock file"),
        ("name: a/b\n", "key name: found 'a/b', expected text without slashes"),
        ("name: ''\n", "key name: found ''"),
        ("workers: 0\n", "key workers: found 0 (a number), expected a whole number from 1"),
        ("workers: 1.5\n", "key workers: found 1.5 (a number), expected a whole number from 1"),
        ("workers: true\n", "key workers: found True (true or false), expected a whole number from 1"),
        ("workers:\n", "key workers: found None, expected a value (leave the key out for its default)"),
        ("concurrency: two\n", "key concurrency: found 'two', expected a whole number from 1"),
        ("max-queue: -1\n", "key max-queue: found -1 (a number), expected a whole number from 0"),
        (
            "health_interval: 0\n",
            "key health_interval: found 0 (a number), expected a number of seconds above 0, or no",
        ),
        ("preload: numpy\n", "key preload: found 'numpy', expected a list of module names"),
        ("preload: [a.b, a-b]\n", "key preload[1]: found 'a-b', expected the name of a module"),
        ("memory: 2G\n", "key memory: found '2G', expected a number of bytes greater than zero, or text such as"),
        ("memory: 0\n", "key memory: found 0 (a number), expected a number of bytes"),
        ("cpus: .inf\n", "key cpus: found inf (a number), expected a number of processors above 0"),
        ("nice: 20\n", "key nice: found 20 (a number), expected a whole number from -20 to 19"),
        ("open_files: 15\n", "key open_files: found 15 (a number), expected a whole number from 16"),
        (
            "restart: always\n",
            "key restart: found 'always', expected a mapping with backoff, backoff_max, max_restarts",
        ),
        (
            "restart: {backof: 1}\n",
            "key restart.backof: there is no such key; did you mean backoff? (there are: backoff,",
        ),
        ("restart: {backoff-max: 1}\n", "key restart.backoff-max: there is no such key; did you mean backoff_max?"),
        ("restart: {1: 1}\n", "key restart.1: there is no such key (there are: backoff,"),
        (
            "restart: {backoff: .nan}\n",
            "key restart.backoff: found nan (a number), expected a number of seconds from 0",
        ),
        ("restart: {window: .inf}\n", "key restart.window: found inf (a number), expected a number of seconds above 0"),
        (
            "restart: {max_restarts: -1}\n",
            "key restart.max_restarts: found -1 (a number), expected a whole number from 0",
        ),
        ("restart: {backoff: 40}\n", "key restart.backoff: found 40.0 (a number), expected at most backoff_max, which"),
        (
            "restart: {backoff_max: 0.01}\n",
            "key restart.backoff_max: found 0.01 (a number), expected at least backoff, w",
        ),
        ("breaker: {failures: 0}\n", "key breaker.failures: found 0 (a number), expected a whole number from 1"),
        ("breaker: {cooldown: soon}\n", "key breaker.cooldown: found 'soon', expected a number of seconds above 0"),
        ("recycle: {memory_growth: 5x}\n", "key recycle.memory_growth: found '5x', expected a number of bytes"),
        (
            "recycle: {age: 0}\n",
            "key recycle.age: found 0 (a number), expected a number of seconds above 0, or nothing",
        ),
        ("sandbox: true\n", "key sandbox: found True (true or false), expected a mapping with network, read, write"),
        ("sandbox: {network: yes please}\n", "key sandbox.network: found 'yes please', expected true or false"),
        ("sandbox: {read: /data}\n", "key sandbox.read: found '/data', expected a list of files and folders"),
        ("sandbox: {write: ['']}\n", "key sandbox.write[0]: found '', expected the path of a file or folder"),
        ("when: 2024-99-99\n", "month must be in 1..12"),
        ("[" * 2000, "nested too deeply"),
    ],
)
def test_wrong_manifests(tmp_path: Path, text: str, expected: str) -> None:
    manifest = service(tmp_path, text)
    message = refusal(manifest)
    assert message.startswith(str(manifest))
    assert expected in message
    assert len(message) < 600


def test_a_manifest_without_entry_needs_a_file_beside_it(tmp_path: Path) -> None:
    manifest = write(tmp_path / "service.yaml", "port: 1")
    assert f"{manifest}: key entry: not there" in refusal(manifest)


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "service.yaml").write_bytes(b"name: a\nb: \xff\n")
    assert "line 2: not UTF-8: byte 0xff" in refusal(tmp_path)


def test_two_manifests_in_one_folder(tmp_path: Path) -> None:
    service(tmp_path, "")
    write(tmp_path / "service.yml", "")
    assert "found service.yaml and service.yml, expected one of them" in refusal(tmp_path)


def test_anchors_and_merge_keys_work(tmp_path: Path) -> None:
    service(tmp_path, "base: &b {x: 1, y: 2}\nmine: {<<: *b, y: 3}\n")
    assert load_spec(tmp_path).extra["mine"] == {"x": 1, "y": 3}


# --- modules and functions


def test_a_module_is_not_imported() -> None:
    spec = load_spec("this.is_nowhere.module:Vision", dependencies=("six",))
    assert (spec.name, spec.entry, spec.folder) == ("Vision", "this.is_nowhere.module:Vision", None)


def test_a_folder_with_a_manifest_goes_before_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service(tmp_path / "vision", "")
    monkeypatch.chdir(tmp_path)
    assert load_spec("vision").folder == str(tmp_path / "vision")
    assert load_spec("vision.other").entry == "vision.other"


@pytest.mark.parametrize("source", [1, None, b"x.py", ""])
def test_a_source_is_text_or_a_path(source: Any) -> None:
    expected = f"source of atoll.Service: found {source!r}, expected a file, a folder or a module"
    with pytest.raises(ManifestError, match=re.escape(expected)):
        load_spec(source)


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(ManifestError, match=r"option name of atoll\.function: found ''"):
        atoll.function(name="")(lambda: 1)
    with pytest.raises(ManifestError, match=r"option name of atoll\.Service: found ''"):
        atoll.Service("some.module", name="")


def test_the_options_that_messages_list_are_the_documented_ones() -> None:
    parameters = inspect.signature(atoll.Service).parameters.values()
    assert tuple(one.name for one in parameters if one.kind is one.KEYWORD_ONLY) == DOCUMENTED
    with_options = inspect.signature(get_overloads(atoll.function)[-1]).parameters
    assert tuple(with_options) == (*DOCUMENTED, *MORE_DOCUMENTED["atoll.function"])
    with pytest.raises(ManifestError, match="did you mean idempotent"):
        atoll.function(idempotnt=True)(lambda: 1)  # type: ignore[call-overload]
    with pytest.raises(ManifestError, match="did you mean host"):
        atoll.function(hots={})(lambda: 1)  # type: ignore[call-overload]


def test_a_key_that_looks_mistyped_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = service(tmp_path / "vision", "time-out: 3\nport: 80\n")
    load_spec(folder)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("atoll.manifest", "WARNING")
    assert "key time-out: not a key that atoll knows, so it has no effect; did you mean timeout?" in record.message


def test_a_function_has_no_file() -> None:
    spec = function_spec("mean", dependencies=["numpy"], timeout=2)
    assert spec == ServiceSpec(name="mean", entry="", folder=None, dependencies=("numpy",), timeout=2.0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"timeout": "x"}, "option timeout of atoll.function: found 'x', expected a number of seconds above 0"),
        ({"timeout": math.nan}, "option timeout of atoll.function: found nan"),
        (
            {"timeut": 3},
            "(there are: name, dependencies, python, environment, env_vars, start_timeout, timeout, workers,",
        ),
        ({"python": 3.12}, "found 3.12 (a number), expected a version"),
        ({"python": 3.12}, ', in quotes: "3.12"'),
        ({"python": 3.1}, ', in quotes: "3.1" (or "3.10": without quotes they are the same number)'),
        ({"dependencies": ["-r foo.txt"]}, "found '-r foo.txt', expected a requirement; give the file itself as env"),
        ({"timeut": 3}, "option timeut of atoll.function: there is no such option; did you mean timeout?"),
        ({"dependencies": "six"}, "option dependencies of atoll.function: found 'six', expected a list"),
        ({"entry": "x"}, "option entry of atoll.function"),
        ({"env_vars": {"A": 1}}, "option env_vars['A'] of atoll.function: found 1 (a number)"),
        ({"restart": atoll.Restart(backoff=-1)}, "option restart.backoff of atoll.function: found -1 (a number)"),
        ({"breaker": atoll.Restart()}, "option breaker of atoll.function: found Restart("),
        ({"breaker": atoll.Restart()}, "expected a mapping with failures, cooldown (or atoll.Breaker)"),
        ({"restart": {1: 1}}, "option restart.1 of atoll.function: there is no such key"),
        ({"dependencies": [object()]}, "option dependencies[0] of atoll.function: found <object"),
    ],
)
def test_wrong_options(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ManifestError, match=re.escape(expected)):
        function_spec("mean", **options)


SUPERVISION = """\
workers: 4
concurrency: 2
max-queue: 100
restart: {backoff: 0.5, max_restarts: 3}
breaker: {cooldown: 2}
recycle: {calls: 10, memory_growth: 500MB}
health_interval:
preload: [numpy, scipy.linalg]
memory: 2GiB
cpus: 0.5
nice: 5
open_files: 64
sandbox: {read: [data, /srv], write: [~/out]}
"""


def supervised(spec: ServiceSpec) -> None:
    assert (spec.workers, spec.concurrency, spec.max_queue) == (4, 2, 100)
    assert spec.restart == atoll.Restart(backoff=0.5, max_restarts=3)
    assert spec.breaker == atoll.Breaker(cooldown=2.0)
    assert spec.recycle == atoll.Recycle(calls=10, memory_growth=500_000_000)
    assert spec.health_interval is None
    assert spec.preload == ("numpy", "scipy.linalg")
    assert (spec.memory, spec.cpus, spec.nice, spec.open_files) == (2 * 1024**3, 0.5, 5, 64)


def test_supervision_in_a_manifest(tmp_path: Path) -> None:
    service(tmp_path, SUPERVISION)
    spec = load_spec(tmp_path)
    supervised(spec)
    assert spec.sandbox == atoll.Sandbox(read=(f"{tmp_path}/data", "/srv"), write=(str(Path("~/out").expanduser()),))


def test_supervision_in_a_header(tmp_path: Path) -> None:
    header = """\
# /// script
# [tool.atoll]
# workers = 4
# concurrency = 2
# max-queue = 100
# preload = ["numpy", "scipy.linalg"]
# memory = "2GiB"
# cpus = 0.5
# nice = 5
# open_files = 64
# restart = {backoff = 0.5, max_restarts = 3}
# [tool.atoll.breaker]
# cooldown = 2
# [tool.atoll.recycle]
# calls = 10
# memory_growth = "500MB"
# [tool.atoll.sandbox]
# network = true
# read = ["data"]
# ///
"""
    file = write(tmp_path / "vision.py", header)
    spec = load_spec(file, health_interval=None)
    supervised(spec)
    assert spec.sandbox == atoll.Sandbox(network=True, read=(f"{tmp_path}/data",))
    write(file, header.replace("calls = 10", "calls = 0"))
    assert f"{file}: key [tool.atoll] recycle.calls: found 0 (a number), expected a whole number from 1" in refusal(
        file
    )
    write(file, header.replace("network =", "netwerk ="))
    assert "key [tool.atoll] sandbox.netwerk: there is no such key; did you mean network?" in refusal(file)


def test_supervision_by_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {
        "workers": 4,
        "concurrency": 2,
        "max_queue": 100,
        "restart": atoll.Restart(backoff=0.5, max_restarts=3),
        "breaker": {"cooldown": 2},
        "recycle": atoll.Recycle(calls=10, memory_growth="500MB"),
        "health_interval": None,
        "preload": ("numpy", "scipy.linalg"),
        "memory": "2GiB",
        "cpus": 0.5,
        "nice": 5,
        "open_files": 64,
        "sandbox": atoll.Sandbox(read=(Path("data"),)),  # type: ignore[arg-type] # taken, as everywhere a path is
    }
    for spec in (
        load_spec("some.module", **options),
        atoll.Service("some.module", **options).spec,
        atoll.function(**options)(lambda: 1).spec,
    ):
        supervised(spec)
        assert spec.sandbox == atoll.Sandbox(read=(f"{tmp_path}/data",))


def test_without_supervision_options_the_source_says_all(tmp_path: Path) -> None:
    service(tmp_path, "health_interval: 3\nworkers: 2\n")
    assert atoll.Service(tmp_path).spec.health_interval == 3.0
    assert atoll.Service(tmp_path).spec.workers == 2
    assert atoll.Service(tmp_path, health_interval=None).spec.health_interval is None
    assert atoll.Service(tmp_path, health_interval=1).spec.health_interval == 1.0


def test_an_option_that_holds_several_values_replaces_the_sources_as_a_whole(tmp_path: Path) -> None:
    service(tmp_path, "restart: {backoff: 3}\n")
    assert load_spec(tmp_path, restart={"window": 5}).restart == atoll.Restart(window=5.0)


@given(st.sampled_from([key for key in FIELDS if key != "entry"]), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
))  # fmt: skip
def test_any_value_is_taken_or_refused_by_name(key: str, value: Any) -> None:
    options = {"name": "mean", key: value}
    try:
        spec = function_spec(**options)
    except ManifestError as error:
        said = str(error)
        assert f"option {key}" in said
    else:
        assert msgspec.json.decode(msgspec.json.encode(spec), type=ServiceSpec) == spec


# --- schema


def test_the_schema_says_what_the_reader_does(tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = manifest_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert set(schema["properties"]) == set(FIELDS)
    assert all(one.get("description") for one in schema["properties"].values())
    validator = jsonschema.Draft202012Validator(schema)
    good = [{}, {"port": 1}, {"dependencies": ["six", {"service": "db"}]}, {"timeout": None, "python": "3.12"}]
    good += [
        {"workers": 3, "restart": {"backoff": 0.5}, "breaker": {}, "recycle": {"memory_growth": "5MB"}},
        {"memory": "2GB", "sandbox": {"read": ["/x"]}, "health_interval": None, "recycle": {"memory_growth": 5}},
        {"memory": 5, "sandbox": None, "nice": -20, "recycle": {"age": None}},
    ]
    bad = [{"timeout": "x"}, {"timeout": 0}, {"python": 3.12}, {"dependencies": "six"}, {"env_vars": {"A": 1}}]
    bad += [
        {"workers": 0},
        {"restart": {"backof": 1}},
        {"restart": "always"},
        {"recycle": {"calls": 0}},
        {"memory": 0},
        {"memory": 1.5},
        {"nice": 20},
        {"sandbox": {"read": "/x"}},
        {"sandbox": True},
        {"preload": "numpy"},
        {"open_files": 3},
    ]
    assert [one for one in good if not validator.is_valid(one)] == []
    assert [one for one in bad if validator.is_valid(one)] == []
    for index, manifest in enumerate([*good, *bad]):
        service(tmp_path / str(index), json.dumps(manifest))
        if manifest in good:
            load_spec(tmp_path / str(index))
        else:
            refusal(tmp_path / str(index))


def test_importing_the_package_does_not_import_msgspec() -> None:
    code = "import sys; sys.modules['atoll'] = m = type(sys)('atoll'); m.__path__ = [sys.argv[1]]\n"
    code += "import atoll.manifest, atoll.environments; print('msgspec' in sys.modules, 'yaml' in sys.modules)"
    folder = str(Path(sys.modules["atoll"].__file__ or "").parent)
    source = str(Path(folder).parent)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {source!r})\n{code}", folder],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["False", "False"]
