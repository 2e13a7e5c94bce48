"""How a deployment is served: what `serve` and `deploy` may be told beside the version."""

from __future__ import annotations

import inspect
import ipaddress
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from nbdeploy.errors import InputError, did_you_mean

SPEC = "NBDEPLOY_SPEC"  # the file that tells a worker what to serve; without it, the version stands in its Bento
READY = "NBDEPLOY_READY"  # the file, named by the worker's number, that says that it answers
MIDDLEWARE = "NBDEPLOY_BENTOML_MIDDLEWARE"  # whether requests pass BentoML's own tracing, metrics and access log
HOST = "127.0.0.1"
MIB = 1 << 20
ANY = "*"
PLACE = "    **options\n"  # where a docstring wants every option explained

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class ServeOptions:
    """Where a service listens, whom it answers, and its limits. They hold for one start: the next one begins anew.

    Attributes
    ----------
    host : str
        The address to listen on. Any but loopback needs a token.
    workers : int
        Processes that answer; they share nothing but files.
    token : bool, optional
        Whether a request needs a token. By default where `host` is not loopback, and where a token is given by
        `token_file`, ``NBDEPLOY_TOKEN`` or ``NBDEPLOY_TOKEN_FILE``. Else it is generated, once for each name.
    token_file : str
        Path of a file with the token, which nobody else may read.
    tls_cert, tls_key : str
        Paths of a certificate, with its chain, and its key, PEM; both or neither.
    allowed_hosts : sequence of str
        Names that a ``Host`` header may have beside loopback's and `host` itself; ``*`` for any.
    origins : sequence of str
        Web pages that may call the service, ``https://app.example.com`` say: CORS. ``*`` for any.
    log_required : bool
        Refuse to answer what cannot be logged.
    log_days : float
        How long the log is kept.
    log_bytes : int
        How large the log of one deployment may grow.
    max_body : int
        Bytes of one request.
    timeout : float
        Seconds that one request may take in all.
    access_log : bool
        One JSON line per request in the service's log.
    bentoml_middleware : bool
        Let each request pass BentoML's own tracing, metrics and access log too.

    Raises
    ------
    InputError
        One of them makes no sense.
    """

    host: str = HOST
    workers: int = 1
    token: bool | None = None
    token_file: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    allowed_hosts: Sequence[str] = ()
    origins: Sequence[str] = ()
    log_required: bool = False
    log_days: float = 90.0
    log_bytes: int = 10 << 30
    max_body: int = 64 * MIB
    timeout: float = 60.0
    access_log: bool = False
    bentoml_middleware: bool = False

    def __post_init__(self) -> None:
        for name in ("workers", "log_bytes", "max_body", "log_days", "timeout"):
            self._set(name, _amount(name, getattr(self, name), whole=name in ("workers", "log_bytes", "max_body")))
        for name in ("token_file", "tls_cert", "tls_key"):
            self._set(name, _path(name, getattr(self, name)))
        self._set("host", _host(self.host))
        self._set("allowed_hosts", tuple(map(_allowed, _several("allowed_hosts", self.allowed_hosts))))
        self._set("origins", tuple(map(_origin, _several("origins", self.origins))))
        wanted: Any = self.token
        if not (wanted is None or isinstance(wanted, bool)):
            # A token itself would stand in the notebook, or in the shell's history.
            msg = "token= says whether a token is needed; it is not the token"
            raise InputError(msg, hint="Pass token=True, or the path of a file with one as token_file=.")
        if self.token is False and self.token_file:
            msg = "a token file makes no sense where no token is wanted"
            raise InputError(msg, hint="Leave one of the two out.")
        if bool(self.tls_cert) != bool(self.tls_key):
            msg = "TLS needs a certificate and its key"
            raise InputError(msg, hint="Pass both tls_cert= and tls_key=.")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ServeOptions:
        """What `to_dict` gave; what this release does not know is passed over."""
        return cls(**{key: each for key, each in value.items() if key in _NAMES})

    @classmethod
    def chosen(cls, options: Mapping[str, Any]) -> ServeOptions:
        """The options that a user gave by keyword; None means not given.

        Raises
        ------
        InputError
            There is no such option, or it makes no sense.
        """
        for name in options:
            if name not in _NAMES:
                msg = f"there is no option {name!r}"
                raise InputError(msg, hint=did_you_mean(name, _NAMES))
        return cls(**{name: value for name, value in options.items() if value is not None})

    @classmethod
    def of_environment(cls) -> ServeOptions:
        """For a service that nbdeploy did not start: a Bento in a container, or `bentoml serve`.

        Its host is not known here. ``NBDEPLOY_ALLOWED_HOSTS`` (by default any) and ``NBDEPLOY_ORIGINS`` are lists with
        commas.
        """
        hosts, origins = (os.environ.get(name, "") for name in ("NBDEPLOY_ALLOWED_HOSTS", "NBDEPLOY_ORIGINS"))
        return cls(allowed_hosts=_listed(hosts) or (ANY,), origins=_listed(origins))

    def differing(self, options: Mapping[str, Any]) -> list[str]:
        """Which of the options that a user gave are others than these, as ``name=value`` of these."""
        wanted = ServeOptions.chosen(options)
        given = [name for name, value in options.items() if value is not None]
        return [f"{name}={_shown(self, name)}" for name in given if getattr(wanted, name) != getattr(self, name)]


_NAMES = tuple(each.name for each in fields(ServeOptions))


def with_serve_options(function: F) -> F:
    """Show each option in the signature and the help of a function that takes ``**options``."""
    shown = inspect.signature(function)
    own = [each for each in shown.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    options = [
        inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=each.type)
        for each in fields(ServeOptions)
    ]
    function.__signature__ = shown.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    if function.__doc__ and ServeOptions.__doc__:
        explained = inspect.getdoc(ServeOptions) or ""
        explained = explained.partition("Attributes\n----------\n")[2].partition("\n\nRaises")[0]
        text = "".join(f"    {line}\n" for line in explained.splitlines())
        before, _, after = function.__doc__.partition(PLACE)
        function.__doc__ = before + text + after.partition("\n")[2]
    return function


# -- helpers ------------------------------------------------------------------------------------------------


def _amount(name: str, value: Any, *, whole: bool) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value <= 0 or (whole and value != int(value)):
        msg = f"{name}={value!r} is not a{' whole' if whole else ''} number above 0"
        raise InputError(msg)
    return int(value) if whole else float(value)


def _path(name: str, value: Any) -> str:
    if not isinstance(value, (str, os.PathLike)):
        msg = f"{name} is a {type(value).__name__}, and no path"
        raise InputError(msg)
    # The service works in another folder.
    return os.path.abspath(os.path.expanduser(os.fspath(value))) if os.fspath(value) else ""  # noqa: PTH100, PTH111


def _several(name: str, value: Any) -> Sequence[str]:
    values = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(each, str) for each in values):
        msg = f"{name} has to be a list of texts"
        raise InputError(msg)
    return values


def _listed(text: str) -> tuple[str, ...]:
    return tuple(each.strip() for each in text.split(",") if each.strip())


def _host(value: Any) -> str:
    text = value.strip() if isinstance(value, str) else ""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if not bare or not (_is_address(bare) or _is_name(bare)):
        # An empty host would mean every address of the machine.
        msg = f"{value!r} is no host to listen on"
        raise InputError(msg, hint="For example 127.0.0.1, ::1, 0.0.0.0 for every address, or a name.")
    return bare.lower()


def _allowed(text: str) -> str:
    bare = text.strip().strip("[]").rstrip(".").lower()
    if bare == ANY or _is_address(bare) or _is_name(bare):
        return bare
    msg = f"{text!r} is no name that a Host header may have"
    raise InputError(msg, hint="Without scheme and port: models.example.com, or * for any.")


def _origin(text: str) -> str:
    bare = text.strip().rstrip("/").lower()
    bare = re.sub(r"^(http://.*):80$|^(https://.*):443$", r"\1\2", bare)  # as browsers write it
    if bare in (ANY, "null") or re.fullmatch(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[^\s/@:*\[\]]+)(:\d{1,5})?", bare):
        return bare
    msg = f"{text!r} is no origin"
    raise InputError(msg, hint="For example https://app.example.com or http://localhost:8888, or * for any.")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_name(text: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?", text))


def _shown(options: ServeOptions, name: str) -> str:
    value = getattr(options, name)
    return repr(list(value) if isinstance(value, tuple) else value)
