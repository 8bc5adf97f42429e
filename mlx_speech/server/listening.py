"""The place where a server listens."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

from mlx_speech.errors import OptionError

BACKLOG = 128  # connections that the system holds before they are taken


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; who connects waits until it is served.

    host : "" for all addresses
    port : 0 for a free one

    Raises `OptionError` where that cannot be.
    """
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:  # no such name
        raise OptionError(f"{place}: is no address ({error.strerror}): give another host") from error
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)  # of TCP by name, or asyncio holds small answers back
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that has just ended does not count
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise OptionError(f"{place}: is taken: stop what listens there, or give another port") from error
        reason = os.strerror(error.errno or errno.EINVAL)
        raise OptionError(f"{place}: cannot be listened at ({reason}): give another host or port") from error
    return listener


def listen_at(path: Path) -> socket.socket:
    """A Unix socket that listens. The umask of the process says who may connect: with the usual 022 its user alone.

    A socket that nobody listens at any more, of a server that has crashed, is replaced.
    Raises `OptionError` where that cannot be.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if _is_left_over(path):
            path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise OptionError(f"{path}: is taken: stop what listens there, or give another uds") from error
        reason = error.strerror or str(error)  # of too long a path there is no number
        raise OptionError(f"{path}: cannot be listened at ({reason}): give another uds") from error
    return listener


def _is_left_over(path: Path) -> bool:
    """Whether it is a socket at which nobody answers."""
    if not path.exists() or not stat.S_ISSOCK(path.stat().st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trying:
        try:
            trying.connect(str(path))
        except ConnectionRefusedError:
            return True
    return False
