# SPDX-License-Identifier: Apache-2.0
"""Seed 000, isolated services: what its Python snippets do, with their import lines adapted (``from atoll_worker import
ServiceBase``, ``from atoll import ServiceClient``). Each test says which lines of the seed it covers; what a snippet
leaves to its reader is filled in, and models that are gigabytes are stand-ins. Where the seed's text lies beside the
repository, its own lines are run as well, with nothing changed but their imports; excerpts get the names around them
that they use.
"""

from __future__ import annotations

import base64
import concurrent.futures
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import atoll
import atoll_worker
from atoll import ServiceClient
from conditions import WITHIN, until

Write = Callable[[str, str], Path]

SEED = Path(__file__).parents[3] / "shared" / "seeds" / "000-isolated-services-framework.md"

HEAD = "import logging, os\nfrom atoll_worker import ServiceBase\n"
TAIL = '\nif __name__ == "__main__":\n    {}().run()\n'

GREETING = """
    class MyService(ServiceBase):
        def process(self, params):
            who = params.get("name", "World")
            return {"message": f"Hello {who}!"}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An application's folder, where its services have one of their own; also the current one."""
    (tmp_path / "isolated_services").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def write(folder: Path) -> Write:
    """Write a service: its class, dedented, between what every service begins and ends with."""

    def write_service(name: str, text: str) -> Path:
        text = textwrap.dedent(text)
        classes = [line.split("(")[0].removeprefix("class ") for line in text.splitlines() if line.startswith("class ")]
        file = folder / "isolated_services" / name
        file.write_text(HEAD + text + (TAIL.format(classes[-1]) if classes else ""))
        return file

    return write_service


def as_program(file: str, params: dict[str, Any]) -> dict[str, Any]:
    """What a service answers that is run by hand."""
    done = subprocess.run(
        [sys.executable, file],
        input=json.dumps(params),
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(atoll_worker.__file__).parents[1])},
    )
    answer = json.loads(done.stdout.strip().split("\n")[-1])
    assert isinstance(answer, dict)
    assert done.returncode == (0 if answer["success"] else 1)
    return answer


@pytest.mark.slow
@pytest.mark.network
def test_packages_that_exclude_each_other(folder: Path) -> None:
    """Lines 10-15 and 19-25: what cannot be imported together, here two versions of one package, is used side by side,
    and the application has neither."""
    for version in ("23.2", "24.2"):
        text = f"""\
            # /// script
            # dependencies = ["packaging=={version}"]
            # ///
            import packaging
            from atoll_worker import ServiceBase

            class Version(ServiceBase):
                def process(self, params):
                    return {{"input": params["input"], "version": packaging.__version__}}
        """
        (folder / f"version_{version.replace('.', '_')}.py").write_text(textwrap.dedent(text))
    for version in ("23.2", "24.2"):
        client = ServiceClient(f"version_{version.replace('.', '_')}.py")
        result = client.call({"input": "data"})
        assert (result["input"], result["version"]) == ("data", version)


def test_a_service_and_its_client(write: Write) -> None:
    """Lines 58-70 and 76-82."""
    write("my_service.py", GREETING)
    client = ServiceClient("isolated_services/my_service.py")
    assert client.call({"name": "Alice"}, timeout=30)["message"] == "Hello Alice!"
    assert client.call({})["message"] == "Hello World!"


def test_a_service_by_hand(write: Write) -> None:
    """Lines 58-70 and 86-99."""
    write("my_service.py", GREETING)
    assert as_program("isolated_services/my_service.py", {"name": "Bob"})["message"] == "Hello Bob!"


DIFFUSERS = """
    class StableDiffusionPipeline:
        loaded = 0

        @classmethod
        def from_pretrained(cls, name, torch_dtype=None):
            cls.loaded += 1
            return cls()

        def to(self, device):
            return self

        def __call__(self, prompt):
            self.images = [Image(f"{prompt} {self.loaded}")]
            return self

    class Image:
        def __init__(self, text):
            self.text = text

        def save(self, file, format):
            file.write(self.text.encode())
"""


def test_a_service_that_makes_images(write: Write, folder: Path) -> None:
    """Lines 103-136 and 140-145: the model is loaded by the first call, and stays; images are passed in base64. The
    packages are stand-ins beside the service."""
    (folder / "isolated_services" / "diffusers.py").write_text(textwrap.dedent(DIFFUSERS))
    (folder / "isolated_services" / "torch.py").write_text("float16 = 'float16'\n")
    text = """
        from diffusers import StableDiffusionPipeline
        import torch

        class AnimationService(ServiceBase):
            def __init__(self):
                super().__init__(log_level=logging.INFO)
                self.pipe = None

            def process(self, params):
                if self.pipe is None:
                    self.pipe = StableDiffusionPipeline.from_pretrained("a/model", torch_dtype=torch.float16).to("cuda")
                picture = self.pipe(params["prompt"]).images[0]

                import base64, io
                buffer = io.BytesIO()
                picture.save(buffer, format="PNG")
                return {"image": base64.b64encode(buffer.getvalue()).decode()}
    """
    write("animation_keyframes.py", text)

    def call_animation_service(prompt: str, num_keyframes: int) -> dict[str, list[str]]:
        client = ServiceClient("isolated_services/animation_keyframes.py")
        return {"keyframes": [client.call({"prompt": prompt}, timeout=600)["image"] for _ in range(num_keyframes)]}

    keyframes = call_animation_service("cat walking", num_keyframes=5)["keyframes"]
    assert [base64.b64decode(one) for one in keyframes] == [b"cat walking 1"] * 5
    answer = as_program("isolated_services/animation_keyframes.py", {"prompt": "dog"})
    assert base64.b64decode(answer["image"]) == b"dog 1"


VALIDATING = """
    class MyService(ServiceBase):
        def validate_input(self, params):
            if "required_field" not in params:
                raise ValueError("required_field is missing")
            if not isinstance(params["required_field"], int):
                raise ValueError("required_field must be int")

        def process(self, params):
            return {"result": params["required_field"]} if params["required_field"] else {}

        def validate_output(self, result):
            if "result" not in result:
                raise ValueError("result is missing")
"""


def test_checks_of_what_goes_in_and_comes_out(write: Write) -> None:
    """Lines 151-162."""
    write("checked.py", VALIDATING)
    client = ServiceClient("isolated_services/checked.py")
    assert client.call({"required_field": 3})["result"] == 3
    for params, says in (
        ({}, "required_field is missing"),
        ({"required_field": "3"}, "required_field must be int"),
        ({"required_field": 0}, "result is missing"),
    ):
        with pytest.raises(ValueError, match=says):
            client.call(params)
        assert as_program("isolated_services/checked.py", params)["error"] == says


def test_logs_in_a_file(write: Write, folder: Path) -> None:
    """Lines 166-179 and 274-281: records go to the file and never to standard output."""
    log = folder / "my_service.log"
    text = f"""
        class MyService(ServiceBase):
            def __init__(self):
                super().__init__(log_level=logging.DEBUG, log_file={str(log)!r})

            def process(self, params):
                self.logger.info("Processing started")
                self.logger.debug(f"Params: {{params}}")
                return {{}}
    """
    write("my_service.py", text)
    client = ServiceClient("isolated_services/my_service.py")
    assert client.call({"data": "test"})["success"]
    as_program("isolated_services/my_service.py", {"data": "by hand"})
    lines = log.read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == [
        "INFO MyService: Processing started",
        "DEBUG MyService: Params: {'data': 'test'}",
        "INFO MyService: Processing started",
        "DEBUG MyService: Params: {'data': 'by hand'}",
    ]


def test_what_every_answer_has(write: Write) -> None:
    """Lines 185-194."""
    write(
        "my_service.py",
        'class MyService(ServiceBase):\n    def process(self, params):\n        return {"your_data": "..."}',
    )
    for answer in (
        ServiceClient("isolated_services/my_service.py").call({}),
        as_program("isolated_services/my_service.py", {}),
    ):
        assert answer["success"] is True
        assert answer["your_data"] == "..."
        assert set(answer["_meta"]) == {"duration_seconds", "timestamp"}
        assert isinstance(answer["_meta"]["duration_seconds"], float)
        assert answer["_meta"]["timestamp"][10] == "T"


def test_errors_in_their_two_kinds(write: Write) -> None:
    """Lines 198-207: RuntimeError where the service crashed, ValueError where it answered that it failed."""
    write("checked.py", VALIDATING)
    write("crashing.py", "class Crashing(ServiceBase):\n    def process(self, params):\n        os._exit(1)")
    said = []
    for name, params in (("checked", {"bad": "data"}), ("crashing", {})):
        client = ServiceClient(f"isolated_services/{name}.py")
        try:
            client.call(params)
        except RuntimeError as error:
            said.append(f"Service error: {error}")
        except ValueError as error:
            said.append(f"Business error: {error}")
    assert "required_field is missing" in said[0]
    assert said[0].startswith("Business error")
    assert "exited with code 1" in said[1]
    assert said[1].startswith("Service error")


def test_several_services_side_by_side(write: Write) -> None:
    """Lines 213-227."""
    for number in (1, 2, 3):
        write(
            f"service{number}.py",
            "class MyService(ServiceBase):\n"
            "    def process(self, params):\n"
            f"        return {{'service': {number}, 'id': params['id'], 'pid': os.getpid()}}",
        )

    def call_service(service: str, params: dict[str, Any]) -> dict[str, Any]:
        client = ServiceClient(f"isolated_services/{service}.py")
        return client.call(params)

    with concurrent.futures.ThreadPoolExecutor(max_workers=4) as executor:
        futures = [executor.submit(call_service, f"service{number}", {"id": number}) for number in (1, 2, 3)]
        results = [one.result() for one in futures]
    assert [(one["service"], one["id"]) for one in results] == [(1, 1), (2, 2), (3, 3)]
    assert len({one["pid"] for one in results} | {os.getpid()}) == 4


def test_a_service_that_chooses_its_gpu(write: Write) -> None:
    """Lines 231-240: what it sets for itself, nobody else has; and it need not return anything."""
    text = """
        os.environ["CUDA_VISIBLE_DEVICES"] = "0"

        class GPUService(ServiceBase):
            def process(self, params):
                self.logger.info("GPU %s", os.environ["CUDA_VISIBLE_DEVICES"])
    """
    write("gpu_service.py", text)
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    answer = ServiceClient("isolated_services/gpu_service.py").call({})
    assert (answer["success"], answer["result"]) == (True, None)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == before
    assert as_program("isolated_services/gpu_service.py", {})["result"] is None


def test_what_is_heavy_is_loaded_by_the_first_call(
    write: Write, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Lines 244-258. The package is a stand-in beside the service."""
    (folder / "isolated_services" / "torch.py").write_text(
        "class Model:\n    def predict(self, given):\n        return [2 * one for one in given]\n"
        "def load(file):\n    return Model()\n"
    )
    text = """
        class HeavyService(ServiceBase):
            def __init__(self):
                super().__init__()
                self.model = None

            def process(self, params):
                if self.model is None:
                    self.logger.info("Loading heavy model...")
                    import torch
                    self.model = torch.load("huge_model.pt")
                return self.model.predict(params["input"])
    """
    write("heavy.py", text)
    caplog.set_level("INFO", "atoll.worker")
    client = ServiceClient("isolated_services/heavy.py")
    for _ in range(3):
        assert client.call({"input": [1, 2]})["result"] == [2, 4]

    def loadings() -> int:
        return sum("Loading heavy model" in one.getMessage() for one in caplog.records)

    until(loadings)
    assert loadings() == 1
    assert as_program("isolated_services/heavy.py", {"input": [3]})["result"] == [6]


def test_debugging(write: Write) -> None:
    """Lines 285-289: a service that says more; a class of which the snippet shows no more than how it begins."""
    text = """
        class MyService(ServiceBase):
            def __init__(self):
                super().__init__(log_level=logging.DEBUG)

            def process(self, params):
                return {"debug": self.logger.isEnabledFor(logging.DEBUG)}
    """
    write("my_service.py", text)
    assert ServiceClient("isolated_services/my_service.py").call({})["debug"] is True
    assert as_program("isolated_services/my_service.py", {})["debug"] is True


def test_the_whole_traceback(write: Write) -> None:
    """Lines 295-303."""
    write("checked.py", VALIDATING)
    client = ServiceClient("isolated_services/checked.py")
    for answer in (
        client.call({}, check_success=False),
        as_program("isolated_services/checked.py", {}),
    ):
        assert answer["success"] is False
        assert answer["error"] == "required_field is missing"
        assert answer["error_type"] == "ValueError"
        assert answer["context"] == "Validation error"
        assert answer["traceback"].startswith("Traceback (most recent call last):\n  File ")
    with pytest.raises(atoll.ServiceFailed) as caught:
        client.call({})
    assert caught.value.traceback.startswith("Traceback (most recent call last):\n  File ")


def test_the_roadmap(write: Write) -> None:
    """Lines 334-338: a pool, streaming, async, discovery, health."""
    import asyncio

    write("greeting.py", GREETING)
    write(
        "counting.py",
        "class Counting(ServiceBase):\n    def process(self, params):\n        yield from range(params['n'])",
    )
    with atoll.ServicePool("isolated_services/greeting.py", workers=2) as pool:
        names = ["Alice", "Bob", "Zoë"]
        said = [one["message"] for one in pool.map({"name": name} for name in names)]
        assert said == [f"Hello {name}!" for name in names]
        assert pool.health(WITHIN)["status"] == "healthy"
    found = ServiceClient.discover("isolated_services")
    assert sorted(found) == ["counting", "greeting"]
    assert list(found["counting"].call_stream({"n": 3})) == [0, 1, 2]
    assert asyncio.run(found["greeting"].call_async({"name": "Alice"}))["message"] == "Hello Alice!"


# -- the seed's own lines ------------------------------------------------------------------------------------------


class Seed:
    """The seed's text beside the repository, and a folder to run it in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lines = SEED.read_text(encoding="utf-8").splitlines()

    def text(self, first: int, last: int) -> str:
        """These lines, with their imports changed."""
        text = "\n".join(self._lines[first - 1 : last]) + "\n"
        text = text.replace("from base import ServiceBase", "from atoll_worker import ServiceBase")
        return text.replace("from isolated_services.client import ServiceClient", "from atoll import ServiceClient")

    def service(self, name: str, first: int, last: int, after: str = "") -> ServiceClient:
        """A service of these lines, and its client."""
        text = self.text(first, last)
        if "import ServiceBase" not in text:
            text = "from atoll_worker import ServiceBase\n" + text
        file = self.folder / "isolated_services" / name
        file.write_text(f"import logging\n{text}{after}")
        return ServiceClient(file)

    def run(self, first: int, last: int, **names: Any) -> dict[str, Any]:
        """Run these lines; returns the names that there are then."""
        exec(compile(self.text(first, last), f"lines {first}-{last}", "exec"), names)
        return names


@pytest.fixture
def seed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Seed:
    if not SEED.exists():
        pytest.skip("needs the text of seed 000, which is not beside this repository")
    monkeypatch.setenv("PYTHONPATH", str(Path(atoll_worker.__file__).parents[1]))
    return Seed(folder)


PROCESS = "\n    def process(self, params):\n        return {}\n"

# By first and last line of each Python block of the seed: what runs it, and looks what came of it.
OWN: dict[tuple[int, int], Callable[[Seed, Any], object]] = {}


def of_lines(*blocks: tuple[int, int]) -> Callable[[Callable[[Seed, Any], object]], Callable[[Seed, Any], object]]:
    """The function runs these blocks."""

    def mark(function: Callable[[Seed, Any], object]) -> Callable[[Seed, Any], object]:
        for one in blocks:
            OWN[one] = function
        return function

    return mark


@of_lines((11, 14))
def conflict(seed: Seed, printed: Any) -> None:
    """What the seed shows as what does not work, and why there are services."""
    with pytest.raises(ImportError):
        seed.run(11, 14)


@of_lines((20, 24))
def solution(seed: Seed, printed: Any) -> None:
    (seed.folder / "isolated_services" / "my_service.py").write_text(
        "from atoll_worker import ServiceBase\nclass Same(ServiceBase):\n    def process(self, params):\n"
        "        return params\n"
    )
    assert seed.run(20, 24)["result"]["input"] == "data"


@of_lines((59, 69), (77, 81), (87, 98))
def quick_start(seed: Seed, printed: Any) -> None:
    seed.service("my_service.py", 59, 69)
    seed.run(77, 81)
    assert printed() == "Hello Alice!\n"
    seed.run(87, 98)
    assert printed() == "Hello Bob!\n"


@of_lines((104, 135), (141, 144))
def animation(seed: Seed, printed: Any) -> None:
    (seed.folder / "isolated_services" / "diffusers.py").write_text(textwrap.dedent(DIFFUSERS))
    (seed.folder / "isolated_services" / "torch.py").write_text("float16 = 'float16'\n")
    client = seed.service("animation_keyframes.py", 104, 135)

    def call_animation_service(prompt: str, num_keyframes: int) -> dict[str, list[str]]:
        return {"keyframes": [client.call({"prompt": prompt}, timeout=600)["image"] for _ in range(num_keyframes)]}

    text = seed.text(141, 144).replace("from isolated_services.client import call_animation_service", "")
    names: dict[str, Any] = {"call_animation_service": call_animation_service}
    exec(text, names)
    assert [base64.b64decode(one) for one in names["keyframes"]] == [b"cat walking 1"] * 5


@of_lines((152, 161))
def checks(seed: Seed, printed: Any) -> None:
    client = seed.service("checked.py", 152, 161, "\n    def process(self, params):\n        return params['give']\n")
    assert client.call({"required_field": 3, "give": {"result": 5}})["result"] == 5
    for params, says in (
        ({}, "Missing required_field"),
        ({"required_field": "3"}, "required_field must be int"),
        ({"required_field": 3, "give": {}}, "Missing result field"),
    ):
        with pytest.raises(ValueError, match=says):
            client.call(params)


@of_lines((167, 178), (275, 280))
def logging_to_a_file(seed: Seed, printed: Any) -> None:
    log = seed.folder / "my_service.log"
    file = seed.folder / "my_service.py"
    text = seed.text(167, 178).replace("/tmp/my_service.log", str(log))
    file.write_text(f"import logging\nfrom atoll_worker import ServiceBase\n{text}")
    assert seed.run(275, 280, ServiceClient=ServiceClient)["result"]["success"] is True
    assert [line.split(" ", 2)[2] for line in log.read_text().splitlines()] == [
        "INFO MyService: Processing started",
        "DEBUG MyService: Params: {'data': 'test'}",
    ]


@of_lines((186, 193))
def an_answer(seed: Seed, printed: Any) -> None:
    shown = json.loads(seed.text(186, 193))
    text = "from atoll_worker import ServiceBase\nclass A(ServiceBase):\n    def process(self, params):\n"
    (seed.folder / "a.py").write_text(f'{text}        return {{"your_data": "..."}}\n')
    answer = ServiceClient("a.py").call({})
    assert {**answer, "_meta": {}} == {**shown, "_meta": {}}
    assert {name: type(one) for name, one in answer["_meta"].items()} == {
        name: type(one) for name, one in shown["_meta"].items()
    }


@of_lines((199, 206))
def errors(seed: Seed, printed: Any) -> None:
    text = "import os\nfrom atoll_worker import ServiceBase\nclass A(ServiceBase):\n    def process(self, params):\n"
    (seed.folder / "bad.py").write_text(f"{text}        raise LookupError(params['bad'])\n")
    (seed.folder / "crash.py").write_text(f"{text}        os._exit(3)\n")
    seed.run(199, 206, client=ServiceClient("bad.py"))
    assert printed() == "Business error: bad: LookupError: data\n"
    seed.run(199, 206, client=ServiceClient("crash.py"))
    assert printed().startswith("Service error: ")


@of_lines((214, 226))
def side_by_side(seed: Seed, printed: Any) -> None:
    for number in (1, 2, 3):
        (seed.folder / "isolated_services" / f"service{number}.py").write_text(
            "from atoll_worker import ServiceBase\nclass A(ServiceBase):\n    def process(self, params):\n"
            f"        return {{'service': {number}, **params}}\n"
        )
    results = seed.run(214, 226, ServiceClient=ServiceClient)["results"]
    assert [(one["service"], one["id"]) for one in results] == [(1, 1), (2, 2), (3, 3)]


@of_lines((232, 239))
def its_gpu(seed: Seed, printed: Any) -> None:
    assert seed.service("gpu_service.py", 232, 239).call({})["result"] is None


@of_lines((245, 257))
def heavy(seed: Seed, printed: Any) -> None:
    (seed.folder / "isolated_services" / "torch.py").write_text(
        "class Model:\n    def predict(self, given):\n        return 2 * given\n"
        "loaded = []\ndef load(file):\n    loaded.append(file)\n    assert len(loaded) == 1\n    return Model()\n"
    )
    client = seed.service("heavy.py", 245, 257)
    assert [client.call({"input": number})["result"] for number in (1, 2)] == [2, 4]


@of_lines((286, 288))
def verbose(seed: Seed, printed: Any) -> None:
    after = PROCESS.replace("{}", "{'debug': self.logger.isEnabledFor(logging.DEBUG)}")
    assert seed.service("my_service.py", 286, 288, after).call({})["debug"] is True


@pytest.mark.parametrize("function", dict.fromkeys(OWN.values()), ids=lambda function: function.__name__)
def test_the_seeds_own_lines(seed: Seed, function: Any, capsys: pytest.CaptureFixture[str]) -> None:
    function(seed, lambda: capsys.readouterr().out)


def test_every_python_snippet_of_the_seed_is_run() -> None:
    if not SEED.exists():
        pytest.skip("needs the text of seed 000, which is not beside this repository")
    found, begin = [], 0
    for number, line in enumerate(SEED.read_text(encoding="utf-8").splitlines(), 1):
        if line == "```python":
            begin = number + 1
        elif line == "```" and begin:
            found.append((begin, number - 1))
            begin = 0
    assert sorted(OWN) == found
