"""The parent of a deployment's workers: starts them, restarts them, and takes them along when it ends.

Run as ``python -m nbdeploy.supervisor SPEC`` with the listening socket as an inherited descriptor, which all workers
share. It starts with nothing but the standard library, so it is there at once; BentoML's own arbiter would import the
service a second time before it starts the worker that does the work.

Beside the workers it keeps the processes that the traffic asks for: one for each version that answers into the log only,
and one that watches a canary. They are no part of the service: without them it goes on. Once a minute it writes down what the
workers have counted, which is there when they are not.

Until its starter writes ``keep`` to its standard input, the deployment is on probation: it has one worker, which is its
rehearsal, and the end of the starter, or of that worker, ends it. After that it belongs to nobody but its state file,
and the other workers are started.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

GRACE = 30.0  # seconds for requests in flight, and 3 of them for a worker to close its log
FIRST_PAUSE, MAX_PAUSE = 0.1, 10.0
FORGOTTEN = 5  # seconds without a state file
DISMISSED = 5.0  # seconds for a process beside the workers to end
NAP = 0.5
NUMBERS_AGAIN = 60.0  # seconds until it is tried again, where it failed
# What runs beside the service leaves it the cores.
ONE_THREAD = {f"{pool}_NUM_THREADS": "1" for pool in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB")}
STDIN = 0


@dataclass(eq=False)
class Place:
    """The place of one process; whoever has it is replaced when it ends."""

    name: str  # a worker's number, or what the process is for
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    pause: float = FIRST_PAUSE
    due: float = 0.0  # when the next one is started


class Supervisor:
    """Owns the workers of one deployment. One thread, woken by signals, by its starter and by what is due."""

    def __init__(self, spec_path: Path) -> None:
        self.spec_path = spec_path
        self.spec: dict[str, Any] = json.loads(spec_path.read_text())
        self.kept = self.ending = False
        self.workers = [self._worker(1)]
        self.beside: dict[str, Place] = {}
        self.dismissed: list[tuple[subprocess.Popen[bytes], float]] = []  # told to end, and until when
        self.traffic_seen: tuple[int, int] | None = None
        self.missing_since: float | None = None
        self.numbers_due = 0.0
        self.numbers_seen: float | None = None

    def run(self) -> int:
        awake = self._hear_signals()
        self._tell_workers()
        while not self.ending:
            for place in (*self.workers, *self.beside.values()):
                code = self._look_after(place)
                if code is not None and not self.kept:
                    return code or 1
            heard, _, _ = select.select([awake] if self.kept else [awake, STDIN], [], [], self._nap())
            if awake in heard:
                os.read(awake, 4096)
            if STDIN in heard:
                self._hear_starter()
            if self.kept:
                self._look_for_state()
                self._look_at_traffic()
                self._keep_numbers()
        self._end_workers()
        if self.kept:
            self._keep_numbers(last=True)
        return 0

    def _hear_signals(self) -> int:
        # A signal is a byte in a pipe: nothing happens between two instructions of ours.
        awake, wake = os.pipe()
        os.set_blocking(awake, False)
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.signal(signal.SIGTERM, self._on_end)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the interrupt button of a notebook is not for us
        return awake

    def _on_end(self, _number: int, _frame: FrameType | None) -> None:
        self.ending = True

    def _look_after(self, place: Place) -> int | None:
        """Start a process that is due, and note one that has ended: its exit code."""
        now = time.monotonic()
        if place.process is None:
            if now < place.due or self.ending:
                return None
            place.started = now
            try:
                place.process = self._start(place)
            except OSError as error:  # no memory, no process left
                code = error.errno or 1
            else:
                return None
        else:
            ended = place.process.poll()
            if ended is None:
                return None
            code = ended
            if place in self.workers:
                self._forget(place.name, place.process.pid)
            else:
                self._explain(place.name, code)
            place.process = None
        place.pause = FIRST_PAUSE if now - place.started > MAX_PAUSE else min(place.pause * 2, MAX_PAUSE)
        place.due = now + place.pause
        if self.kept and not self.ending:
            what = "worker " if place in self.workers else ""
            _say(f"{what}{place.name} ended with code {code}; starting another in {place.pause:.1f} s")
        return code

    def _nap(self) -> float:
        now = time.monotonic()
        due = [place.due - now for place in (*self.workers, *self.beside.values()) if place.process is None]
        return min([NAP, *(max(0.0, each) for each in due)])

    def _worker(self, number: int) -> Place:
        command = [
            "nbdeploy.worker", self.spec["service"], "--fd", str(int(self.spec["descriptor"])),
            "--worker-id", str(number), "--timeout-graceful-shutdown", str(int(GRACE) - 3),
        ]  # fmt: skip
        return Place(str(number), command)

    def _start(self, place: Place) -> subprocess.Popen[bytes]:
        serves = place in self.workers
        if not serves:
            self._forget(place.name, 0)
        env = {
            **os.environ, "NBDEPLOY_SPEC": str(self._workers_spec), "PROMETHEUS_MULTIPROC_DIR": self.spec["metrics"],
            **({"NBDEPLOY_READY": str(self._note(place.name))} if serves else ONE_THREAD),
        }  # fmt: skip
        return subprocess.Popen(
            [sys.executable, "-m", *place.command], cwd=self.spec["folder"], stdin=subprocess.DEVNULL, env=env,
            pass_fds=[int(self.spec["descriptor"])] if serves else [],
        )  # fmt: skip

    def _look_at_traffic(self) -> None:
        """Have beside the workers what the traffic asks for."""
        try:
            about = Path(self.spec["traffic"]).stat()
            seen = (about.st_mtime_ns, about.st_ino)
            if seen != self.traffic_seen:
                self.traffic_seen = seen
                self._keep_beside(json.loads(Path(self.spec["traffic"]).read_text()))
        except (OSError, ValueError, AttributeError, TypeError):  # nothing is released, or somebody's editor is at it
            return
        finally:
            self.dismissed = [(process, until) for process, until in self.dismissed if not _ended(process, until)]

    def _keep_beside(self, traffic: dict[str, Any]) -> None:
        shadows = [version for version in traffic.get("shadow") or () if isinstance(version, str)]
        wanted = {f"shadow-{version}": ["nbdeploy.shadow_worker", version] for version in shadows}
        if traffic.get("guard") or traffic.get("rollout"):
            wanted["guardian"] = ["nbdeploy.guardian", self.spec["name"]]
        for name in self.beside.keys() - wanted.keys():
            process = self.beside.pop(name).process
            if process is not None:
                process.terminate()
                self.dismissed.append((process, time.monotonic() + DISMISSED))
            self._forget(name, process.pid if process is not None else 0)
        for name in wanted.keys() - self.beside.keys():
            self.beside[name] = Place(name, wanted[name])

    @property
    def _workers_spec(self) -> Path:
        return self.spec_path.with_name("worker.json")

    def _note(self, name: str) -> Path:
        return Path(self.spec["ready"]) / name

    def _tell_workers(self) -> None:
        # A worker reads who its parent is from the spec: a parent that dies before the worker is up would leave it with
        # nobody to ask. Replaced, since a worker may be reading it.
        new = self._workers_spec.with_name(".worker.json.new")
        new.touch(mode=0o600)
        new.write_text(json.dumps({**self.spec, "supervisor": os.getpid()}))
        os.replace(new, self._workers_spec)

    def _forget(self, name: str, pid: int) -> None:
        self._note(name).unlink(missing_ok=True)
        (Path(self.spec["applied"]) / f"{name}.json").unlink(missing_ok=True)
        (Path(self.spec["folder"]) / f"{name}.sock").unlink(missing_ok=True)
        # What a dead worker had waiting or in flight is no more; what it counted stays.
        for gauge in Path(self.spec["metrics"]).glob(f"gauge_live*_{pid}.db"):
            gauge.unlink(missing_ok=True)

    def _explain(self, name: str, code: int) -> None:
        """Leave, for who waits for a process beside the workers, why it is not there: what it said, or how it ended."""
        note = Path(self.spec["applied"]) / f"{name}.json"
        with suppress(OSError, ValueError):
            told = json.loads(note.read_text()) if note.exists() else {}
            if not told.get("failed"):
                new = note.with_name(f".{note.name}.new")
                new.write_text(
                    json.dumps({"generation": 0, "ready": False, "pid": 0, "failed": f"it ended with code {code}"})
                )
                os.replace(new, note)

    def _hear_starter(self) -> None:
        said = b""
        with suppress(OSError):
            said = os.read(STDIN, 64)
        if said.strip() != b"keep":  # it is gone, or changed its mind
            self.ending = True
            return
        self.kept = True
        # What is served from now on is the committed version, not the staged one.
        self.spec = json.loads(self.spec_path.read_text())
        self._tell_workers()
        self.workers += [self._worker(number) for number in range(2, self.spec["options"]["workers"] + 1)]

    def _look_for_state(self) -> None:
        # Without its state file nobody could find this deployment, or end it.
        state, now = Path(self.spec["state"]), time.monotonic()
        if state.exists():
            self.missing_since = None
            return
        self.missing_since = self.missing_since or now
        if now - self.missing_since >= FORGOTTEN:
            _say(f"{state} is gone; so nobody owns this deployment, and it ends")
            self.ending = True

    def _keep_numbers(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if now < self.numbers_due and not last:
            return
        self.numbers_due = now + NUMBERS_AGAIN
        try:
            # Not before the service answers: it would wait for these imports.
            from nbdeploy import numbers_log

            # Where a minute of the clock ends, so that a line has no part of two.
            every = numbers_log.interval()
            self.numbers_due = now + every - time.time() % every
            days = float(self.spec["options"]["log_days"])
            numbers_log.record(self.spec["name"], began=self.numbers_seen, alive=True, ending=last, days=days)
            self.numbers_seen = time.time()
        except Exception as error:  # noqa: BLE001 - whatever it is, the service goes on without its numbers
            _say(f"the numbers of this service are not kept: {type(error).__name__}: {error}")

    def _end_workers(self) -> None:
        living = [place.process for place in (*self.workers, *self.beside.values()) if place.process is not None]
        living += [process for process, _ in self.dismissed]
        for process in living:
            process.terminate()
        deadline = time.monotonic() + GRACE
        for process in living:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _ended(process: subprocess.Popen[bytes], until: float) -> bool:
    if process.poll() is None and time.monotonic() > until:
        process.kill()
        process.wait()
    return process.poll() is not None


def _say(text: str) -> None:
    with suppress(OSError):  # a full disk
        print(text, flush=True)


if __name__ == "__main__":
    sys.exit(Supervisor(Path(sys.argv[1])).run())
