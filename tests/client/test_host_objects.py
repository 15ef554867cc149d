# SPDX-License-Identifier: Apache-2.0
"""What stays where it is: host objects by name, ``ref`` both ways, and ``ProxiedSingleton``."""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

import atoll
from atoll_worker import singleton
from conditions import until, until_gone

Write = Callable[[str, str], Path]
Run = Callable[[Coroutine[Any, Any, Any]], Any]

SERVICE = """\
import asyncio
import os
import threading

from atoll_worker import expose, host, ref

@expose
def get(name):
    return host.models.get(name)

@expose
def get_by_item(name):
    return host["models"].get(name)

@expose
async def get_async(name):
    return await host.models.get.aio(name)

@expose
async def get_many(names):
    return await asyncio.gather(*[host.models.get.aio(name) for name in names])

@expose
def called(x):
    return host.double(x)

@expose
def try_(code):
    try:
        return eval(code)
    except Exception as error:
        return type(error).__name__ + ": " + str(error)

@expose
def on_a_thread(name):
    found = []
    thread = threading.Thread(target=lambda: found.append(host.models.get(name)))
    thread.start()
    thread.join()
    return found[0]

class Model:
    "Lives in the worker."
    def __init__(self, name):
        self.name = name
        self.items = {}
        self.entered = 0
    def run(self, x):
        return self.name, x, os.getpid()
    async def run_async(self, x):
        await asyncio.sleep(0)
        return self.name, x
    def fail(self):
        raise KeyError("in the model")
    def steps(self, n):
        yield from range(n)
    def _private(self):
        return 1
    def __len__(self):
        return len(self.items)
    def __getitem__(self, key):
        return self.items[key]
    def __setitem__(self, key, value):
        self.items[key] = value
    def __delitem__(self, key):
        del self.items[key]
    def __contains__(self, key):
        return key in self.items
    def __iter__(self):
        return iter(self.items)
    def __enter__(self):
        self.entered += 1
        return ref(self)
    def __exit__(self, *error):
        self.entered -= 1
    def __call__(self, x):
        return -x
    def times_entered(self):
        return self.entered

models = {}

@expose
def load(name):
    model = models.get(name) or models.setdefault(name, Model(name))
    return ref(model)

@expose
def load_only(name):
    "Nobody but the caller has it."
    return [ref(Model(name))]

@expose
def is_the_model(name, model):
    return models[name] is model

@expose
def use(model, x):
    return type(model).__name__, model.run(x)

@expose
async def use_async(model, x):
    return await model.run.aio(x)

@expose
def give_back(model):
    return model

kept = []

@expose
def keep(thing):
    kept.append(thing)

@expose
def drop():
    kept.clear()

@expose
def look(thing):
    with thing as entered:
        pass
    return len(thing), "a" in thing, "b" in thing, thing["a"], sorted(thing), bool(thing), thing(3)

@expose
def change(thing):
    thing["new"] = 1
    del thing["a"]

@expose
def ref_of_what_came(thing):
    return ref(thing)
"""


class Models:
    """A host object."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.attribute = 5

    def get(self, name: str) -> str:
        self.calls.append(name)
        return f"model {name}"

    async def get_later(self, name: str) -> str:
        await asyncio.sleep(0)
        return f"later {name}"

    def fail(self) -> None:
        raise ValueError("no such model")

    def names(self) -> Iterator[str]:
        return iter(["a", "b"])

    def _secret(self) -> str:
        return "secret"


@pytest.fixture
def models() -> Models:
    return Models()


@pytest.fixture
def service(write: Write, models: Models) -> Iterator[atoll.Service]:
    with atoll.Service(write("hosted.py", SERVICE), host={"models": models, "double": lambda x: 2 * x}) as service:
        yield service


def lending(service: atoll.Service) -> Any:
    (worker,) = service._pool.workers
    gc.collect()
    return worker.lending


# -- by name -------------------------------------------------------------------------------------------------------


def test_a_host_object(service: atoll.Service, models: Models) -> None:
    assert service.get("sd_xl") == "model sd_xl"
    assert service.get_by_item("sd_xl") == "model sd_xl"
    assert service.get_async("a") == "model a"
    assert service.get_many(["a", "b", "c"]) == ["model a", "model b", "model c"]
    assert service.on_a_thread("t") == "model t"
    assert service.called(4) == 8
    assert service.try_("host.models.get_later('x')") == "later x"
    assert service.try_("list(host.models.names())") == ["a", "b"]
    assert models.calls.count("sd_xl") == 2


def test_a_host_object_on_a_loop(service: atoll.Service, run: Run) -> None:
    async def main() -> None:
        assert await service.get.aio("a") == "model a"
        assert await service.get_async.aio("a") == "model a"
        assert await service.get_many.aio(["a"] * 10) == ["model a"] * 10
        assert await service.try_.aio("host.models.get_later('x')") == "later x"

    run(main())


def test_what_cannot_be_called_on_it(service: atoll.Service) -> None:
    assert service.try_("host.models._secret()").startswith("AttributeError")
    assert "no attribute 'gett'" in service.try_("host.models.gett()")
    assert service.try_("host.models.__class__.__name__") == "HostObject"
    assert "not callable" in service.try_("host.models.attribute()")
    message = service.try_("host.other.get()")
    assert "'other'" in message
    assert "double, models" in message
    message = service.try_("host.models.fail()")
    assert message == "ValueError: no such model"
    # Nor by who speaks the wire without being asked to.
    forbidden = "__import__('atoll_worker.context', fromlist=['_']).lendings[0].invoke('host:models', {!r}, (), {{}})"
    for name in ("_secret", "__init__", "__getattribute__", "__reduce__", "__class__"):
        assert service.try_(forbidden.format(name)).startswith("AttributeError"), name
    assert service.get("a") == "model a"


def test_an_error_of_a_host_object_comes_back(service: atoll.Service) -> None:
    with pytest.raises(ValueError, match="no such model") as caught:
        service.use(atoll.ref(FailingModel()), 1)
    assert isinstance(caught.value, atoll.RemoteError)


class FailingModel:
    """Passed as a reference, its method raises."""

    def run(self, x: int) -> None:
        raise ValueError("no such model")


def test_setup_is_told_that_it_has_no_call(write: Write) -> None:
    text = """\
    from atoll_worker import Service, expose, host

    class Early(Service):
        def setup(self):
            self.model = host.models.get("a")

        @expose
        def get(self):
            return self.model
    """
    early = atoll.Service(write("early.py", text), host={"models": Models()})
    with pytest.raises(atoll.WorkerStartError, match=r"while a call is in progress.*setup"):
        early.start()
    early.close()


@pytest.mark.parametrize("host", [{"_a": 1}, {"a b": 1}, {1: 1}, ["models"]])
def test_wrong_host_objects(write: Write, host: Any) -> None:
    with pytest.raises(atoll.ManifestError, match="option host"):
        atoll.Service(write("hosted.py", SERVICE), host=host)


# -- a reference to the worker's -----------------------------------------------------------------------------------


def test_a_proxy_of_a_model(service: atoll.Service, run: Run) -> None:
    model = service.load("m")
    pid = service.pid
    assert model.run(1) == ("m", 1, pid)
    assert model.run(2) == ("m", 2, pid)
    assert model.run_async(3) == ("m", 3)
    assert list(model.steps(3)) == [0, 1, 2]
    model["a"] = [1]
    assert model["a"] == [1]
    assert len(model) == 1
    assert "a" in model
    assert "b" not in model
    assert list(model) == ["a"]
    del model["a"]
    assert len(model) == 0
    assert model
    assert model(4) == -4
    with model as entered:
        assert entered is model
        assert model.times_entered() == 1
    assert model.times_entered() == 0
    with pytest.raises(KeyError, match="in the model"):
        model.fail()
    with pytest.raises(KeyError):
        model["missing"]
    with pytest.raises(AttributeError, match="public"):
        model._private()
    with pytest.raises(AttributeError, match="missing"):
        model.missing()
    assert isinstance(model, atoll.RemoteObject)

    async def main() -> None:
        assert await model.run.aio(1) == ("m", 1, pid)
        assert await model.run_async.aio(1) == ("m", 1)
        assert await asyncio.gather(*[model.run_async.aio(i) for i in range(10)]) == [("m", i) for i in range(10)]
        with pytest.raises(KeyError):
            await model.fail.aio()

    run(main())


def test_a_proxy_goes_home_and_is_the_object_again(service: atoll.Service) -> None:
    model = service.load("m")
    assert service.is_the_model("m", model)
    assert service.is_the_model("m", atoll.ref(model))
    assert service.use(model, 5) == ("Model", ("m", 5, service.pid))
    assert service.load("m") is model  # one proxy for one object
    assert lending(service).borrowed == 1


def test_a_proxy_is_let_go_of(service: atoll.Service) -> None:
    model = service.load_only("m")[0]
    again = service.load_only("n")[0]
    assert lending(service).borrowed == 2
    assert model.run(1)[0] == "m"
    del model
    until(lambda: lending(service).borrowed == 1)
    assert again.run(1)[0] == "n"
    del again
    until(lambda: lending(service).borrowed == 0)
    for _ in range(100):
        service.load_only("x")
    until(lambda: lending(service).borrowed == 0)
    lent = "len(__import__('atoll_worker.context', fromlist=['_']).lendings[0]._lent)"
    until(lambda: service.try_(lent) == 0)


def test_a_proxy_of_a_worker_that_died(service: atoll.Service, run: Run) -> None:
    model = service.load("m")
    pid = service.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until_gone(pid)
    with pytest.raises(atoll.WorkerDied, match=r"gone with it|killed"):
        model.run(1)
    until(lambda: service.pid not in (pid, None) or service.get("a"))
    with pytest.raises(atoll.WorkerDied, match="gone with it"):
        model.run(1)
    with pytest.raises(atoll.WorkerDied):
        len(model)

    async def main() -> None:
        with pytest.raises(atoll.WorkerDied):
            await model.run.aio(1)

    run(main())
    assert service.load("m").run(2)[1] == 2


def test_a_proxy_of_a_service_that_was_closed(write: Write) -> None:
    with atoll.Service(write("hosted.py", SERVICE)) as service:
        model = service.load("m")
    with pytest.raises((atoll.ServiceClosed, atoll.WorkerDied)):
        model.run(1)


def test_a_proxy_goes_to_another_worker(service: atoll.Service, write: Write) -> None:
    with atoll.Service(write("other.py", SERVICE)) as other:
        model = service.load("m")
        kind, found = other.use(model, 7)
        assert kind == "RemoteObject"
        assert found == ("m", 7, service.pid)
        assert other.use_async(model, 7) == ("m", 7, service.pid)
        assert other.give_back(model) is model
        model["a"] = 1
        assert other.look(model) == (1, True, False, 1, ["a"], True, -3)
        other.keep(model)
        del model
        gc.collect()
        assert lending(service).borrowed == 1  # the other one has it
        other.drop()
        until(lambda: lending(service).borrowed == 0)


# -- a reference to the host's -------------------------------------------------------------------------------------


class Box(dict[str, Any]):
    def __enter__(self) -> Any:
        return 1

    def __exit__(self, *error: object) -> None: ...

    def __call__(self, x: int) -> int:
        return -x

    def run(self, x: int) -> tuple[str, int, int]:
        return "box", x, threading.get_ident()


def test_a_reference_to_an_object_of_the_host(service: atoll.Service, run: Run) -> None:
    box = Box(a=1)
    assert service.use(atoll.ref(box), 3) == ("RemoteObject", ("box", 3, threading.get_ident()))
    assert service.use_async(atoll.ref(box), 3)[:2] == ("box", 3)
    assert service.look(atoll.ref(box)) == (1, True, False, 1, ["a"], True, -3)
    service.change(atoll.ref(box))
    assert box == {"new": 1}
    assert service.give_back(atoll.ref(box)) is box
    assert service.ref_of_what_came(atoll.ref(box)) is box
    until(lambda: lending(service).count == 0)

    async def main() -> None:
        assert (await service.use.aio(atoll.ref(box), 3))[1][:2] == ("box", 3)
        assert await service.give_back.aio(atoll.ref(box)) is box

    run(main())


def test_a_reference_that_the_worker_keeps(service: atoll.Service) -> None:
    box = Box()
    service.keep(atoll.ref(box))
    service.keep(atoll.ref(box))
    assert lending(service).count == 1
    assert service.try_("kept[0] is kept[1]")
    assert service.try_("kept[0].run(1)")[:2] == ("box", 1)
    service.drop()
    until(lambda: lending(service).count == 0)


def test_references_come_and_go_on_many_threads(write: Write) -> None:
    """However the messages about it overtake each other, what is in use is there, and nothing else is."""
    failures: list[BaseException] = []
    with atoll.Service(write("hosted.py", SERVICE), concurrency=3) as service:
        service.start()
        shared = Box()

        def work() -> None:
            try:
                for i in range(150):
                    assert service.give_back(atoll.ref(shared)) is shared
                    assert service.load("m").run(i)[1] == i
                    assert service.load_only("x")[0].run(i)[1] == i
                    assert service.use(atoll.ref(Box()), i)[1][1] == i
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not failures
        until(lambda: lending(service).borrowed == 0)
        until(lambda: lending(service).count == 0)


# -- singletons ----------------------------------------------------------------------------------------------------

SHARED = """\
import asyncio
import os

from atoll_worker import ProxiedSingleton, local


class Settings(ProxiedSingleton):
    "Shared."

    made = 0

    def __init__(self, size=3):
        type(self).made += 1
        self.size = size
        self.values = {}

    def pid(self):
        return os.getpid()

    def set(self, name, value):
        self.values[name] = value

    def get(self, name):
        return self.values[name]

    async def get_later(self, name):
        await asyncio.sleep(0)
        return self.values[name]

    @property
    def twice(self):
        return 2 * self.size

    @local
    def here(self):
        return os.getpid()

    @property
    @local
    def here_too(self):
        return os.getpid()

    @local
    def both(self):
        return self.here(), self.pid()

    @staticmethod
    def static(x):
        return x + 1

    @classmethod
    def of_class(cls):
        return cls.__name__

    def _own(self):
        return os.getpid()


class Derived(Settings):
    "Has its own instance."

    def more(self):
        return os.getpid(), self.size

    def get(self, name):
        return "derived", super().get(name)


class Further(Derived):
    @local
    def here(self):
        return "further"
"""

USER = """\
import os
import sys

sys.path.insert(0, os.environ["SHARED"])
from shared_settings import Derived, Further, Settings

from atoll_worker import expose

@expose
def pid():
    return os.getpid()

@expose
def ask(what, *args):
    return getattr(Settings(), what)(*args)

@expose
async def ask_later(name):
    return await Settings().get_later(name)

@expose
def read(name):
    return getattr(Settings(), name)

@expose
def same():
    return Settings() is Settings(5)

@expose
def derived(what, *args):
    return getattr(Derived(), what)(*args)

@expose
def further(what, *args):
    return getattr(Further(), what)(*args)

@expose
def refuse():
    try:
        return Settings().missing()
    except AttributeError as error:
        return str(error)
"""


@pytest.fixture
def shared(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module that both sides import."""
    folder = write("shared/shared_settings.py", SHARED).parent
    monkeypatch.syspath_prepend(str(folder))
    before = dict(singleton._classes)
    yield importlib.import_module("shared_settings")
    sys.modules.pop("shared_settings", None)
    singleton._classes.clear()
    singleton._classes.update(before)


@pytest.fixture
def user(shared: Any, write: Write, tmp_path: Path) -> Iterator[atoll.Service]:
    with atoll.Service(write("user.py", USER), env_vars={"SHARED": str(tmp_path / "shared")}) as user:
        yield user


def test_in_the_host_it_is_the_object(shared: Any) -> None:
    settings = shared.Settings(7)
    assert shared.Settings() is settings
    assert shared.Settings.made == 1
    assert settings.twice == 14
    assert settings.here() == settings.pid() == os.getpid()
    assert shared.Derived() is not settings
    assert asyncio.run(_get_later(settings)) == 1


async def _get_later(settings: Any) -> Any:
    settings.set("x", 1)
    return await settings.get_later("x")


def test_in_a_worker_it_stands_for_the_hosts(shared: Any, user: atoll.Service, run: Run) -> None:
    settings = shared.Settings(5)
    pid = user.call("pid")
    assert user.ask("pid") == os.getpid()
    user.ask("set", "a", [1])
    assert settings.values == {"a": [1]}
    assert user.ask("get", "a") == [1]
    assert user.ask_later("a") == [1]
    assert user.read("twice") == 10
    assert user.ask("here") == pid
    assert user.read("here_too") == pid
    assert user.ask("both") == (pid, os.getpid())
    assert user.ask("_own") == pid
    assert user.same()
    assert "missing" in user.refuse()
    with pytest.raises(KeyError):
        user.ask("get", "missing")
    assert shared.Settings.made == 1

    async def main() -> None:
        assert await user.ask.aio("pid") == os.getpid()
        assert await user.ask_later.aio("a") == [1]
        assert await user.read.aio("twice") == 10

    run(main())


def test_static_and_class_methods_stay(shared: Any, user: atoll.Service) -> None:
    assert user.ask("static", 1) == 2
    assert user.ask("of_class") == "Settings"


def test_a_class_derived_from_one(shared: Any, user: atoll.Service) -> None:
    shared.Settings(3)
    shared.Derived(9).set("a", 1)
    assert user.derived("more") == (os.getpid(), 9)
    assert user.derived("get", "a") == ("derived", 1)
    assert user.derived("pid") == os.getpid()
    assert user.further("here") == "further"
    shared.Further(11)
    assert user.further("more") == (os.getpid(), 11)
    assert user.derived("more") == (os.getpid(), 9)


def test_one_that_the_host_does_not_know(write: Write) -> None:
    text = """\
    from atoll_worker import ProxiedSingleton, expose

    class Unknown(ProxiedSingleton):
        def get(self):
            return 1

    @expose
    def get():
        return Unknown().get()
    """
    with (
        atoll.Service(write("unknown.py", text)) as service,
        pytest.raises(LookupError, match=r"Unknown.*import the module"),
    ):
        service.get()


def test_what_returns_itself_gives_the_proxy_again(tmp_path: Path) -> None:
    """As ``__enter__`` of most objects does, and every builder."""
    file = tmp_path / "building.py"
    file.write_text(
        "from atoll_worker import expose, ref\n\n"
        "class Builder:\n"
        "    def __init__(self):\n        self.said = []\n"
        "    def add(self, word):\n        self.said.append(word)\n        return self\n"
        "    def text(self):\n        return ' '.join(self.said)\n"
        "    def __enter__(self):\n        return self.add('in')\n"
        "    def __exit__(self, *error):\n        self.add('out')\n\n"
        "@expose\ndef builder():\n    return ref(Builder())\n\n"
        "@expose\ndef use(builder):\n"
        "    with builder as same:\n        same.add('between')\n"
        "    return builder.text()\n"
    )

    class Here:
        def __init__(self) -> None:
            self.said: list[str] = []

        def add(self, word: str) -> Here:
            self.said.append(word)
            return self

        def text(self) -> str:
            return " ".join(self.said)

        def __enter__(self) -> Here:
            return self.add("in")

        def __exit__(self, *error: object) -> None:
            self.add("out")

    with atoll.Service(file) as service:
        with service.builder() as same:
            assert same.add("a").add("b").text() == "in a b"
        assert same.text() == "in a b out"
        assert service.use(atoll.ref(Here())) == "in between out"
        del same
