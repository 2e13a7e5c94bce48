"""What a guardian needs of the rest of nbdeploy, in a process that ends: it prints one JSON object.

Run as ``python -m nbdeploy.guardian_tasks NAME promote VERSION WHY`` or ``... NAME drift VERSION SINCE``.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import redirect_stdout, suppress
from typing import Any

from nbdeploy.errors import NbdeployError


def promote(name: str, version: str, why: str) -> dict[str, Any]:
    """Promote `version`, unless somebody has taken its traffic away meanwhile."""
    from nbdeploy import releases, routing

    if version not in routing.traffic(name).candidates:
        return {"error": f"{version} has no traffic any more"}
    releases.promote(name, version, why=why, progress=False)
    return {}


def drift(name: str, version: str, since: str) -> dict[str, Any]:
    """The share of the columns of `version` that drifted, of those that can be judged."""
    with suppress(OSError):
        os.nice(10)  # whoever waits for an answer comes first
    from nbdeploy import drift_report, watching

    reference, current = watching.sides(name, version, since)
    report = drift_report.measure(reference, current, name=name, version=version, since=since, page=False)
    if report.verdict == "no verdict":
        return {"score": None, "error": "no column can be judged"}
    return {"score": report.share}


TASKS = {"promote": promote, "drift": drift}


def run(name: str, task: str, *words: str) -> dict[str, Any]:
    """Do one task; what it is refused for comes back as ``error``."""
    try:
        with redirect_stdout(sys.stderr):  # the answer is alone on standard output
            return TASKS[task](name, *words)
    except NbdeployError as error:
        return {"error": str(error)}
    except ImportError as error:
        return {"error": f"{error}; pip install 'nbdeploy[lab]'"}


if __name__ == "__main__":
    print(json.dumps(run(*sys.argv[1:])))
