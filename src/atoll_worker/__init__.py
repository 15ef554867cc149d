# SPDX-License-Identifier: Apache-2.0
"""What runs inside the isolated process. Standard library only, Python 3.9+, never imports ``atoll``."""
