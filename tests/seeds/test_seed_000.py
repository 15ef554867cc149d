# SPDX-License-Identifier: Apache-2.0
"""Seed 000, isolated services: what its Python snippets do, with their import lines adapted (``from atoll_worker import
ServiceBase``, ``from atoll import ServiceClient``). Each test says which lines of the seed it covers; what a snippet
leaves to its reader is filled in, and models that are gigabytes are stand-ins.
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
from conditions import until

Write = Callable[[str, str], Path]

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
        assert pool.health()["status"] == "healthy"
    found = ServiceClient.discover("isolated_services")
    assert sorted(found) == ["counting", "greeting"]
    assert list(found["counting"].call_stream({"n": 3})) == [0, 1, 2]
    assert asyncio.run(found["greeting"].call_async({"name": "Alice"}))["message"] == "Hello Alice!"
