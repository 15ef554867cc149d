# SPDX-License-Identifier: Apache-2.0
"""Which files and folders of a folder are services that can be called with one object.

What always holds here: they are read, never run. What does not belong here: what a service is (``exposed``), and what
is made of it (``service_client``).
"""

from __future__ import annotations

import logging
import os

from ..errors import ManifestError
from ..manifest import load_spec
from ..manifest.sources import MANIFEST_NAMES
from .exposed import read_service
from .service_client import PROCESS

logger = logging.getLogger("atoll.client")


def sources_in(folder: str) -> list[str]:
    """The files and folders in a folder that may be services."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise ManifestError(f"{folder}: services cannot be looked for there: {error.strerror}") from error
    found = []
    for name in names:
        path = os.path.join(os.path.abspath(folder), name)
        if name.startswith((".", "_")):
            continue
        manifests = (os.path.join(path, one) for one in MANIFEST_NAMES)
        if (name.endswith(".py") and os.path.isfile(path)) or any(map(os.path.isfile, manifests)):
            found.append(path)
    return found


def has_process(source: str) -> bool:
    """Whether a service has the function that clients call; read from its text."""
    try:
        return any(one.name == PROCESS for one in read_service(load_spec(source).entry).functions)
    except ManifestError as error:
        if not source.endswith(".py") or error.__cause__ is not None:
            logger.warning("%s is left out: %s", source, error)
        return False  # a file that is no service: nothing is exposed there
