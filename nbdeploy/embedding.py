"""A version inside the user's own process: as an ASGI application to mount, or as a model that checks what it is asked."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from nbdeploy import answers, artifact, client, credentials, protocol_own
from nbdeploy.access import Guard
from nbdeploy.artifact import LoadedModel
from nbdeploy.endpoint import Endpoint
from nbdeploy.errors import InputError
from nbdeploy.exchange import Asked, Served
from nbdeploy.http_app import HttpApp
from nbdeploy.model_store import ModelVersion
from nbdeploy.request_body import Unreadable
from nbdeploy.serve_options import ANY, ServeOptions
from nbdeploy.signature import Signature

# Where a server listens, and with how many processes, is not for what is mounted in it.
ELSEWHERE = ("host", "workers", "tls_cert", "tls_key", "bentoml_middleware")


def application(version: ModelVersion, options: Mapping[str, Any]) -> HttpApp:
    """Load `version` here and return the application that answers for it; see `nbdeploy.asgi`.

    Raises
    ------
    InputError
        An option makes no sense here.
    SaveError
        The version cannot be loaded, or does not reproduce its expected outputs.
    """
    for name in ELSEWHERE:
        if options.get(name) is not None:
            msg = f"{name}= is for a server, and this application is mounted in yours"
            raise InputError(msg, hint="Tell it to your server.")
    # The names that your server is called by are your server's to know.
    chosen = ServeOptions.chosen({**options, "allowed_hosts": options.get("allowed_hosts") or (ANY,)})
    token = credentials.mounted_token(version.name, chosen)
    app = HttpApp()
    endpoint = Endpoint(version.name, version.version, version.path, version.files, chosen)
    app.open(endpoint, Guard(chosen, token))
    return app


@dataclass(frozen=True)
class LocalModel:
    """A version in this process, with the checks of its signature. What it is asked is not logged.

    Attributes
    ----------
    name, version : str
        ``flight-delay`` and ``v1``.
    signature : Signature
    model
        The model itself, as its library has it: it checks nothing.
    """

    name: str
    version: str
    signature: Signature
    model: Any = field(repr=False)
    _loaded: LoadedModel = field(repr=False)

    @classmethod
    def of(cls, version: ModelVersion) -> LocalModel:
        """Load a version here, and let it reproduce its expected outputs."""
        loaded = artifact.rehearse(version.path, version.files, rows=200)
        return cls(version.name, version.version, loaded.signature, loaded.model, loaded)

    def predict(self, X: Any, *, proba: bool = False) -> pd.DataFrame:
        """What the service would answer to `X`.

        Parameters
        ----------
        X : DataFrame, array or list of records
            Column order is free.
        proba : bool
            Add one ``probability_<class>`` column per class.

        Returns
        -------
        DataFrame
            ``prediction``, or one column per output that has a name, with the index of `X`.

        Raises
        ------
        InputError
            The rows do not fit the signature; ``problems`` says where.
        """
        if proba and self.signature.classes is None:
            msg = f"{self.name}:{self.version} has no probabilities"
            raise InputError(msg)
        frame = client.frame_of(X, self.signature)
        if not len(frame):
            return answers.frame_of(self._loaded.predict(self.signature.decode(self.signature.example))).head(0)
        rows = self._checked(frame)
        predictions = self._loaded.predict(rows)
        scores = self._loaded.probabilities(rows) if proba else None
        return answers.frame_of(predictions, scores, self.signature.classes).set_axis(frame.index)

    def _checked(self, frame: pd.DataFrame) -> pd.DataFrame:
        # The very way of a request, so that the two cannot differ.
        body, media = client.body_of(self.signature, frame)
        asked = Asked("POST", "/predict", {}, {"content-type": media}, body)
        try:
            question = protocol_own.read(Served(self.name, self.version, self.signature), asked)
        except Unreadable as error:
            raise InputError(str(error)) from error
        return self.signature.build(question.columns or {}) if question.frame is None else question.frame

    def __repr__(self) -> str:
        return f"LocalModel({self.name}:{self.version}, {self.signature!r})"

    def _repr_html_(self) -> str:
        title = html.escape(f"{self.name}:{self.version}")
        return f"<b>{title}</b> in this process{self.signature._repr_html_()}"
