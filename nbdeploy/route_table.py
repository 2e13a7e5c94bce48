"""Every route of the versions that a process has loaded, and which version answers a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nbdeploy import (
    protocol_bentoml,
    protocol_inference,
    protocol_labels,
    protocol_mlflow,
    protocol_own,
    protocol_tensorflow,
)
from nbdeploy.endpoint import Endpoint
from nbdeploy.errors import did_you_mean
from nbdeploy.exchange import Refused, Route
from nbdeploy.version_choice import Choice

VERSION = "version"  # the field of a query that names one


def all_routes(endpoint: Endpoint, *, token: bool) -> list[Route]:
    """Every route of one version; `token` says whether they need one."""
    served = endpoint.served
    return [
        *protocol_own.routes(endpoint, token=token),
        *protocol_labels.routes(served),
        *protocol_mlflow.routes(served),
        *protocol_inference.routes(served),
        *protocol_tensorflow.routes(served),
        *protocol_bentoml.routes(served),
    ]


@dataclass(frozen=True)
class RouteTable:
    """What can be asked, and of whom. It never changes: another traffic is another table.

    Attributes
    ----------
    endpoints : mapping
        What is loaded, by version.
    routes : mapping
        By path, method and version. A path that names a version has no other.
    live : Endpoint
        The version that answers where nothing says otherwise.
    alike : frozenset of str
        The versions that find in a body of JSON what the live one finds there; see `Signature.reads_as`.
    """

    endpoints: Mapping[str, Endpoint]
    choice: Choice
    routes: Mapping[str, Mapping[str, Mapping[str, Route]]]
    live: Endpoint
    alike: frozenset[str]

    @classmethod
    def of(cls, endpoints: Mapping[str, Endpoint], choice: Choice, routes: Mapping[str, list[Route]]) -> RouteTable:
        """The table of `endpoints`, whose routes are `routes`."""
        table: dict[str, dict[str, dict[str, Route]]] = {}
        for version in endpoints:
            for route in routes[version]:
                table.setdefault(route.path, {}).setdefault(route.method, {})[version] = route
        live = endpoints[choice.live]
        alike = (version for version, each in endpoints.items() if each.signature.reads_as(live.signature))
        return cls(endpoints, choice, table, live, frozenset(alike))

    def methods(self, path: str) -> Mapping[str, Mapping[str, Route]]:
        """What can be done with `path`."""
        return self.routes.get(path) or self.routes.get(path.rstrip("/")) or {}

    def named(self, routes: Mapping[str, Route], query: Mapping[str, str]) -> str:
        """The version that a request names, by its query or its path; '' where it names none.

        Raises
        ------
        Refused
            It may not choose, or the version is not served.
        """
        version = query.get(VERSION)
        if version is None:
            if len(routes) > 1 or len(self.endpoints) == 1:
                return ""
            version = next(iter(routes))
        elif version.isdecimal():
            version = f"v{version}"
        if version not in routes:
            served = f"{self.choice.name} serves no {version[:40]!r} there. {did_you_mean(version, routes)}".strip()
            raise Refused(404, served, reason="version")
        if not self.choice.pin and version != self.choice.live:
            raise Refused(403, f"{self.choice.name} lets nobody choose a version", reason="version")
        return version

    def drawn(self, routes: Mapping[str, Route], headers: Mapping[str, str], request_id: str) -> str:
        """The version that answers a request which names none, before it is read."""
        choice = self.choice
        if not choice.slots or choice.column is not None:
            return choice.live
        # Who does not send the header is not kept with one version.
        key = headers.get(choice.header) if choice.header else None
        version = choice.by_key((request_id if key is None else key).encode("utf-8", "surrogateescape"))
        return version if version in routes else choice.live
