# SPDX-License-Identifier: Apache-2.0
"""Every Python snippet of seed 001 (pyproc), served by ``run_worker`` and called over pyproc's wire.

Each case says which lines of the seed it covers, and stands here as a program of its own that does the same with the
same interface. Where the seed's text lies beside the repository, its own lines are run as well, their import changed to
``atoll_worker`` and nothing else; excerpts get the names around them that they use.
"""

from __future__ import annotations

import json
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import atoll
from pyproc_peer import Caller, folder_for_sockets, running

pytestmark = [pytest.mark.network, pytest.mark.slow]

SEED = Path(__file__).parents[3] / "shared" / "seeds" / "001-pyproc.md"
DEPENDENCIES = ["pandas>=2.2,<3", "scikit-learn>=1.5", "PyPDF2>=3"]


@dataclass(frozen=True)
class Snippet:
    """One Python block of the seed.

    Attributes:
        lines: the first and the last.
        program: one that does the same.
        check: calls it.
        around: what an excerpt needs to be a program; goes before both.
        files: writes, with the environment's interpreter, the files that it opens.
    """

    lines: tuple[int, int]
    program: str
    check: Callable[[Caller], None]
    around: str = ""
    files: str = ""


def first_steps(caller: Caller) -> None:
    assert caller.call("predict", {"value": 42}) == {"result": 84}
    assert caller.error("predict", {"worth": 42}) == "KeyError: 'value'"


def two_functions(caller: Caller) -> None:
    assert caller.call("add", {"a": 10, "b": 20}) == {"result": 30}
    assert caller.call("multiply", {"x": 6, "y": 7}) == {"result": 42}


def a_model(caller: Caller) -> None:
    one = caller.call("predict", {"features": [5.0, 5.0]})
    assert one["prediction"] == 1
    assert 0.5 < one["confidence"] <= 1.0
    many = caller.call("batch_predict", {"batch": [[0.0, 0.0], [5.0, 5.0]]})
    assert many == {"predictions": [0, 1]}


def tables(caller: Caller) -> None:
    found = caller.call("analyze_csv", {"data": {"a": [1, 2, 3], "b": [2, 4, 6]}})
    assert found["mean"] == {"a": 2.0, "b": 4.0}
    assert found["std"] == {"a": 1.0, "b": 2.0}
    assert found["correlation"]["a"]["b"] == pytest.approx(1.0)
    assert found["summary"]["a"]["count"] == 3.0
    rows = [
        {"timestamp": f"2024-05-17T{hour:02}:{minute}:00", "value": hour + minute, "count": 1}
        for hour in (8, 9)
        for minute in (10, 20)
    ]
    hourly = caller.call("aggregate_timeseries", {"data": rows})
    # Names of several levels, and times: as text.
    assert hourly["('value', 'mean')"] == {"2024-05-17T08:00:00": 23.0, "2024-05-17T09:00:00": 24.0}
    assert hourly["('value', 'max')"]["2024-05-17T09:00:00"] == 29
    assert hourly["('count', 'sum')"] == {"2024-05-17T08:00:00": 2, "2024-05-17T09:00:00": 2}
    # A table of one row has no standard deviation: an error of that call, and of no other.
    error = caller.error("analyze_csv", {"data": {"a": [1]}})
    assert error.startswith("EncodeError: result['std']['a'] cannot be written as JSON")
    assert caller.call("analyze_csv", {"data": {"a": [1, 3]}})["mean"] == {"a": 2.0}


def memory(caller: Caller) -> None:
    usage = caller.call("get_memory_usage", {})
    assert 0 < usage["current_mb"] <= usage["peak_mb"]


def a_model_kept(caller: Caller) -> None:
    for _ in range(2):
        assert caller.call("predict", {"features": [1, 2, 3]}) == {"prediction": 6}
    assert caller.call("loaded") == 1


def groups(caller: Caller) -> None:
    data = {"category": ["x", "y", "x"], "value": [1, 2, 4]}
    assert caller.call("process_dataframe", {"data": data}) == {"value": {"x": 5, "y": 2}}


def documents(caller: Caller) -> None:
    assert caller.call("extract_pdf_text", {"path": "one.pdf"}) == {"text": "what the document says"}


MODEL = """\
import pickle

from sklearn.linear_model import LogisticRegression

model = LogisticRegression().fit([[0, 0], [1, 0], [4, 5], [5, 5]], [0, 0, 1, 1])
with open("model.pkl", "wb") as file:
    pickle.dump(model, file)
"""

SNIPPETS = [
    Snippet(
        (100, 109),
        """\
        from atoll_worker import expose, run_worker


        @expose
        def predict(req):
            "What the model says."
            doubled = 2 * req["value"]
            return {"result": doubled}


        if __name__ == "__main__":
            run_worker()
        """,
        first_steps,
    ),
    Snippet(
        (227, 240),
        """\
        import operator

        from atoll_worker import expose, run_worker


        @expose
        def add(req):
            return {"result": operator.add(req["a"], req["b"])}


        @expose
        def multiply(req):
            return {"result": operator.mul(req["x"], req["y"])}


        if __name__ == "__main__":
            run_worker()
        """,
        two_functions,
    ),
    Snippet(
        (245, 275),
        """\
        import pickle
        from pathlib import Path

        from atoll_worker import expose, run_worker

        classifier = pickle.loads(Path("model.pkl").read_bytes())


        @expose
        def predict(req):
            row = [req["features"]]
            return {
                "prediction": int(classifier.predict(row)[0]),
                "confidence": float(classifier.predict_proba(row).max()),
            }


        @expose
        def batch_predict(req):
            return {"predictions": classifier.predict(req["batch"])}  # an array, as it is


        if __name__ == "__main__":
            run_worker()
        """,
        a_model,
        files=MODEL,
    ),
    Snippet(
        (280, 311),
        """\
        import pandas

        from atoll_worker import expose, run_worker


        @expose
        def analyze_csv(req):
            table = pandas.DataFrame(req["data"])
            found = {"mean": table.mean(), "std": table.std(), "correlation": table.corr(), "summary": table.describe()}
            return {name: one.to_dict() for name, one in found.items()}


        @expose
        def aggregate_timeseries(req):
            table = pandas.DataFrame(req["data"])
            table["timestamp"] = pandas.to_datetime(table["timestamp"])
            by_hour = table.set_index("timestamp").resample("h")
            return by_hour.agg({"value": ["mean", "max", "min"], "count": ["sum"]}).to_dict()


        if __name__ == "__main__":
            run_worker()
        """,
        tables,
    ),
    Snippet(
        (498, 508),
        """\
        import tracemalloc

        tracemalloc.start()
        MEGABYTE = 1 << 20


        @expose
        def get_memory_usage(req):
            current, peak = tracemalloc.get_traced_memory()
            return {"current_mb": current / MEGABYTE, "peak_mb": peak / MEGABYTE}
        """,
        memory,
    ),
    Snippet(
        (516, 520),
        """\
        @expose
        def predict(req):
            return {"prediction": load_model().predict(req["features"])}
        """,
        a_model_kept,
        around="""\
        import functools

        count = 0


        class Model:
            def predict(self, features):
                return sum(features)


        @functools.lru_cache
        def load_model():
            global count
            count += 1
            return Model()


        @expose
        def loaded(req):
            return count
        """,
    ),
    Snippet(
        (526, 531),
        """\
        @expose
        def process_dataframe(req):
            from pandas import DataFrame

            return DataFrame(req["data"]).groupby("category").sum().to_dict()
        """,
        groups,
    ),
    Snippet(
        (537, 541),
        """\
        @expose
        def extract_pdf_text(req):
            import PyPDF2

            assert PyPDF2.PdfReader
            return {"text": extracted_text}
        """,
        documents,
        around="""\
        extracted_text = "what the document says"
        """,
    ),
]


def in_the_seed(snippet: Snippet) -> str:
    """The seed's own lines."""
    first, last = snippet.lines
    text = "\n".join(SEED.read_text().splitlines()[first - 1 : last]) + "\n"
    return text.replace("from pyproc_worker import", "from atoll_worker import")


def whole(snippet: Snippet, text: str) -> str:
    """A program of it."""
    text = textwrap.dedent(text)
    if "import expose" not in text:
        text = f"from atoll_worker import expose, run_worker\n\n{textwrap.dedent(snippet.around)}\n\n{text}"
    return text if "run_worker()" in text else f"{text}\n\nrun_worker()\n"


@pytest.fixture(scope="module")
def python() -> str:
    """An interpreter that has what the snippets import."""

    @atoll.function(dependencies=DEPENDENCIES, python=">=3.10")
    def executable() -> str:
        import sys

        return sys.executable

    try:
        return executable()
    finally:
        executable.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    with folder_for_sockets() as path:
        yield path


@pytest.mark.parametrize("source", ["own", "seed"])
@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda one: f"lines {one.lines[0]}-{one.lines[1]}")
def test_a_snippet(python: str, folder: Path, snippet: Snippet, source: str) -> None:
    if source == "seed" and not SEED.exists():
        pytest.skip("needs the text of seed 001, which is not beside this repository")
    program = whole(snippet, snippet.program if source == "own" else in_the_seed(snippet))
    if snippet.files:
        subprocess.run([python, "-c", snippet.files], cwd=folder, check=True, timeout=60)
    with running(python, program, folder) as worker, worker.caller() as caller:
        snippet.check(caller)
        assert caller.call("health") == {"status": "healthy", "pid": worker.pid}


def test_every_python_snippet_of_the_seed_has_a_case() -> None:
    if not SEED.exists():
        pytest.skip("needs the text of seed 001, which is not beside this repository")
    found, begin = [], 0
    for number, line in enumerate(SEED.read_text().splitlines(), 1):
        if line == "```python":
            begin = number + 1
        elif line == "```" and begin:
            found.append((begin, number - 1))
            begin = 0
    assert [one.lines for one in SNIPPETS] == found


def test_lines_476_to_483_of_the_seed_a_worker_that_does_not_start(python: str, folder: Path) -> None:
    """What the seed tells users to look at: whether the import works, and the socket."""
    with running(python, "from atoll_worker import run_worker\nrun_worker()\n", folder) as worker:
        listing = subprocess.run(["ls", "-la", worker.path], capture_output=True, text=True, check=True).stdout
        assert listing.startswith("srw-------")
        code = "from atoll_worker import run_worker; import json; print(json.dumps(run_worker.__module__))"
        environ = {"PYTHONPATH": str(folder / "packages")}
        done = subprocess.run([python, "-c", code], env=environ, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == "atoll_worker.faces.pyproc"
