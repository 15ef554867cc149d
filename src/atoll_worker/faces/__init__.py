# SPDX-License-Identifier: Apache-2.0
"""Other ways to drive a service's function table than atoll's own wire.

``answers`` (what a service says of one call, as JSON), ``stdio`` (a program that reads one call and writes one
answer); ``pyproc`` (a program that answers whoever connects to its socket) over ``pyproc_server`` (calls),
``pyproc_ear`` (what is heard during one), ``pyproc_connections``, ``pyproc_call``, ``pyproc_wire`` (bytes),
``pyproc_log`` and ``poller``; ``unix_socket`` (making one). What always holds here: a face translates; what can be
called, and how, is the function table's (``service``). What does not belong here: faces of the host's.
"""
