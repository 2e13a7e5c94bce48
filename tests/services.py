"""A service that several tests of a module ask, in a home of its own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def own_home() -> Iterator[Path]:
    """``NBDEPLOY_HOME`` and ``BENTOML_HOME`` in a new folder while the block runs."""
    base = Path(tempfile.mkdtemp(prefix="nbd-"))
    names = {"NBDEPLOY_HOME": str(base / "home"), "BENTOML_HOME": str(base / "bentoml")}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield base / "home"
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        shutil.rmtree(base, ignore_errors=True)


@contextmanager
def running(model: Any, name: str, X: Any, y: Any = None, **options: Any) -> Iterator[Any]:
    """A deployment that lives as long as the block; `options` are those of `deploy`."""
    import nbdeploy

    with own_home() as home:
        service = nbdeploy.deploy(model, name, X, y, **options)
        inside = dict(os.environ)
        try:
            yield service, home
        finally:
            here = dict(os.environ)
            os.environ.update(inside)
            nbdeploy.stop(name)
            os.environ.update(here)
