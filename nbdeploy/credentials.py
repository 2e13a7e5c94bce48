"""What a caller needs beside the URL: where tokens are kept, and which certificates are trusted."""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import ssl
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nbdeploy.errors import ServiceError
from nbdeploy.home import check_name, folder, home, write_atomic
from nbdeploy.serve_options import ServeOptions

TOKEN, TOKEN_FILE = "NBDEPLOY_TOKEN", "NBDEPLOY_TOKEN_FILE"
PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True)
class Key:
    """What opens one service.

    Attributes
    ----------
    token : str
        Never part of ``repr``. Empty where none is needed, or none is known.
    tls : SSLContext, optional
        How its certificate is verified.
    """

    token: str = field(default="", repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    @property
    def headers(self) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


# -- the side that serves -----------------------------------------------------------------------------------


def provide_token(name: str, options: ServeOptions, address: str) -> str:
    """The file with the token of a deployment that is about to listen on `address`; empty where it needs none.

    A token that the user gave is copied there, so that every worker has the same one as long as the deployment runs.

    Raises
    ------
    ServiceError
        The address needs a token and none is wanted; or the user's file does not hold one, or others may read it.
    """
    beyond = not is_loopback(address)
    if options.token is False:
        if beyond:
            msg = f"{name!r} cannot listen on {options.host} without a token"
            raise ServiceError(msg, "Leave --no-token out, or listen on 127.0.0.1.")
        return ""
    path = home() / "tokens" / check_name(name)
    given = read_token(Path(options.token_file)) if options.token_file else _given()
    if given is None and not (beyond or options.token):
        return ""
    if given is not None or not path.is_file():
        write_atomic(folder("tokens") / path.name, (given or secrets.token_urlsafe(32)).encode())
    else:
        read_token(path)
    return str(path)


def mounted_token(name: str, options: ServeOptions) -> str | None:
    """The token of an application that is mounted in the user's own; None where it needs none.

    What the user gave is kept nowhere: in ``tokens/NAME`` stands what a running deployment of that name is asked with.

    Raises
    ------
    ServiceError
        The user's file does not hold one, or others may read it.
    """
    if options.token is False:
        return None
    given = read_token(Path(options.token_file)) if options.token_file else _given()
    if given is not None or not options.token:
        return given
    return read_token(Path(provide_token(name, options, "127.0.0.1")))


def check_tls(cert: str, key: str) -> None:
    """Raise `ServiceError` unless the two files make a server that its own callers would trust now."""
    try:
        for path in (cert, key):
            Path(path).read_bytes()
        # Without a password of ours OpenSSL would ask for one on the terminal, and wait.
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(cert, key, password=lambda: "")
        _shake_hands(server, pinned(cert))
    except ssl.SSLCertVerificationError as error:
        msg = f"nobody would trust the certificate {cert}: {error.verify_message}"
        raise ServiceError(msg) from error
    except ssl.SSLError as error:
        why = (error.reason or "not readable as PEM").replace("_", " ").lower()
        msg = f"{cert} and {key} are no certificate and its key: {why}"
        raise ServiceError(msg, "Both have to be PEM, belong together, and the key must need no password.") from error
    except OSError as error:
        msg = f"{error.filename} cannot be read: {error.strerror}"
        raise ServiceError(msg) from error


def read_token(path: Path, *, private: bool = True) -> str:
    """The token in a file.

    Parameters
    ----------
    private : bool
        Refuse a file that others may read. False for what a container's secrets are mounted as.

    Raises
    ------
    ServiceError
        There is none, others may read it, or it is no token.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(4096)
    except OSError as error:
        msg = f"the token file {path} cannot be read: {error.strerror}"
        raise ServiceError(msg) from error
    if private and stat.S_IMODE(mode) & 0o077:
        msg = f"others may read the token file {path}"
        raise ServiceError(msg, f"Run: chmod 600 {path}")
    return _checked(content.decode("latin-1").strip(), f"the file {path}")


def token_of_environment() -> str | None:
    """The token that a service elsewhere was given by ``NBDEPLOY_TOKEN`` or ``NBDEPLOY_TOKEN_FILE``."""
    return _given(private=False)


def is_loopback(address: str) -> bool:
    """Whether an address reaches this machine alone. A name is no address."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return bool((mapped or parsed).is_loopback)


# -- the side that asks -------------------------------------------------------------------------------------


def key_here(token_file: str, cert: str) -> Key:
    """The key of a deployment on this machine."""
    return Key(read_token(Path(token_file)) if token_file else "", pinned(cert) if cert else None)


def key_elsewhere(url: str, token_file: str | os.PathLike[str] | None = None) -> Key:
    """The key of a service that runs elsewhere: the token from a file, or from the environment."""
    token = read_token(Path(token_file).expanduser()) if token_file else _given() or ""
    return Key(token, _trusted() if url.lower().startswith("https:") else None)


def pinned(cert: str) -> ssl.SSLContext:
    """Trust this certificate and no other, whatever name it is for.

    Raises
    ------
    ServiceError
        The file holds none.
    """
    try:
        first = PEM.search(Path(cert).read_bytes())
    except OSError as error:
        msg = f"the certificate {cert} cannot be read: {error.strerror}"
        raise ServiceError(msg) from error
    if first is None:
        msg = f"{cert} holds no certificate in PEM"
        raise ServiceError(msg)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    # The certificate itself is the anchor, whoever issued it. Not its chain: others have certificates of that too.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=first[0].decode("latin-1"))
    return context


# -- helpers ------------------------------------------------------------------------------------------------


def _given(*, private: bool = True) -> str | None:
    if token := os.environ.get(TOKEN, "").strip():
        return _checked(token, f"the environment's {TOKEN}")
    if path := os.environ.get(TOKEN_FILE):
        return read_token(Path(path).expanduser(), private=private)
    return None


def _checked(token: str, where: str) -> str:
    # What a header can carry, and nobody guesses.
    if re.fullmatch(r"[A-Za-z0-9._~+/=-]{8,1024}", token):
        return token
    msg = f"{where} holds no token: 8 to 1,024 letters, digits and . _ ~ + / = -"
    raise ServiceError(msg, 'For example the output of: python -c "import secrets; print(secrets.token_urlsafe(32))"')


def _trusted() -> ssl.SSLContext:
    context = ssl.create_default_context()  # the machine's, or what SSL_CERT_FILE and SSL_CERT_DIR name
    if not (os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")):
        import certifi

        context.load_verify_locations(certifi.where())  # some machines have none of their own
    return context


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """A handshake in memory: it finds what would keep callers away, an expired certificate for one."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [client.wrap_bio(down, up), server.wrap_bio(up, down, server_side=True)]
    while sides:
        for side in sides[:]:
            try:
                side.do_handshake()
                sides.remove(side)
            except ssl.SSLWantReadError:
                pass
