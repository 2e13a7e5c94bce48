"""Carries out the guard and the rollout of one deployment, with no notebook open.

Run as ``python -m nbdeploy.guardian NAME`` by the supervisor, as long as the traffic file holds a guard or a rollout. All it
knows stands in that file, so another goes on where one ended. It reads small files once a second and imports nothing heavy:
a promotion and a measurement of drift are left to short-lived children, see `nbdeploy.guardian_tasks`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any

from nbdeploy import routing, version_numbers
from nbdeploy.errors import NbdeployError
from nbdeploy.home import folder, lock
from nbdeploy.release_plan import DEFAULT, DRIFT_ROWS, GuardRules, Rollout, Run, Verdict, judge, next_step
from nbdeploy.routing import Traffic
from nbdeploy.version_numbers import VersionNumbers

INTERVAL = 1.0  # seconds between two looks
GAP = 5.0  # seconds: nobody looked for longer, or the clock was set
DRIFT_EVERY = 60.0  # seconds: a measurement takes a process and some of them
TASK_TIMEOUT = 600.0

Numbers = Mapping[str, VersionNumbers]


class Moved(Exception):
    """The traffic is no longer what was judged: somebody else changed it."""


class Guardian:
    """Looks at one deployment, and acts.

    Parameters
    ----------
    read : callable
        The numbers of each version.
    promote : callable
        Promotes a version; returns why it was refused, or ''.
    drift : callable
        The share of a version's columns that drifted since a moment; None as long as that is not known.
    began : float
        When the service was started, in seconds since the epoch: its numbers count from there.
    clock, steady : callable
        Seconds since the epoch, and seconds that no change of the clock moves.
    """

    def __init__(
        self,
        name: str,
        *,
        read: Callable[[str], Numbers] = version_numbers.read,
        promote: Callable[[str, str, str], str] | None = None,
        drift: Callable[[str, float, int], float | None] = lambda _version, _since, _rows: None,
        began: float = 0.0,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._read, self._promote, self._drift = read, promote or promote_in_child, drift
        self._began, self._clock, self._steady = began, clock, steady
        self._now = 0.0  # of this look
        self._last: tuple[float, float] | None = None

    def tick(self) -> bool:
        """Look once and do what is due; False where there is nothing to look after."""
        held = routing.traffic(self.name)
        if held.guard is None and held.rollout is None:
            return False
        now = self._now = self._clock()
        with suppress(Moved):  # the next look sees what it is now
            if self._last is None:
                held = self._edit_runs(held, self._from_zero)
            if lost := self._lost(now):
                # A run may have begun in between.
                held = self._edit_runs(held, lambda run: run.shifted(min(lost, max(0.0, now - run.since))))
            numbers = dict(self._read(self.name))
            if held.rollout is not None:
                held = self._roll_out(held, Rollout.from_dict(held.rollout), numbers, now)
            if held.guard is not None:
                self._watch(held, numbers, now)
        return True

    # -- the rollout ------------------------------------------------------------------------------------

    def _roll_out(self, held: Traffic, rollout: Rollout, numbers: Numbers, now: float) -> Traffic:
        version = rollout.version
        if why := rollout.overruled(held.live, held.weights):
            why = "it is live" if held.live == version else f"ended at {rollout.share:g} %, {why}"
            return self._change(held, {"rollout": None}, f"rollout of {version}: {why}", "rollout")
        rules = GuardRules.from_dict(held.guard["rules"]) if held.guard is not None else DEFAULT
        verdict = self._judge(
            replace(rules, canary_minutes=rollout.minutes),
            rollout.run.counted(version, numbers),
            held.live,
            rollout.run,
            numbers,
        )
        action = next_step(rollout, verdict)
        if action.kind == "abort":
            return self._take_out(held, version, action.why)
        if action.kind == "raise":
            further = rollout.next(now, numbers)
            why = f"rollout of {version}: {further.share:g} %, {action.why}"
            with self._alone():
                return self._change(held, {"rollout": further.to_dict()}, why, "rollout", further.weights)
        if action.kind == "done":
            why = f"rollout of {version}: done, it stays at {action.share:g} %, {action.why}"
            return self._change(held, {"rollout": None}, why, "rollout")
        if action.kind == "promote":
            refused = self._promote(self.name, version, f"rollout: {action.why}")
            if not refused:
                raise Moved  # by this very promotion
            paused = rollout.stopped(now, refused).to_dict()
            why = f"rollout of {version}: paused at {rollout.share:g} %, {refused}"
            return self._change(held, {"rollout": paused}, why, "rollout")
        if action.why != rollout.run.said:
            waiting = replace(rollout, run=replace(rollout.run, said=action.why))
            return self._change(held, {"rollout": waiting.to_dict()})
        return held

    # -- the guard --------------------------------------------------------------------------------------

    def _watch(self, held: Traffic, numbers: Numbers, now: float) -> None:
        assert held.guard is not None
        rules = GuardRules.from_dict(held.guard["rules"])
        runs = {version: Run.from_dict(facts) for version, facts in held.guard["watch"].items()}
        rolling = held.rollout["version"] if held.rollout is not None else None
        canaries = [version for version in held.candidates if version != rolling]  # a rollout has runs of its own
        if {*canaries} != {*runs}:
            fresh = {version: Run(now, baseline=numbers) for version in canaries if version not in runs}
            runs = {**{version: run for version, run in runs.items() if version in canaries}, **fresh}
            tripped = None if fresh else held.guard["tripped"]
            held = self._change(held, {"guard": {**held.guard, "watch": _stored(runs), "tripped": tripped}})
        for version, run in runs.items():
            verdict = self._judge(rules, run.counted(version, numbers), held.live, run, numbers)
            if verdict.kind == "breach":
                held = self._take_out(held, version, verdict.why)
            elif verdict.kind == "clean":
                held = self._end_run(held, version, run, verdict.why, Run(now, baseline=numbers))
            elif verdict.why != run.said:
                held = self._remember(held, version, replace(run, said=verdict.why))

    def _end_run(self, held: Traffic, version: str, run: Run, why: str, fresh: Run) -> Traffic:
        """What follows a clean run: a promotion, or another run, so that old requests do not hide new errors."""
        assert held.guard is not None
        again = replace(fresh, number=run.number + 1)
        if held.guard["rules"]["then"] != "promote":
            return self._remember(held, version, again, f"{version} ran {why}" if not run.number else "")
        if len(held.candidates) > 1:
            refused = f"{' and '.join(held.candidates)} have traffic; promote one of them yourself"
        else:
            refused = self._promote(self.name, version, f"guard: {why}")
        if not refused:
            raise Moved  # by this very promotion
        told = {"version": version, "why": refused}
        note = f"{version} ran {why}; it was not promoted: {refused}" if held.guard.get("refused") != told else ""
        return self._remember(held, version, again, note, refused=told)

    def _remember(self, held: Traffic, version: str, run: Run, why: str = "", **more: Any) -> Traffic:
        assert held.guard is not None
        guard = {**held.guard, "watch": {**held.guard["watch"], version: run.to_dict()}, **more}
        return self._change(held, {"guard": guard}, why, "guard" if why else "")

    # -- both -------------------------------------------------------------------------------------------

    def _judge(
        self, rules: GuardRules, canary: VersionNumbers, live: str | None, run: Run, numbers: Numbers
    ) -> Verdict:
        beside = run.counted(live, numbers) if live else None
        drift = self._drift(canary.version, run.since, canary.rows) if rules.drift is not None else None
        return judge(rules, canary, beside, drift, run.elapsed(self._now))

    def _take_out(self, held: Traffic, version: str, why: str) -> Traffic:
        """Give the share of a canary to the live version, which every worker has loaded: there is nothing to wait for."""
        assert held.live is not None
        weights = {each: weight for each, weight in held.weights.items() if each != version}
        weights[held.live] = weights.get(held.live, 0.0) + held.share(version)
        facts: dict[str, Any] = {}
        if held.guard is not None:
            tripped = {"time": _iso(self._now), "version": version, "why": why}
            watch = {each: run for each, run in held.guard["watch"].items() if each != version}
            facts["guard"] = {**held.guard, "watch": watch, "tripped": tripped}
        if held.rollout is not None and held.rollout["version"] == version:
            facts["rollout"] = None
        return self._change(held, facts, f"{version} was taken out of traffic: {why}", "guard", weights)

    def _change(
        self, held: Traffic, facts: Mapping[str, Any], why: str = "", action: str = "",
        weights: Mapping[str, float] | None = None,
    ) -> Traffic:  # fmt: skip
        """Change the traffic, unless it is not what was judged."""
        plain = json.loads(json.dumps(facts))  # as it is read again: the next comparison is with that

        def edit(old: Traffic) -> Traffic:
            if (old.live, old.weights, old.guard, old.rollout) != (held.live, held.weights, held.guard, held.rollout):
                raise Moved
            new = old.split(**weights) if weights is not None else old
            return replace(new, **plain)

        to = routing.shares(weights) if weights is not None else ""
        return routing.change(self.name, edit, action=action, to=to, why=why)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Not while a user's change is under way: it was begun by what the traffic was."""
        with ExitStack() as stack:
            try:
                stack.enter_context(lock("release", self.name, timeout=0.1))
            except NbdeployError:
                raise Moved from None
            yield

    def _lost(self, now: float) -> float:
        """Seconds by the clock in which nobody looked: between two guardians, in sleep, or when the clock was set."""
        steady, seen = self._steady(), folder("locks") / f"guardian-{self.name}.seen"
        if self._last is None:
            before = seen.stat().st_mtime if seen.exists() else now
            lost = max(0.0, now - before)
        else:
            lost = (now - self._last[0]) - (steady - self._last[1])
        self._last = now, steady
        seen.touch(mode=0o600)
        os.utime(seen, (now, now))
        return lost if abs(lost) >= GAP else 0.0

    def _from_zero(self, run: Run) -> Run:
        """A run that began under another service, whose numbers are no baseline for those of this one."""
        return replace(run, baseline={}) if run.since < self._began else run

    def _edit_runs(self, held: Traffic, edit: Callable[[Run], Run]) -> Traffic:
        facts: dict[str, Any] = {}
        if held.rollout is not None:
            rollout = Rollout.from_dict(held.rollout)
            facts["rollout"] = replace(rollout, run=edit(rollout.run)).to_dict()
        if held.guard is not None:
            runs = {version: edit(Run.from_dict(run)) for version, run in held.guard["watch"].items()}
            facts["guard"] = {**held.guard, "watch": _stored(runs)}
        return self._change(held, facts)


class DriftWatch:
    """The drift of canaries, measured now and then by a child: one at a time, each canary in its turn."""

    def __init__(
        self, name: str, every: float = DRIFT_EVERY, start: Callable[..., subprocess.Popen[bytes]] | None = None
    ) -> None:
        self.name, self._every, self._start = name, every, start or start_task
        self._child: subprocess.Popen[bytes] | None = None
        self._asked: tuple[str, float] = "", 0.0
        self._began: dict[str, float] = {}  # by version
        self._found: dict[str, tuple[float, float | None]] = {}  # by version: in which run, and what

    def __call__(self, version: str, since: float, rows: int) -> float | None:
        """The share of drifted columns as last measured in the run of `version` that began at `since`."""
        self._collect()
        waited = time.monotonic() - self._began.get(version, float("-inf"))
        if self._child is None and rows >= DRIFT_ROWS and waited >= self._every:
            self._asked, self._began[version] = (version, since), time.monotonic()
            self._child = self._start(self.name, "drift", version, _iso(since))
        run, score = self._found.get(version, (since, None))
        return score if run == since else None

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def _collect(self) -> None:
        if self._child is None:
            return
        version, since = self._asked
        if self._child.poll() is None:
            if time.monotonic() - self._began[version] > TASK_TIMEOUT:
                self._child.kill()
            return
        answer = _answer(self._child)
        self._child = None
        if problem := answer.get("error"):
            say(f"the drift of {version} is not known: {problem}")
        self._found[version] = since, answer.get("score")


def promote_in_child(name: str, version: str, why: str) -> str:
    """Promote `version` as a user would; why that was refused, or ''."""
    child = start_task(name, "promote", version, why)
    try:
        child.wait(TASK_TIMEOUT)
    except subprocess.TimeoutExpired:
        child.kill()
    except BaseException:
        child.kill()
        child.communicate()
        raise
    return str(_answer(child).get("error", ""))


def start_task(name: str, *words: str) -> subprocess.Popen[bytes]:
    """Start a child that prints its answer; see `nbdeploy.guardian_tasks`."""
    command = [sys.executable, "-m", "nbdeploy.guardian_tasks", name, *words]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)


def say(text: str) -> None:
    """A line in the service's log."""
    with suppress(OSError):  # a full disk
        print(f"guardian: {text}", file=sys.stderr, flush=True)


def run(name: str) -> int:
    """Look after `name` until there is nothing to look after, or whoever started this is gone."""
    parent = _supervisor()
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the interrupt button of a notebook is not for us
    drift = DriftWatch(name)
    guardian = Guardian(name, drift=drift, began=_began(parent))
    said = ""
    try:
        with lock("guardian", name, timeout=GAP):  # two would act twice
            while os.getppid() == parent:
                try:
                    if not guardian.tick():
                        break
                    said = ""
                except Exception as error:  # noqa: BLE001 - the next look may go well
                    if said != (said := f"{type(error).__name__}: {error}"):
                        say(said)
                        if not isinstance(error, NbdeployError):
                            traceback.print_exc()
                time.sleep(INTERVAL)
    except NbdeployError as error:  # another one looks after it
        say(str(error))
        return 1
    finally:
        drift.close()
    return 0


def _supervisor() -> int:
    # From its spec: a parent that died before this was up would leave it with nobody to ask.
    with suppress(KeyError, OSError, ValueError):
        return int(json.loads(Path(os.environ["NBDEPLOY_SPEC"]).read_text())["supervisor"])
    return os.getppid()


def _began(pid: int) -> float:
    import psutil

    with suppress(psutil.Error):
        return float(psutil.Process(pid).create_time())
    return 0.0


def _end(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


def _answer(child: subprocess.Popen[bytes]) -> dict[str, Any]:
    said, _ = child.communicate()
    try:
        found: dict[str, Any] = json.loads(said)
    except ValueError:
        return {"error": f"its process ended with code {child.returncode}; see the log of the service"}
    return found


def _stored(runs: Mapping[str, Run]) -> dict[str, Any]:
    return {version: run.to_dict() for version, run in runs.items()}


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, timezone.utc).isoformat(timespec="milliseconds")


if __name__ == "__main__":
    sys.exit(run(sys.argv[1]))
