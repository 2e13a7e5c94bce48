"""What is killed again and again by test_integrity: saves, exports, deletes and imports, in a fork for each time.

A line of standard input names a folder; the fork works below it, from when there is a file ``go``, and writes what it has
achieved to ``said``. Its end is a line of standard output: the signal that ended it, or 0.
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from nbdeploy import model_store, version_file

X = pd.DataFrame({"a": [1.0, 2.0]})


class Doubler:
    """Learns nothing and doubles the first column."""

    def predict(self, X):
        return X["a"].to_numpy() * 2


def save() -> model_store.ModelVersion:
    with model_store.stage(Doubler(), "doubler", X) as staged:
        return model_store.commit(staged)


def work(folder: Path, say) -> None:
    use(folder)
    first = save()
    say(f"saved {first.version}")
    say(f"saved {save().version}")
    path = version_file.export_version("doubler", "v1", folder / "out")
    say(f"exported {path.name}")
    say(f"removing {first.version}")
    version_file.remove(first)
    say(f"removed {first.version}")
    say(f"saved {version_file.import_version(path).version}")


def use(folder: Path) -> None:
    os.environ["NBDEPLOY_HOME"], os.environ["BENTOML_HOME"] = str(folder / "home"), str(folder / "bentoml")
    (folder / "out").mkdir()


def run(folder: Path) -> None:
    said = os.open(folder / "said", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1))  # whoever is not our parent may trace us
    (folder / "pid").write_text(str(os.getpid()))
    os.rename(folder / "pid", folder / "ready")
    while not (folder / "go").exists():
        time.sleep(0.001)
    work(folder, lambda line: os.write(said, f"{line}\n".encode()))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        work(Path(folder), lambda _: None)  # so that all is imported
    for line in sys.stdin:
        if (pid := os.fork()) == 0:
            code = 1
            try:
                run(Path(line.strip()))
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status), flush=True)


if __name__ == "__main__":
    main()
