# SPDX-License-Identifier: Apache-2.0
"""JSON-RPC 2.0 over two streams of bytes, for any service: ``atoll serve --stdio``.

The rooms, lowest first: ``framing`` (where a message ends), ``messages`` (what it says, and what is said back),
``session`` (calls). What always holds here: it translates; what can be called, how long it may take and who calls it
is the service's pool's. ``framing`` and ``messages`` know bytes, not streams.
"""

from __future__ import annotations

from .framing import MAX_SIZE, ContentLengthFraming, LineFraming
from .session import serve

__all__ = ["MAX_SIZE", "ContentLengthFraming", "LineFraming", "serve"]
