"""``make demo``: run the quickstart notebook and say where everything is.

Leaves the service running, as the notebook does; the last lines say how to end it.
"""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path

HERE = Path(__file__).parent
NAME = "flight-delay"


def main() -> int:
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")  # this environment's kernel, not one of the user's
    import papermill

    import nbdeploy
    from nbdeploy.home import reports_folder

    notebook = HERE / "quickstart.ipynb"
    executed = reports_folder(NAME) / "quickstart-executed.ipynb"
    executed.parent.mkdir(parents=True, exist_ok=True)
    print(f"Running {notebook.name}: train, deploy, ask, validate, drift. About a minute.", flush=True)
    try:
        papermill.execute_notebook(
            str(notebook), str(executed), cwd=str(Path.cwd()), kernel_name="python3", log_output=False
        )
    except papermill.PapermillExecutionError as error:
        print(f"\nThe notebook stopped: {error.ename}: {error.evalue}\nIt is kept at {executed}", file=sys.stderr)
        return 1
    service = nbdeploy.status(NAME).loc[NAME]
    gate = _newest(Path(nbdeploy.home.folder("gates", NAME)), "*.ipynb")
    report = _newest(reports_folder(NAME), "*.html")
    import json

    verdict = json.loads(gate.with_suffix(".json").read_text())
    drift = nbdeploy.drift(NAME, html_path=report)
    drifted = list(drift.columns.index[drift.columns["drifted"].fillna(value=False).astype(bool)])
    row = json.dumps(dict(nbdeploy.versions(NAME)[0].signature.shown().example))
    lines = [
        f"  {NAME}:{service['version']} is {service['state']}",
        "",
        f"  live at      {service['url']}",
        f"  answered     {service['predictions']:,} predictions, all in its log",
        f"  gate         {'passed' if verdict['passed'] else 'FAILED'}: {len(verdict['checks'])} checks",
        f"  evidence     {gate}",
        f"  card         {service['url']}/card",
        f"  drift        {len(drifted)} of {len(drift.columns)} columns: {', '.join(map(str, drifted))}",
        f"  full report  {report}",
        f"  notebook     {executed}",
        "",
        "  ask it:",
        textwrap.indent(
            f"curl -s {service['url']}/predict -H 'Content-Type: application/json' \\\n  -d '{row}'", "    "
        ),
        "",
        f"  end it:      {Path(sys.executable).parent / 'nbdeploy'} stop {NAME}",
    ]
    rule = "─" * 78
    print(f"\n{rule}", *lines, rule, sep="\n")
    return 0 if verdict["passed"] else 1


def _newest(folder: Path, pattern: str) -> Path:
    return max(folder.rglob(pattern), key=lambda path: path.stat().st_mtime)


if __name__ == "__main__":
    sys.exit(main())
