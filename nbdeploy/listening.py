"""Where a service listens, where callers on this machine find it, and whether it answers."""

from __future__ import annotations

import errno
import http.client
import socket
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from nbdeploy import credentials
from nbdeploy.errors import PortBusy, ServiceError
from nbdeploy.serve_options import ServeOptions


def listen(name: str, host: str, port: int | None, former: int, holder: Callable[[int], str]) -> socket.socket:
    """A listening socket that a child can inherit.

    Parameters
    ----------
    name : str
        Of the deployment, for what goes wrong.
    port : int, optional
        By default `former`, and where that is taken, a free one.
    holder
        Says who has a port that is taken.

    Raises
    ------
    PortBusy
        The port cannot be had.
    ServiceError
        `host` is no address of this machine.
    """
    listener = None
    try:
        family, place = _resolved(host)
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:  # `::` is every address, also where the system would think otherwise
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if place[0] == "::" else 1)
        try:
            listener.bind((place[0], former if port is None else port, *place[2:]))
        except OSError:
            if port is not None:
                raise
            listener.bind((place[0], 0, *place[2:]))  # its former port went to somebody else
        listener.listen(2048)  # taken for good now: SO_REUSEADDR lets two sockets bind as long as neither listens
    except OverflowError as error:
        _close(listener)
        msg = f"{port} is not a port"
        raise PortBusy(msg, "Choose 1 to 65535, or leave --port out.") from error
    except (OSError, UnicodeError) as error:
        _close(listener)
        raise _refusal(name, host, port, error, holder) from error
    listener.set_inheritable(True)
    return listener


def url_of(options: ServeOptions, address: str, port: int) -> str:
    """Where this machine finds what listens on `address`. A name stays a name, for who checks a certificate."""
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  not to bind, to be recognized
    host = everywhere.get(address) or (address if credentials.is_loopback(address) else options.host)
    scheme = "https" if options.tls_cert else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def answers(url: str, trust: ssl.SSLContext | None, timeout: float) -> bool:
    """Whether the service at `url` says within `timeout` seconds that it is ready."""
    # Not urllib: it would ask a proxy of the environment. While a worker starts, the request waits in the
    # listening socket's queue and is answered the moment that the worker is there.
    place = urlsplit(url)
    host, port = place.hostname or "", place.port
    if trust is None:
        connection = http.client.HTTPConnection(host, port, timeout=timeout)
    else:
        connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=trust)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


# -- helpers ------------------------------------------------------------------------------------------------


def _resolved(host: str) -> tuple[int, tuple[Any, ...]]:
    """The one address of a name; of several, the first, and of this machine's own name the IPv4 one."""
    kind = socket.AF_INET if host == "localhost" else socket.AF_UNSPEC
    family, _, _, _, place = socket.getaddrinfo(host, None, kind, socket.SOCK_STREAM)[0]
    return family, place


def _refusal(name: str, host: str, port: int | None, error: Exception, holder: Callable[[int], str]) -> ServiceError:
    if isinstance(error, UnicodeError):  # a label of more than 63 characters
        error = socket.gaierror(socket.EAI_NONAME, "it is no name")
    assert isinstance(error, OSError)
    if isinstance(error, socket.gaierror) or error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        msg = f"{host} for {name!r} is no address of this machine: {error.strerror}"
        return ServiceError(msg, "For example 127.0.0.1, or 0.0.0.0 for every address of it.")
    if error.errno != errno.EADDRINUSE:
        msg = f"port {port} for {name!r} cannot be used: {error.strerror}"
    else:
        msg = f"port {port} for {name!r} is taken by {holder(port or 0)}"
    return PortBusy(msg, "Choose another, or leave --port out for a free one.")


def _close(listener: socket.socket | None) -> None:
    if listener is not None:
        listener.close()
