# SPDX-License-Identifier: Apache-2.0
"""For all tests: nothing that a test starts is left when it ends (``leaks``)."""

from __future__ import annotations

pytest_plugins = ["leaks"]
