# SPDX-License-Identifier: Apache-2.0
"""Exceptions as data, both ways, and the errors that both sides share.

What always holds here: describing an exception never raises and never imports anything named by the exception;
everything described is made of plain values and bounded in size. What does not belong here: raising a described
exception again (the host does that, in ``atoll.client.remote_error``).
"""

from __future__ import annotations


class AtollError(Exception):
    """Base of every error that atoll itself raises."""


class ValuesError(AtollError):
    """A value could not be turned into bytes, or bytes into a value."""


class EncodeError(ValuesError, TypeError):
    """A value cannot be passed. The message names the exact part, such as ``args[1]['cfg'].lock``."""


class DecodeError(ValuesError, ValueError):
    """Received bytes do not describe a value that this side admits."""


class ProtocolError(AtollError):
    """The rules of the wire were broken."""


class LocalProtocolError(ProtocolError):
    """This side tried to do what the wire does not allow in the present state."""


class RemoteProtocolError(ProtocolError):
    """The other side sent what the wire does not allow: a malformed frame, or one out of turn."""
