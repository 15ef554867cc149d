# SPDX-License-Identifier: Apache-2.0
"""Any Python code in its own process, with its own packages and interpreter, called like a local function."""
