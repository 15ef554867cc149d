# SPDX-License-Identifier: Apache-2.0
"""What users hold in their hands: functions and services that are called like local ones.

Layout: ``source`` (a function's text, and whether it can be shipped), ``plan`` (a spec -> what a worker is started
with), ``remote`` (one callable: sync, async, mapped), ``submitter`` (the thread behind submitted calls), ``function``
and ``service`` (the two things that make them), ``service_client`` with ``warm`` and ``discovery`` (services that take
one object and give one answer).
"""

from __future__ import annotations

from .function import Function, function
from .remote import RemoteFunction
from .service import FunctionInfo, Service

__all__ = ["Function", "FunctionInfo", "RemoteFunction", "Service", "function"]
