"""The parent of a deployment's workers: starts them, restarts them, and takes them along when it ends.

Run as ``python -m nbdeploy.supervisor SPEC`` with the listening socket as an inherited descriptor. It
needs nothing but the standard library, so it is there at once; BentoML's own arbiter would import the
service a second time before it starts the worker that does the work.

Until its starter writes ``keep`` to its standard input, the deployment is on probation: the end of the
starter, or of the worker, ends it. After that it belongs to nobody but its state file.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

GRACE = 30.0  # seconds for requests in flight
MAX_PAUSE = 10.0
FORGOTTEN = 5  # seconds without a state file


class Supervisor:
    """Owns the workers of one deployment."""

    def __init__(self, spec_path: Path) -> None:
        self.spec_path = spec_path
        self.spec: dict[str, Any] = json.loads(spec_path.read_text())
        self.kept = False
        self.ending = threading.Event()
        self.worker: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the interrupt button of a notebook is not for us
        threading.Thread(target=self._await_keep, daemon=True).start()
        pause, code = 0.1, 0
        while not self.ending.is_set():
            started = time.monotonic()
            self.worker = self._start_worker()
            if self.ending.is_set():  # the signal came between the check and the start
                break
            code = self.worker.wait()
            if self.ending.is_set():
                break
            if not self.kept:
                return code or 1
            pause = 0.1 if time.monotonic() - started > MAX_PAUSE else min(pause * 2, MAX_PAUSE)
            print(f"worker ended with code {code}; starting another in {pause:.1f} s", flush=True)
            self.ending.wait(pause)
        self._end_worker()
        return 0

    def _start_worker(self) -> subprocess.Popen[bytes]:
        descriptor = int(self.spec["descriptor"])
        command = [
            sys.executable, "-m", "_bentoml_impl.worker.service", self.spec["service"],
            "--fd", str(descriptor), "--worker-id", "1", "--timeout-graceful-shutdown", str(int(GRACE)),
        ]  # fmt: skip
        return subprocess.Popen(
            command, cwd=self.spec["folder"], pass_fds=[descriptor], stdin=subprocess.DEVNULL, env=self._environment()
        )

    def _environment(self) -> dict[str, str]:
        # The worker reads who its parent is from the spec: a parent that dies before the worker is up would
        # leave it with nobody to ask.
        self.spec["supervisor"] = os.getpid()
        own = self.spec_path.with_name("worker.json")
        own.touch(mode=0o600)
        own.write_text(json.dumps(self.spec))
        return {**os.environ, "NBDEPLOY_SPEC": str(own), "PROMETHEUS_MULTIPROC_DIR": self.spec["metrics"]}

    def _await_keep(self) -> None:
        with suppress(OSError):
            self.kept = sys.stdin.readline().strip() == "keep"
        if self.kept:
            # What is served from now on is the committed version, not the staged one.
            self.spec = json.loads(self.spec_path.read_text())
            self._end_when_forgotten()
            return
        os.kill(os.getpid(), signal.SIGTERM)

    def _end_when_forgotten(self) -> None:
        # Without its state file nobody could find this deployment, or end it.
        state, missing = Path(self.spec["state"]), 0
        while missing < FORGOTTEN and not self.ending.wait(1):
            missing = 0 if state.exists() else missing + 1
        if missing == FORGOTTEN:
            print(f"{state} is gone; so nobody owns this deployment, and it ends", flush=True)
            os.kill(os.getpid(), signal.SIGTERM)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.ending.set()
        worker = self.worker
        if worker is not None and worker.poll() is None:
            worker.terminate()

    def _end_worker(self) -> None:
        worker = self.worker
        if worker is None:
            return
        if worker.poll() is None:
            worker.terminate()
        try:
            worker.wait(GRACE)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


if __name__ == "__main__":
    sys.exit(Supervisor(Path(sys.argv[1])).run())
