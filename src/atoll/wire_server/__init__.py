# SPDX-License-Identifier: Apache-2.0
"""atoll's own wire at a socket of the file system, for programs in any language: ``atoll serve --socket``.

The rooms, lowest first: ``conversation`` (whose turn it is, and what a frame asks for: bytes only), ``messages`` (what
a request says in JSON, and what is said back), ``server`` (connections and calls). What always holds here: it
translates; what can be called, how long it may take and who calls it is the service's pool's. ``docs/wire.md`` is what
it promises.
"""

from __future__ import annotations

from .server import MAX_CONNECTIONS, MAX_SIZE, serve

__all__ = ["MAX_CONNECTIONS", "MAX_SIZE", "serve"]
