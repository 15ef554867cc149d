# SPDX-License-Identifier: Apache-2.0
"""``python -m atoll.cli`` is the ``atoll`` command."""

from __future__ import annotations

import sys

from . import main

sys.exit(main())
