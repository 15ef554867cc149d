# SPDX-License-Identifier: Apache-2.0
"""The ``atoll`` command: what it prints, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import atoll
from atoll.cli import main
from atoll.environments import Environment, open_environment
from atoll.environments.request import EnvironmentRequest

pytest.importorskip("typer")

HOST = ".".join(map(str, sys.version_info[:3]))
SOURCE = str(Path(atoll.__file__).parents[1])


class Done(NamedTuple):
    status: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATOLL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("ATOLL_OFFLINE", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command with arguments, in this process."""

    def command(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["atoll", *arguments])
        status = main()
        return Done(status, *capsys.readouterr())

    return command


def an_environment() -> Environment:
    return open_environment(EnvironmentRequest("packages", "mean", python=HOST))


def test_version(command: Command) -> None:
    assert command("--version") == Done(0, f"atoll {atoll.__version__}\n", "")


def test_wrong_usage(command: Command) -> None:
    assert command("env", "show").status == 2
    assert command("nonsense").status == 2


def test_list(command: Command, cache: Path) -> None:
    assert command("env", "list").out == f"no environments in {cache}\n"
    assert json.loads(command("env", "list", "--json").out) == []
    environment = an_environment()
    done = command("env", "list")
    assert environment.key in done.out
    assert f"mean: no packages, Python {HOST}" in done.out
    assert "in use" in done.out
    (one,) = json.loads(command("env", "list", "--json").out)
    assert one["key"] == environment.key
    assert one["in_use"] is True


def test_show(command: Command) -> None:
    key = an_environment().key
    out = command("env", "show", key[-6:]).out
    assert f"key       {key}" in out
    assert f"python    {HOST}" in out
    assert json.loads(command("env", "show", key, "--json").out)["packages"] == {}


def test_an_error_is_a_message_and_no_traceback(command: Command, cache: Path) -> None:
    done = command("env", "show", "nothing")
    assert done == Done(1, "", f"error: there is no environment 'nothing' in {cache}; see `atoll env list`\n")


def test_prune(command: Command) -> None:
    environment = an_environment()
    key = environment.key
    assert f"kept {key}: in use" in command("env", "prune", "--all").out
    assert command("env", "prune", key).status == 1
    del environment
    assert f"would remove {key}" in command("env", "prune", "--all", "--dry-run").out
    assert "removed 0 environments" in command("env", "prune").out
    assert "removed 0 environments" in command("env", "prune", "--unused", "1").out
    assert f"removed {key}\nremoved 1 environments" in command("env", "prune", key[-6:]).out
    assert json.loads(command("env", "list", "--json").out) == []


def test_rebuild(command: Command) -> None:
    key = an_environment().key
    assert command("env", "rebuild", key) == Done(0, f"ready {key}\n", "")
    assert command("env", "rebuild", key, "--resolve", "--offline").out == f"ready {key}\n"
    environment = an_environment()
    assert "is in use" in command("env", "rebuild", environment.key).err


def test_manifest_schema(command: Command) -> None:
    schema = json.loads(command("manifest", "schema").out)
    assert schema["properties"]["dependencies"]["description"]


def test_manifest_check(command: Command, tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text("")
    manifest = tmp_path / "service.yaml"
    manifest.write_text("name: vision\ntime-out: 3\nport: 80\ndependencies: [{service: db}, six]\n")
    done = command("manifest", "check", str(tmp_path))
    assert done.status == 0
    assert done.out.splitlines() == [
        f"✓ vision: {tmp_path / 'service.py'}",
        "  environment: six",
        "! time-out: not a key that atoll knows, so it has no effect; did you mean timeout?",
        "  port: kept",
        "  dependencies: names other services, which are kept for the server",
    ]
    manifest.write_text("timeout: soon\n")
    done = command("manifest", "check", str(manifest))
    assert done.status == 1
    assert done.err.startswith(f"error: {manifest}: key timeout: found 'soon', expected a number of seconds above 0")
    assert len(done.err.splitlines()) == 1


def test_doctor(command: Command, cache: Path) -> None:
    done = command("doctor")
    assert done.status == 0
    assert f"{HOST}" in done.out
    assert f"{cache}," in done.out
    checks = {one["name"]: one for one in json.loads(command("doctor", "--json").out)}
    assert {
        "platform",
        "interpreters",
        "uv",
        "cache",
        "shared memory",
        "fast lane",
        "sandbox",
        "GPU",
        "cgroups",
    } <= set(checks)
    assert all(one["state"] in ("good", "limited", "bad") and one["found"] and one["means"] for one in checks.values())
    assert checks["uv"]["state"] == "good"
    # It looked, and left nothing behind but the interpreters' answers.
    assert {path.name for path in cache.iterdir()} <= {"CACHEDIR.TAG", "probes"}


def test_doctor_says_what_is_wrong(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ATOLL_CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setenv("ATOLL_OFFLINE", "1")
    done = command("doctor")
    assert done.status == 1
    assert "✗ cache: " in done.out
    assert "Set ATOLL_CACHE_DIR" in done.out
    assert "! network: offline mode (ATOLL_OFFLINE is set)" in done.out


def test_doctor_says_what_limits_are_held_by_and_why_there_is_no_sandbox(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from atoll.processes import sandbox

    monkeypatch.setattr(sandbox, "_works", set())
    monkeypatch.setenv("ATOLL_CGROUP", "0")
    monkeypatch.setenv("PATH", str(tmp_path))
    checks = {one["name"]: one for one in json.loads(command("doctor", "--json").out)}
    assert checks["sandbox"]["state"] == "limited"
    assert "A service with sandbox= does not start. Bubblewrap is not installed" in checks["sandbox"]["means"]
    assert "memory= is held by a watch" in checks["cgroups"]["details"][0]


def test_a_check_that_fails_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from atoll.cli import checks

    def _check_moon() -> checks.Check:
        raise OSError("clouds")

    monkeypatch.setattr(checks, "_CHECKS", (_check_moon,))
    (one,) = checks.all_checks()
    assert (one.name, one.state, one.found) == ("moon", "limited", "could not be looked at: OSError: clouds")


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_it_says_what_to_install(missing: str) -> None:
    code = f"import sys; sys.path.insert(0, {SOURCE!r}); sys.modules[{missing!r}] = None\n"
    code += "from atoll.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f'the atoll command needs {missing}, which is not installed: pip install "atoll[cli]"\n'


def test_interrupted(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from atoll.cli import env

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(env, "list_environments", interrupted)
    done = command("env", "list")
    assert done.status == 130
    assert "Traceback" not in done.err


def test_a_reader_that_goes_away() -> None:
    code = f"import sys; sys.path.insert(0, {SOURCE!r}); sys.argv = ['atoll', 'manifest', 'schema']\n"
    code += "from atoll.cli import main; sys.stdin.readline(); sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, errors = process.communicate("go\n", timeout=60)
    assert process.returncode == 1
    assert errors == ""


def test_an_unusable_cache_is_a_message(command: Command, cache: Path) -> None:
    cache.write_text("")
    for words in (["list"], ["list", "--json"], ["prune"], ["prune", "--all"], ["show", "x"], ["rebuild", "x"]):
        done = command("env", *words)
        assert (done.status, done.out) == (1, ""), words
        assert done.err.startswith(f"error: the cache folder {cache} cannot be used: Not a directory"), words
        assert "set ATOLL_CACHE_DIR" in done.err


def test_all_and_keys_are_refused_together(command: Command) -> None:
    key = an_environment().key
    done = command("env", "prune", "--all", key)
    assert done.status == 2
    assert "give it or keys, not both" in done.err
    assert json.loads(command("env", "list", "--json").out)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("words", [["env", "list"], ["env", "list", "--json"], ["--help"]])
def test_a_full_disk_behind_stdout_is_a_message(words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "atoll.cli", *words], stdout=full, stderr=subprocess.PIPE, text=True, cwd=SOURCE
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_module_is_not_said_to_be_right(command: Command) -> None:
    out = command("manifest", "check", "some.module:Vision").out
    assert out.startswith("✓ Vision: some.module:Vision (a module; not looked up until a worker starts)\n")


def test_a_list_in_a_pipe_has_a_line_for_each(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("requirements" * 10 + ".txt")
    long.write_text("")
    environment = open_environment(EnvironmentRequest("packages", "mean", python=HOST, path=str(long)))
    an_environment()
    monkeypatch.setenv("COLUMNS", "40")
    _, *lines, total = command("env", "list").out.splitlines()
    assert len(lines) == int(total.split()[0])
    line = next(one for one in lines if one.startswith(environment.key))
    assert "mean: " in line
    assert "more" in line or "…" in line
