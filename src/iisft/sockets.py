"""A socket of one's own at an address, before anything that takes long is done."""

import contextlib
import ipaddress
import socket
from collections.abc import Iterator

from iisft.errors import EnvironmentFault, UsageError


@contextlib.contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket bound to the address, for the block; port 0 is any free one.

    Raises:
        UsageError: no such port.
        EnvironmentFault: the port is taken, or the host is not an address of this machine.
    """
    if not 0 <= port < 2**16:
        raise UsageError("port", f"--port must be from 0 to 65535, not {port}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        # without it a restart waits until the old connections have left TIME_WAIT
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, ValueError, TypeError) as error:  # a name that is no name of a host
            where = f"{host}:{port}"
            text, fix = (
                f"{where} can't be listened on: {getattr(error, 'strerror', None) or error}",
                f"--port {port + 1}, or --port 0 for any free one",
            )
            raise EnvironmentFault("port-taken", text, where=where, fix=fix) from error
        yield listener


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
