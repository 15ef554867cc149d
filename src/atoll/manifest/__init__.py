# SPDX-License-Identifier: Apache-2.0
"""``service.yaml``, a PEP 723 header or keyword options -> one typed ``ServiceSpec``.

::

    load_spec("services/vision.py")            a file, with or without a PEP 723 header
    load_spec("services/vision.py:Edges")      one class of it
    load_spec("services/vision")               a folder with a service.yaml
    load_spec("package.module:Edges")          an importable module
    function_spec("mean", dependencies=[…])    @atoll.function, which has no file

What always holds here: what is given later goes before what was said earlier (header, then ``service.yaml``, then
options); every path in a spec is absolute; unknown keys are kept in ``extra``; a wrong value is a ``ManifestError``
that names file, key, what was found and what is expected. What does not belong here: whether the requested
environment can be had.

Importing this package is cheap on purpose: msgspec, which costs as much as asyncio, is imported when the first spec
is made, not by ``import atoll``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .options import Breaker, Recycle, Restart, Sandbox
    from .spec import ServiceSpec

__all__ = ["Breaker", "Recycle", "Restart", "Sandbox", "ServiceSpec", "function_spec", "load_spec", "manifest_schema"]


def load_spec(source: str | os.PathLike[str], **options: Any) -> ServiceSpec:
    """Read a service's spec.

    Args:
        source: a ``.py`` file (also ``file.py:Class``), a folder with a ``service.yaml``, the path of such a file, or
            ``"package.module[:Class]"``.
        options: fields of ``ServiceSpec``; they go before what the source says. Relative paths are taken from the
            current folder. Times are in seconds.

    Raises:
        ManifestError: the source cannot be read, or it or an option holds a wrong value.
    """
    from .sources import load_spec as load

    return load(source, **options)


def function_spec(name: str, **options: Any) -> ServiceSpec:
    """The spec of a function that is shipped as source: ``entry`` is empty, ``folder`` is None.

    Raises:
        ManifestError: an option holds a wrong value.
    """
    from .sources import function_spec as make

    return make(name, **options)


def manifest_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of ``service.yaml``."""
    from .spec import manifest_schema as make

    return make()


def __getattr__(name: str) -> Any:
    if name == "ServiceSpec":
        from .spec import ServiceSpec

        return ServiceSpec
    if name in ("Breaker", "Recycle", "Restart", "Sandbox"):
        from . import options

        return getattr(options, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
