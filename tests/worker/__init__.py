# SPDX-License-Identifier: Apache-2.0
"""Tests of ``atoll_worker`` alone: the host's package is not needed for any of them."""
