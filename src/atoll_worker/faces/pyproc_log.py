# SPDX-License-Identifier: Apache-2.0
"""What a worker under pyproc's wire says of itself, to the logger ``atoll_worker.pyproc``.

What always holds here: ``logging``, whose import takes milliseconds, is imported when there is something to say. What
does not belong here: what functions log.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from logging import Logger
    from typing import Optional, Union

LOG_VARIABLE = "PYPROC_LOG_LEVEL"

_NAME = "atoll_worker.pyproc"


def logger() -> Union[Logger, _Plain]:
    """Where it is said."""
    try:
        import logging
    except (OSError, ImportError):  # no descriptor is left to read it by: just what may be to be said
        return _Plain()
    return logging.getLogger(_NAME)


class _Plain:
    """In the place of a logger, where there can be none: standard error, as it gets what no handler takes."""

    def error(self, words: str, *details: object) -> None:
        """As of a logger."""
        try:
            os.write(2, f"{words % details}\n".encode("utf-8", "backslashreplace"))
        except OSError:
            pass

    warning = error


def say(words: str, *details: object) -> None:
    """For who debugs; what happens seldom only, never each call. Imports nothing unless somebody asked."""
    if LOG_VARIABLE in os.environ:
        import logging

        logging.getLogger(_NAME).debug(words, *details)


def set_level(name: Optional[str]) -> None:
    """Have what the worker does said on standard error, where the program has made no other arrangements.

    Args:
        name: what ``LOG_VARIABLE`` says; nothing leaves all as it is.

    Raises:
        ValueError: there is no such level.
    """
    if not name:
        return
    import logging

    try:
        logging.getLogger(_NAME).setLevel(name.upper())
    except ValueError:
        raise ValueError(f"{LOG_VARIABLE} is {name!r}; levels are debug, info, warning and error") from None
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")  # unless there is a handler
