# SPDX-License-Identifier: Apache-2.0
"""A ``ServiceBase`` as a program: one JSON object in, one line of JSON out, on the oldest and the newest Python there
is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import atoll
import atoll_worker
from conditions import WITHIN, until
from interpreters import INTERPRETERS

SOURCE = Path(atoll_worker.__file__).parents[1]


def pythons() -> list[Any]:
    """The oldest and the newest interpreter of this machine that workers can have."""
    versions = list(INTERPRETERS)  # from the oldest on
    return [pytest.param(INTERPRETERS[version], id=version) for version in dict.fromkeys((versions[0], versions[-1]))]


@pytest.fixture(params=pythons())
def python(request: pytest.FixtureRequest) -> str:
    """An interpreter."""
    return str(request.param)


def environment(**more: str) -> dict[str, str]:
    """With atoll_worker to be imported from, and without what says how Python buffers."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**kept, "PYTHONPATH": str(SOURCE), **more}


class Outcome:
    """What a program came to."""

    def __init__(self, done: subprocess.CompletedProcess[bytes]) -> None:
        self.status = done.returncode
        self.out = done.stdout.decode()
        self.err = done.stderr.decode()

    @property
    def answer(self) -> dict[str, Any]:
        """The last line, as strict JSON."""

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is no JSON")

        assert self.out.endswith("\n"), self.out + self.err
        found = json.loads(self.out.splitlines()[-1], parse_constant=refuse)
        assert isinstance(found, dict)
        return found

    @property
    def result(self) -> dict[str, Any]:
        """The answer, which is one of success, without what every answer has."""
        answer = self.answer
        assert self.status == 0, self.err
        assert answer.pop("success") is True
        self.check_meta(answer.pop("_meta"))
        return answer

    @staticmethod
    def check_meta(meta: dict[str, Any]) -> None:
        """That there is what every answer has."""
        from datetime import datetime

        assert meta["duration_seconds"] >= 0
        assert datetime.fromisoformat(meta["timestamp"]).utcoffset() is not None

    def failed(self, kind: str, context: str) -> str:
        """What the error of an answer says, which is of this class and context."""
        answer = self.answer
        assert self.status == 1
        assert answer["success"] is False
        assert (answer["error_type"], answer["context"]) == (kind, context), answer
        assert kind in answer["traceback"]
        self.check_meta(answer["_meta"])
        assert set(answer) == {"success", "error", "error_type", "context", "traceback", "_meta"}
        return str(answer["error"])


Run = Callable[..., Outcome]


@pytest.fixture
def run(python: str, tmp_path: Path) -> Run:
    """Run a service: what stands in its class, and what is sent to it."""

    def run_service(body: str, sent: Any = None, *, before: str = "", **variables: str) -> Outcome:
        file = tmp_path / "my_service.py"
        file.write_text(program(body, before))
        text = sent if isinstance(sent, bytes) else json.dumps({} if sent is None else sent).encode()
        return Outcome(
            subprocess.run(
                [python, str(file)], input=text, capture_output=True, env=environment(**variables), timeout=60
            )
        )

    return run_service


def program(body: str, before: str = "") -> str:
    """The text of a service."""
    parts = [
        "import logging, os, sys",
        "from atoll_worker import ServiceBase",
        textwrap.dedent(before),
        "class MyService(ServiceBase):",
        textwrap.indent(textwrap.dedent(body), "    "),
        'if __name__ == "__main__":\n    MyService().run()\n',
    ]
    return "\n".join(parts)


ECHO = """
def process(self, params):
    return {"got": params}
"""


def test_one_object_in_one_line_out(run: Run) -> None:
    done = run(ECHO, {"name": "Zoë", "deep": [1, {"a": None}]})
    assert done.result == {"got": {"name": "Zoë", "deep": [1, {"a": None}]}}
    # An empty line before it, where this process has written anything before, such as what it compiled.
    assert done.out.strip().count("\n") == 0
    assert done.out.isascii()
    assert done.err == ""


def test_nothing_but_the_answer_reaches_standard_output(run: Run) -> None:
    """Prints of Python, of C that is flushed at the very end, of children, of threads, and of what runs at exit."""
    before = """
        import atexit, ctypes, subprocess, threading
        libc = ctypes.CDLL(None)
        print("at import")
        atexit.register(print, "at exit")
    """
    body = """
        def process(self, params):
            libc.printf(b"from C")
            print("from Python", flush=True)
            print("to the original", file=sys.__stdout__)
            os.write(1, b"to the descriptor\\n")
            subprocess.run(["echo", "from a child"], check=True)
            thread = threading.Thread(target=print, args=("from a thread",))
            thread.start()
            thread.join()
            return {"done": True}
    """
    done = run(body, before=before)
    assert done.result == {"done": True}
    assert done.out.strip().count("\n") == 0
    for text in ("at import", "from C", "from Python", "to the original", "to the descriptor", "from a child",
                 "from a thread", "at exit"):  # fmt: skip
        assert text in done.err


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_half_a_line_before_is_not_made_whole_by_the_answer(run: Run, unbuffered: str) -> None:
    done = run(ECHO, before='print("loading", end="", flush=True)', PYTHONUNBUFFERED=unbuffered)
    assert done.result == {"got": {}}
    assert done.out.splitlines()[0] == "loading"


def test_a_subclass_may_forget_to_initialise_its_base(run: Run) -> None:
    body = """
        def __init__(self):
            self.model = None

        def process(self, params):
            self.logger.info("called with %s", sorted(params))
            return {"level": self.log_level, "model": self.model}
    """
    done = run(body, {"b": 1, "a": 2})
    assert done.result == {"level": 20, "model": None}
    assert "INFO MyService: called with ['a', 'b']" in done.err


@pytest.mark.parametrize(
    ("result", "part"),
    [
        ('{"scores": [0.5, {"last": float("nan")}]}', "the result['scores'][1]['last'] cannot be"),
        ('float("-inf")', "the result['result'] cannot be"),
        ('{"when": __import__("datetime").date(2026, 1, 1)}', "the result['when'] cannot be"),
        ('{"keys": {(1, 2): 3}}', "the result['keys'] cannot be written as JSON: a key of it is"),
        ("[{1, 2}]", "the result['result'][0] cannot be"),
    ],
)
def test_what_is_no_json_is_an_error_that_names_the_part(run: Run, result: str, part: str) -> None:
    done = run(f"def process(self, params):\n    return {result}")
    assert part in done.failed("EncodeError", "Unexpected error")


def test_a_result_that_holds_itself(run: Run) -> None:
    body = """
        def process(self, params):
            result = {}
            result["self"] = result
            return result
    """
    assert "holds itself" in run(body).failed("EncodeError", "Unexpected error")


@pytest.mark.parametrize("result", [[1, 2], "text", 5, None, True])
def test_a_result_that_is_no_object(run: Run, result: Any) -> None:
    assert run(f"def process(self, params):\n    return {result!r}").result == {"result": result}


@pytest.mark.parametrize(
    ("sent", "kind", "says"),
    [
        (b"", "JSONDecodeError", "standard input is empty"),
        (b" \n", "JSONDecodeError", "standard input is empty"),
        (b"{'a': 1}", "JSONDecodeError", "double quotes"),
        (b"[1, 2]", "ValueError", "a JSON array, expected one JSON object"),
        (b"null", "ValueError", "a JSON null, expected"),
        (b'{"a": NaN}', "ValueError", "NaN, which is not JSON"),
        (b'{"a": [1, -1e999]}', "ValueError", "standard input['a'][1] is a number that is too large"),
        (b'{"a": "\xff"}', "ValueError", "not UTF-8"),
        (b"[" * 100_000, "ValueError", "nested too deeply"),
    ],
)
def test_what_is_no_object_is_answered(run: Run, sent: bytes, kind: str, says: str) -> None:
    done = run(ECHO, sent)
    assert says in done.failed(kind, "Invalid JSON input")


def test_a_byte_order_mark_is_no_part_of_it(run: Run) -> None:
    assert run(ECHO, b'\xef\xbb\xbf{"a": 1}').result == {"got": {"a": 1}}


def test_standard_input_may_be_closed(python: str, tmp_path: Path) -> None:
    file = tmp_path / "my_service.py"
    file.write_text(program(ECHO))
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" "$1" <&-', python, str(file)], capture_output=True, env=environment(), timeout=60
    )
    assert "standard input is empty" in Outcome(done).failed("JSONDecodeError", "Invalid JSON input")


def test_nobody_is_there_to_be_answered(python: str, tmp_path: Path) -> None:
    file = tmp_path / "my_service.py"
    file.write_text(program(ECHO))
    for stdout in (">&-", ">/dev/full"):
        command = ["/bin/sh", "-c", f'echo "{{}}" | "$0" "$1" {stdout}', python, str(file)]
        done = subprocess.run(command, capture_output=True, env=environment(), timeout=60)
        assert done.returncode == 1
        assert b"the answer could not be written" in done.stderr


CHECKED = """
def validate_input(self, params):
    if "number" not in params:
        raise ValueError("number is missing")
    if not isinstance(params["number"], int):
        raise TypeError("number must be int")

def process(self, params):
    if params["number"] == 0:
        raise ValueError("not zero")
    if params["number"] == 1:
        raise KeyError("one")
    return {"half": params["number"] / 2} if params["number"] != 2 else {}

def validate_output(self, result):
    assert "half" in result, "no half"
"""


@pytest.mark.parametrize(
    ("sent", "kind", "context", "says"),
    [
        ({}, "ValueError", "Validation error", "number is missing"),
        ({"number": "x"}, "TypeError", "Validation error", "number must be int"),
        ({"number": 0}, "ValueError", "Validation error", "not zero"),
        ({"number": 1}, "KeyError", "Unexpected error", "'one'"),
        ({"number": 2}, "AssertionError", "Validation error", "no half"),
    ],
)
def test_checks(run: Run, sent: Any, kind: str, context: str, says: str) -> None:
    done = run(CHECKED, sent)
    assert done.failed(kind, context) == says
    lines = done.answer["traceback"].splitlines()
    assert "my_service.py" in lines[1], "the first frame is the service's own"


def test_checks_that_pass(run: Run) -> None:
    assert run(CHECKED, {"number": 6}).result == {"half": 3.0}


def test_a_check_may_say_false(run: Run) -> None:
    body = ECHO + "\ndef validate_input(self, params):\n    return False\n"
    assert run(body).failed("ValueError", "Validation error") == "validate_input returned False"


def test_a_service_may_say_itself_that_it_failed(run: Run) -> None:
    done = run('def process(self, params):\n    return {"success": False, "error": "no such user"}')
    assert done.status == 1
    assert done.answer["error"] == "no such user"
    assert "error_type" not in done.answer


def test_a_result_keeps_what_it_says_of_itself(run: Run) -> None:
    done = run('def process(self, params):\n    return {"_meta": {"model": "m1", "timestamp": 0}, "a": 1}')
    assert done.answer["_meta"]["model"] == "m1"
    assert done.answer["_meta"]["timestamp"] != 0
    assert done.result == {"a": 1}


def test_leaving_is_answered(run: Run) -> None:
    done = run("def process(self, params):\n    sys.exit(3)")
    assert done.failed("SystemExit", "Unexpected error") == "3"


def test_an_interruption_is_answered(python: str, tmp_path: Path) -> None:
    file = tmp_path / "my_service.py"
    file.write_text(
        program("def process(self, params):\n    print('here', flush=True)\n    import time\n    time.sleep(60)")
    )
    with subprocess.Popen(
        [python, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"{}")
        process.stdin.close()
        assert process.stderr.readline() == b"here\n"
        process.send_signal(signal.SIGINT)
        answer = json.loads(process.stdout.read())
        assert process.wait(WITHIN) == 1
    assert answer["error_type"] == "KeyboardInterrupt"


def test_an_interruption_of_who_waits_for_the_end_of_the_input(python: str, tmp_path: Path) -> None:
    file = tmp_path / "my_service.py"
    file.write_text(program(ECHO))
    with subprocess.Popen(
        [python, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), bufsize=0
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b'{"a": ')
        until(lambda: _bytes_in(process.stdin) == 0, what="the service to read")
        process.send_signal(signal.SIGINT)
        answer = json.loads(process.stdout.read())
        assert process.wait(WITHIN) == 1
        assert (answer["error_type"], answer["context"]) == ("KeyboardInterrupt", "Unexpected error")


def _bytes_in(pipe: Any) -> int:
    """Bytes of a pipe that nobody has read yet."""
    import array
    import fcntl
    import termios

    count = array.array("i", [0])
    fcntl.ioctl(pipe.fileno(), termios.FIONREAD, count)
    return count[0]


@pytest.mark.parametrize(
    ("body", "result"),
    [
        (
            "async def process(self, params):\n    import asyncio\n    await asyncio.sleep(0)\n    return {'a': 1}",
            {"a": 1},
        ),
        ("def process(self, params):\n    yield 1\n    yield 2", {"result": [1, 2]}),
        ("async def process(self, params):\n    yield 1\n    yield 2", {"result": [1, 2]}),
    ],
    ids=["coroutine", "generator", "asynchronous generator"],
)
def test_other_kinds_of_functions(run: Run, body: str, result: Any) -> None:
    assert run(body).result == result


def test_chunks_as_lines_of_their_own(run: Run) -> None:
    body = """
        def process(self, params):
            for number in range(params["n"]):
                yield {"number": number}
    """
    done = run(body, {"n": 3}, ATOLL_STDIO_STREAM="1")
    assert done.result == {"chunks": 3}
    assert [json.loads(line) for line in done.out.splitlines()[:-1]] == [{"chunk": {"number": n}} for n in range(3)]


def test_an_error_after_some_items(run: Run) -> None:
    body = """
        def process(self, params):
            yield 1
            raise LookupError("no more")
    """
    assert run(body).failed("LookupError", "Unexpected error") == "no more"
    assert run(body, ATOLL_STDIO_STREAM="1").failed("LookupError", "Unexpected error") == "no more"


def test_logging_to_a_file(run: Run, tmp_path: Path) -> None:
    log = tmp_path / "service.log"
    body = f"""
        def __init__(self):
            super().__init__(log_level=logging.DEBUG, log_file={str(log)!r})

        def process(self, params):
            self.logger.debug("detail")
            logging.getLogger("other").debug("not ours")
            return {{}}
    """
    done = run(body)
    assert done.result == {}
    assert "DEBUG MyService: detail" in log.read_text()
    assert "DEBUG MyService: detail" in done.err
    assert "not ours" not in done.err + log.read_text()


def test_who_sets_logging_up_is_not_told_twice(run: Run) -> None:
    body = """
        def process(self, params):
            self.logger.info("once")
            return {}
    """
    done = run(body, before='logging.basicConfig(format="mine: %(message)s", level=logging.INFO)')
    assert done.result == {}
    assert done.err == "mine: once\n"


def test_a_logger_of_its_own(run: Run) -> None:
    body = """
        def __init__(self):
            super().__init__()
            self.logger = logging.getLogger("mine")

        def process(self, params):
            return {"name": self.logger.name}
    """
    assert run(body).result == {"name": "mine"}


def test_setup_and_teardown(run: Run) -> None:
    body = """
        def setup(self):
            self.model = "loaded"

        def process(self, params):
            return {"model": self.model}

        def teardown(self):
            raise RuntimeError("while ending")
    """
    done = run(body)
    assert done.result == {"model": "loaded"}
    assert "RuntimeError: while ending" in done.err


def test_a_child_that_user_code_forks_does_not_answer(run: Run) -> None:
    body = """
        def process(self, params):
            child = os.fork()
            if child:
                os.waitpid(child, 0)
            return {"is": "the parent" if child else "a child"}
    """
    done = run(body)
    assert done.result == {"is": "the parent"}
    assert done.out.strip().count("\n") == 0


def test_who_reads_sees_the_end_though_the_process_goes_on(python: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    file = tmp_path / "my_service.py"
    body = f"""
        def process(self, params):
            import threading
            threading.Thread(target=open, args=({str(gate)!r},)).start()
            return {{}}
    """
    file.write_text(program(body))
    with subprocess.Popen(
        [python, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"{}")
        process.stdin.close()
        assert json.loads(process.stdout.read())["success"] is True
        assert process.poll() is None, "a thread of the user's keeps it"
        gate.open("w").close()
        assert process.wait(WITHIN) == 0


def test_without_process(run: Run) -> None:
    assert "MyService has no process(self, params)" in run("pass").failed("TypeError", "Unexpected error")


# -- the same file as a service of atoll ---------------------------------------------------------------------------


def test_it_is_a_service_like_any_other(python: str, tmp_path: Path) -> None:
    file = tmp_path / "my_service.py"
    body = """
        def validate_input(self, params):
            if "name" not in params:
                raise ValueError("name is missing")

        def process(self, params: dict) -> dict:
            \"\"\"Greet.\"\"\"
            print("not in the way")
            self.logger.warning("nor is this")
            return {"message": "Hello " + params["name"]}
    """
    file.write_text(program(body))
    with atoll.Service(file, environment=python) as service:
        assert set(service.functions) == {"process"}
        assert service.functions["process"].signature == "(params: dict) -> dict"
        assert service.functions["process"].doc == "Greet."
        assert service.process({"name": "Alice"}) == {"message": "Hello Alice"}
        assert service.process(params={"name": "Alice"}) == {"message": "Hello Alice"}
        assert service.process(name="Alice") == {"message": "Hello Alice"}
        with pytest.raises(ValueError, match="name is missing") as caught:
            service.process({})
        assert isinstance(caught.value, atoll.RemoteError)
        for wrong in (lambda: service.process([1]), lambda: service.process({}, {}), lambda: service.process({}, a=1)):
            with pytest.raises(TypeError, match="process takes one object"):
                wrong()


def test_kinds_of_functions_in_a_service(python: str, tmp_path: Path) -> None:
    text = """
        from atoll_worker import ServiceBase, expose

        class Items(ServiceBase):
            @expose(idempotent=True)
            async def process(self, params):
                for number in range(params["n"]):
                    yield number

            @expose
            def other(self):
                return "other"

            def validate_output(self, item):
                if item > 2:
                    raise ValueError("too many")
    """
    file = tmp_path / "items_service.py"
    file.write_text(textwrap.dedent(text))
    with atoll.Service(file, environment=python) as service:
        assert set(service.functions) == {"process", "other"}
        assert list(service.process({"n": 3})) == [0, 1, 2]
        assert service.other() == "other"
        stream = service.process({"n": 5})
        assert [next(stream) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="too many"):
            next(stream)


def test_it_logs_to_its_host_and_its_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = tmp_path / "service.log"
    body = f"""
        def __init__(self):
            super().__init__(log_level="INFO", log_file={str(log)!r})

        def process(self, params):
            self.logger.info("working on %s", params)
            return {{}}
    """
    file = tmp_path / "my_service.py"
    file.write_text(program(body))
    caplog.set_level("INFO", "atoll.worker")

    def working() -> list[Any]:
        return [one for one in caplog.records if "working on" in one.getMessage()]

    with atoll.Service(file) as service:
        service.process({"a": 1})
        until(working)
        service.process({"a": 2})
        until(lambda: len(working()) == 2)
    records = working()
    assert [one.getMessage() for one in records] == ["working on {'a': 1}", "working on {'a': 2}"]
    assert {one.levelname for one in records} == {"INFO"}
    assert log.read_text().count("working on") == 2


def test_its_class_without_process_says_so(tmp_path: Path) -> None:
    file = tmp_path / "my_service.py"
    file.write_text(program("pass"))
    with pytest.raises(atoll.WorkerStartError, match="MyService has no process"), atoll.Service(file):
        pass


def test_its_text_tells_what_it_exposes(tmp_path: Path) -> None:
    from atoll.client.exposed import read_service

    file = tmp_path / "my_service.py"
    file.write_text(program(ECHO))
    assert [one.name for one in read_service(str(file)).functions] == ["process"]
    other = tmp_path / "other.py"
    other.write_text("from atoll_worker import Service\nclass A(Service):\n    def process(self, params): pass\n")
    with pytest.raises(atoll.ManifestError, match="exposes nothing"):
        read_service(str(other))
