"""Who may ask: the host that is called, the page that calls, and the token.

What a `Host` check keeps away is a web page of somebody else whose name has been pointed at this machine after it was
loaded (DNS rebinding): for the browser, this service is then part of that page's own site.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nbdeploy import credentials
from nbdeploy.errors import ServiceError
from nbdeploy.exchange import Refused, Reply
from nbdeploy.serve_options import ANY, ServeOptions

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
# What a page may send and see, beyond what browsers always let it.
MAY_SEND = (
    "authorization", "content-type", "inference-header-content-length", "traceparent", "tracestate",
    "x-nbdeploy-purpose", "x-request-id",
)  # fmt: skip
MAY_SEE = (
    "Inference-Header-Content-Length, Retry-After, Traceparent, Tracestate, X-NBDeploy-Request, X-NBDeploy-Version, "
    "X-Request-ID"
)
ALLOWED = "Access-Control-Allow-Origin"
REMEMBERED = 256  # hosts and origins; whoever sends others each time gains nothing
AUTHORITY = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9_.-]{1,253})(?::\d{1,5})?")


class Guard:
    """Decides by a request's headers whether it is answered.

    Parameters
    ----------
    options : ServeOptions
        Of them `host`, `allowed_hosts`, `origins` and whether there is TLS.
    token : str, optional
        What ``Authorization: Bearer`` has to carry; None where none is needed.
    address : str, optional
        What the service really listens on, where `host` is a name. Empty: not known, as in a container.

    Raises
    ------
    ServiceError
        The address is not loopback, and there is no token.
    """

    def __init__(self, options: ServeOptions, token: str | None, address: str = "") -> None:
        if address and token is None and not credentials.is_loopback(address):
            msg = f"a service on {address} needs a token"
            raise ServiceError(msg, "Start it by nbdeploy, or on 127.0.0.1.")
        self._token = None if token is None else token.encode()
        self._secure = bool(options.tls_cert)
        self._origins = frozenset(options.origins)
        self._any_host = ANY in options.allowed_hosts
        self._names = {"localhost", *options.allowed_hosts, options.host.partition("%")[0], address.partition("%")[0]}
        self._anywhere = _is_unspecified(address or options.host)
        if self._anywhere:
            self._names.add(socket.gethostname().lower())
        # What depends on who asks must say so to caches, also where nobody in particular asked.
        self._plain: Mapping[str, str] = {"Vary": "Origin"} if self._origins - {ANY} else {}
        self._right: set[str] = set()
        self._pages: dict[tuple[str, str], Mapping[str, str]] = {}

    @property
    def needs_token(self) -> bool:
        """Whether anything but health is answered only to who has the token."""
        return self._token is not None

    def check(self, method: str, headers: Mapping[str, str], *, open: bool = False) -> Mapping[str, str]:  # noqa: A002
        """The headers that the reply to this request has to carry.

        Parameters
        ----------
        headers
            Lower-case names.
        open
            Whether it is answered without a token.

        Raises
        ------
        Refused
            400 no host, 421 a host that this service is not called by, 403 a page that may not call it, 401 no token or
            a wrong one.
        """
        host = headers.get("host", "")
        if host not in self._right:
            self._check_host(host)
        added = self._plain
        if "origin" in headers or "sec-fetch-site" in headers:
            added = self._check_page(method, host, headers)
        if self._token is not None and not open:
            self._check_token(headers.get("authorization", ""), added)
        return added

    def preflight(self, method: str, headers: Mapping[str, str]) -> Reply | None:
        """The reply to a browser that asks whether a page may call; None where the request is none of that kind.

        Raises
        ------
        Refused
            As `check` does; it needs no token.
        """
        if method != "OPTIONS" or not ("origin" in headers and "access-control-request-method" in headers):
            return None
        added = self.check(method, headers, open=True)
        if ALLOWED not in added:  # the service's own page needs no permission
            return None
        asked = [each.strip().lower() for each in headers.get("access-control-request-headers", "")[:1000].split(",")]
        granted = {
            "Access-Control-Allow-Methods": "GET, POST",
            "Access-Control-Allow-Headers": ", ".join(each for each in MAY_SEND if each in asked),
            "Access-Control-Max-Age": "600",
        }
        return Reply(b"", headers={**added, **{name: value for name, value in granted.items() if value}})

    def _check_host(self, host: str) -> None:
        if not host:
            msg = "the request has no Host header"
            raise Refused(400, msg, reason="host")
        parts = AUTHORITY.fullmatch(host.lower()) if len(host) <= 300 else None
        if parts is None or not self._is_called(parts[1].strip("[]").removesuffix(".")):
            msg = (
                f"this service is not called {host[:100]!r}; its owner can allow it with allowed_hosts (--allowed-host)"
            )
            raise Refused(421, msg)
        if len(self._right) < REMEMBERED:
            self._right.add(host)

    def _is_called(self, name: str) -> bool:
        if self._any_host or name in self._names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        # No name can be pointed elsewhere where none is used: on every address of the machine, any address will do.
        return credentials.is_loopback(name) or self._anywhere or str(address) in self._names

    def _check_page(self, method: str, host: str, headers: Mapping[str, str]) -> Mapping[str, str]:
        origin = headers.get("origin")
        if origin is None:
            # Browsers tell where what could change something comes from. One that does not, and yet says this:
            if (
                method not in SAFE
                and headers["sec-fetch-site"] in ("cross-site", "same-site")
                and ANY not in self._origins
            ):
                msg = "a page of another site may not call this service"
                raise Refused(403, msg)
            return self._plain
        known = self._pages.get((origin, host))
        if known is None:
            known = self._page(origin.lower(), host.lower())
            if len(self._pages) < REMEMBERED:
                self._pages[origin, host] = known
        return known

    def _page(self, origin: str, host: str) -> Mapping[str, str]:
        scheme, _, place = origin.partition("://")
        # Without TLS of its own it may stand behind a proxy that has it.
        if place == host and (scheme == "https" or (scheme == "http" and not self._secure)):
            return self._plain
        if ANY in self._origins:
            return {ALLOWED: ANY, "Access-Control-Expose-Headers": MAY_SEE}
        if origin in self._origins:
            return {ALLOWED: origin, "Access-Control-Expose-Headers": MAY_SEE, "Vary": "Origin"}
        msg = f"a page of {origin[:100]!r} may not call this service; its owner can allow it with origins (--origin)"
        raise Refused(403, msg)

    def _check_token(self, given: str, added: Mapping[str, str]) -> None:
        assert self._token is not None
        scheme, _, token = given.partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode("utf-8", "replace"), self._token):
            return
        said = "is not this service's" if given else "is missing"
        msg = f"the token {said}: send it as 'Authorization: Bearer TOKEN'"
        raise Refused(401, msg, headers={**added, "WWW-Authenticate": 'Bearer realm="nbdeploy"'})


def guard_of(spec: Mapping[str, Any]) -> Guard:
    """The guard of a worker: as its spec says; for a Bento that nbdeploy did not start, as its environment says.

    Raises
    ------
    ServiceError
        The token cannot be read.
    """
    if "options" not in spec:
        return Guard(ServeOptions.of_environment(), credentials.token_of_environment())
    path = spec.get("token_file")
    token = credentials.read_token(Path(path)) if path else None
    return Guard(ServeOptions.from_dict(spec["options"]), token, spec.get("address") or spec["options"]["host"])


def _is_unspecified(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_unspecified
    except ValueError:
        return False
