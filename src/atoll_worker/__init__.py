# SPDX-License-Identifier: Apache-2.0
"""What runs inside the isolated process. Standard library only, Python 3.9+, never imports ``atoll``.

A service's author imports from here::

    from atoll_worker import Service, expose, register

The host loads this package by its place on disk and runs ``__main__``; nothing is installed into the service's
environment. Layout, lowest first: ``wire`` and ``lane`` (bytes), ``registry``, ``errors``, ``guard``, ``adapters`` and
``values`` (what crosses), ``connection`` (moving it), ``service`` (what can be called), ``control`` and ``runtime``
(serving).
"""

from .registry import register
from .service import Service, expose

__all__ = ["Service", "expose", "register"]
