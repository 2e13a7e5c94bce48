"""The guardian on real state files, with the clock, the numbers and the promotion handed in: no service runs here."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from nbdeploy import routing
from nbdeploy.guardian import DriftWatch, Guardian
from nbdeploy.home import lock
from nbdeploy.release_plan import GuardRules, Rollout, Run
from nbdeploy.version_numbers import VersionNumbers

NAME = "flight-delay"
BOUNDS = (0.01, 0.1, 1.0)


class World:
    """What a guardian sees, and what it did."""

    def __init__(self):
        self.now, self.counts, self.drifted = 1_000_000.0, {}, None
        self.promoted, self.refusal, self.began = [], "", 0.0
        self.anew()

    def anew(self):
        """Another guardian, as after the end of the last."""
        self.guardian = Guardian(
            NAME, read=self.numbers, promote=self.promote, drift=lambda _version, _since, _rows: self.drifted,
            began=self.began, clock=lambda: self.now, steady=lambda: self.now,
        )  # fmt: skip

    def serve_anew(self):
        """Another service, whose numbers and guardian are its own."""
        self.now += 10
        self.counts, self.began = {}, self.now
        self.anew()

    def numbers(self, _name):
        return {
            version: VersionNumbers(version, asked, errors, 0, asked, BOUNDS, (asked, 0, 0, 0))
            for version, (asked, errors) in self.counts.items()
        }

    def promote(self, _name, version, why):
        self.promoted.append((version, why))
        if not self.refusal:
            routing.change(NAME, lambda old: old.to_live(version), action="promote", to=version, why=why)
        return self.refusal

    def ask(self, version, requests, errors=0):
        asked, wrong = self.counts.get(version, (0, 0))
        self.counts[version] = asked + requests, wrong + errors

    def look(self, seconds=0.0):
        """Let time pass, with a look every second."""
        for _ in range(int(seconds)):
            self.now += 1
            self.guardian.tick()
        return self.guardian.tick()


@pytest.fixture
def world():
    routing.go_live(NAME, "v1", "first")
    return World()


def split(**weights):
    return routing.change(NAME, lambda old: old.split(**weights), action="traffic", why="by hand")


def guard(**rules):
    chosen = GuardRules(**rules)
    facts = {"rules": chosen.to_dict(), "told": str(chosen), "watch": {}, "tripped": None, "refused": None}
    routing.change(NAME, lambda old: replace(old, guard=facts))


def roll_out(world, steps=(1, 10, 50, 100), minutes=1):
    started = Rollout("v2", "v1", tuple(map(float, steps)), minutes, Run(world.now, baseline=world.numbers(NAME)))
    routing.change(NAME, lambda old: replace(old.split(**started.weights), rollout=started.to_dict()))


def last():
    step = routing.history(NAME)[0]
    return step["action"], step["why"]


def weights():
    return dict(routing.traffic(NAME).weights)


# -- guard --------------------------------------------------------------------------------------------------


def test_a_canary_that_fails_is_taken_out_with_one_entry_that_says_why(world):
    split(v1=90, v2=10)
    guard(error_rate=0.02)
    world.look()
    world.ask("v1", 900)
    world.ask("v2", 100, errors=30)
    before = len(routing.history(NAME))

    world.look(5)

    why = "30 of 100 answers were errors (30 %), above 2 %; v1 has 0 %"
    assert weights() == {"v1": 100}
    assert last() == ("guard", f"v2 was taken out of traffic: {why}")
    assert len(routing.history(NAME)) == before + 1
    tripped = routing.traffic(NAME).guard["tripped"]
    assert (tripped["version"], tripped["why"]) == ("v2", why)


def test_what_was_counted_before_the_run_is_not_held_against_it(world):
    world.ask("v2", 100, errors=100)
    split(v1=90, v2=10)
    guard(error_rate=0.02)
    world.look()
    world.ask("v2", 100)

    world.look(5)

    assert weights() == {"v1": 90, "v2": 10}


def test_of_two_canaries_the_bad_one_goes_and_the_other_keeps_its_share(world):
    split(v1=80, v2=15, v3=5)
    guard(error_rate=0.02)
    world.look()
    world.ask("v2", 100, errors=30)
    world.ask("v3", 100)

    world.look(2)

    assert weights() == {"v1": 95, "v3": 5}


def test_a_guard_waits_for_a_canary_and_watches_each_that_comes(world):
    guard(error_rate=0.02)
    assert world.look(3)
    split(v1=90, v2=10)
    world.look()
    world.ask("v2", 50, errors=50)
    world.look()
    assert weights() == {"v1": 100}

    split(v1=50, v2=50)
    world.look()
    assert routing.traffic(NAME).guard["tripped"] is None
    world.ask("v2", 50, errors=50)
    world.look()

    assert weights() == {"v1": 100}


def test_a_clean_run_is_noted_once_and_another_begins(world):
    split(v1=90, v2=10)
    guard(error_rate=0.02, canary_minutes=1)
    world.look()
    world.ask("v2", 100)

    world.look(61)

    assert last() == ("guard", "v2 ran clean for 1 min: 100 requests, 0 % errors, p99 9.9 ms")
    entries = len(routing.history(NAME))
    for _ in range(3):
        world.ask("v2", 100)
        world.look(61)
    assert len(routing.history(NAME)) == entries
    assert world.promoted == []


def test_a_clean_history_does_not_hide_that_a_canary_breaks_now(world):
    split(v1=90, v2=10)
    guard(error_rate=0.02, canary_minutes=1)
    world.look()
    world.ask("v2", 1_000_000)
    world.look(61)
    world.ask("v2", 100, errors=40)

    world.look(1)

    assert weights() == {"v1": 100}


def test_a_clean_run_promotes_where_that_was_asked_for(world):
    split(v1=90, v2=10)
    guard(error_rate=0.02, canary_minutes=1, then="promote")
    world.look()
    world.ask("v2", 100)

    world.look(61)

    assert routing.live(NAME) == "v2"
    assert world.promoted == [("v2", "guard: clean for 1 min: 100 requests, 0 % errors, p99 9.9 ms")]
    assert world.look(5)  # the guard stays, for the next canary
    assert routing.traffic(NAME).guard["watch"] == {}


def test_a_refused_promotion_is_told_once_and_tried_again_after_the_next_clean_run(world):
    split(v1=90, v2=10)
    guard(error_rate=0.02, canary_minutes=1, then="promote")
    world.refusal = "v2 has no passed gate"
    world.look()
    world.ask("v2", 100)

    world.look(61)
    assert last()[1].endswith("it was not promoted: v2 has no passed gate")
    assert len(world.promoted) == 1
    entries = len(routing.history(NAME))
    world.ask("v2", 100)
    world.look(61)
    assert (len(world.promoted), len(routing.history(NAME))) == (2, entries)
    world.refusal = ""
    world.ask("v2", 100)
    world.look(61)

    assert routing.live(NAME) == "v2"


def test_too_few_requests_are_not_clean_and_the_guard_says_so(world):
    split(v1=90, v2=10)
    guard(error_rate=0.02, canary_minutes=1, then="promote")
    world.look()
    world.ask("v2", 3)

    world.look(200)

    assert world.promoted == []
    assert routing.traffic(NAME).guard["watch"]["v2"]["said"] == (
        "1 min are over, but a verdict takes 30 requests, and fewer came"
    )
    world.ask("v2", 30)
    world.look(1)
    assert routing.live(NAME) == "v2"


def test_drift_takes_a_canary_out(world):
    split(v1=90, v2=10)
    guard(drift=0.3)
    world.look(2)
    world.drifted = 0.6

    world.look(1)

    assert weights() == {"v1": 100}
    assert "60 % of its columns drifted" in last()[1]


def test_looking_changes_nothing_where_nothing_happens(world):
    split(v1=90, v2=10)
    guard(error_rate=0.02, canary_minutes=60)
    world.look()
    generation = routing.traffic(NAME).generation

    for _ in range(20):
        world.ask("v2", 7)
        world.look(1)

    assert routing.traffic(NAME).generation == generation


# -- rollout ------------------------------------------------------------------------------------------------


def test_a_rollout_goes_step_by_step_to_a_promotion(world):
    roll_out(world)
    seen = []
    for _ in range(3):
        seen.append(routing.traffic(NAME).share("v2"))
        world.ask("v2", 50)
        world.look(61)

    assert seen == [1, 10, 50]
    assert routing.live(NAME) == "v2"
    assert not world.look(1)
    whys = [step["why"] for step in routing.history(NAME)][:4]
    assert whys == [
        "rollout of v2: it is live",
        "rollout: clean for 1 min: 50 requests, 0 % errors, p99 9.9 ms",
        "rollout of v2: 50 %, clean for 1 min: 50 requests, 0 % errors, p99 9.9 ms",
        "rollout of v2: 10 %, clean for 1 min: 50 requests, 0 % errors, p99 9.9 ms",
    ]


def test_a_step_without_requests_is_not_left(world):
    roll_out(world)

    world.look(300)

    assert weights() == {"v1": 99, "v2": 1}
    assert "a verdict takes 30 requests" in routing.traffic(NAME).rollout["run"]["said"]


def test_a_rollout_that_ends_below_100_leaves_the_version_there(world):
    roll_out(world, steps=(5, 20))
    for _ in range(2):
        world.ask("v2", 50)
        world.look(61)

    assert weights() == {"v1": 80, "v2": 20}
    assert not world.look(1)
    assert "done, it stays at 20 %" in last()[1]


def test_a_bad_version_ends_its_rollout_without_any_guard(world):
    roll_out(world)
    world.ask("v2", 50)
    world.look(61)
    world.ask("v2", 50, errors=25)

    world.look(1)

    assert weights() == {"v1": 100}
    assert routing.traffic(NAME).rollout is None
    assert last()[0] == "guard"
    assert "v2 was taken out of traffic: 25 of 50 answers were errors" in last()[1]


def test_the_limits_of_a_guard_hold_for_a_rollout(world):
    guard(error_rate=0.9)
    roll_out(world)
    world.look()
    world.ask("v2", 50, errors=25)

    world.look(61)

    assert weights() == {"v1": 90, "v2": 10}
    assert routing.traffic(NAME).guard["watch"] == {}  # the rollout has runs of its own


def test_a_breach_in_a_rollout_trips_the_guard(world):
    guard(error_rate=0.02)
    roll_out(world)
    world.ask("v2", 50, errors=25)

    world.look(1)

    held = routing.traffic(NAME)
    assert (dict(held.weights), held.rollout, held.guard["tripped"]["version"]) == ({"v1": 100}, None, "v2")


def test_a_paused_rollout_waits_and_is_still_watched(world):
    roll_out(world)
    held = Rollout.from_dict(routing.traffic(NAME).rollout)
    routing.change(NAME, lambda old: replace(old, rollout=held.stopped(world.now).to_dict()))
    world.ask("v2", 50)
    world.look(200)
    assert weights() == {"v1": 99, "v2": 1}
    world.ask("v2", 50, errors=50)

    world.look(1)

    assert weights() == {"v1": 100}


@pytest.mark.parametrize(("by_hand", "why"), [
    (lambda: split(v1=70, v2=30), "rollout of v2: ended at 1 %, the traffic was changed to v1=70 v2=30"),
    (lambda: split(v1=100), "rollout of v2: ended at 1 %, the traffic was changed to v1=100"),
    (lambda: routing.go_live(NAME, "v3", "by hand"), "rollout of v2: ended at 1 %, v3 became live"),
    (lambda: routing.go_live(NAME, "v2", "by hand"), "rollout of v2: it is live"),
], ids=["other weights", "taken out", "another live", "promoted"])  # fmt: skip
def test_whoever_changes_the_traffic_by_hand_wins(world, by_hand, why):
    roll_out(world)
    world.look(2)
    wished = by_hand()

    assert world.look()
    assert not world.look()

    assert last() == ("rollout", why)
    assert (weights(), routing.live(NAME)) == (dict(wished.weights), wished.live)


def test_a_refused_promotion_pauses_the_rollout_and_says_why(world):
    roll_out(world, steps=(50, 100))
    world.refusal = "v2 has no passed gate"
    world.ask("v2", 50)

    world.look(120)

    held = routing.traffic(NAME)
    assert len(world.promoted) == 1
    assert held.rollout["paused"]
    assert held.rollout["run"]["said"] == "v2 has no passed gate"
    assert last() == ("rollout", "rollout of v2: paused at 50 %, v2 has no passed gate")


def test_a_change_between_the_look_and_the_deed_wins(world):
    split(v1=90, v2=10)
    guard(error_rate=0.02)
    world.look()
    world.ask("v2", 50, errors=50)
    numbers = world.numbers

    def meanwhile(name):
        routing.change(NAME, lambda old: old.to_live("v2"), action="promote", why="by hand")
        return numbers(name)

    world.guardian._read = meanwhile

    world.look()

    assert routing.live(NAME) == "v2"


# -- restarts, clocks ---------------------------------------------------------------------------------------


def test_another_guardian_goes_on_where_one_ended(world):
    roll_out(world)
    world.ask("v2", 50)
    world.look(40)
    world.anew()

    world.look(15)
    assert weights() == {"v1": 99, "v2": 1}
    world.look(10)

    assert weights() == {"v1": 90, "v2": 10}


def test_the_time_without_a_guardian_does_not_count(world):
    roll_out(world)
    world.ask("v2", 50)
    world.look(40)
    world.now += 3600
    world.anew()

    world.look(15)
    assert weights() == {"v1": 99, "v2": 1}
    world.look(10)

    assert weights() == {"v1": 90, "v2": 10}


def test_a_rollout_begun_after_the_last_guardian_ended_has_its_own_time(world):
    guard(error_rate=0.02)
    world.look(3)
    world.now += 3600
    roll_out(world)
    world.ask("v2", 50)
    world.anew()

    world.look(61)

    assert weights() == {"v1": 90, "v2": 10}


@pytest.mark.parametrize("days", [30, -30])
def test_a_clock_that_jumps_moves_no_step(world, days):
    roll_out(world)
    world.ask("v2", 50)
    steady = world.now
    world.guardian._steady = lambda: steady
    for _ in range(40):
        world.now += 1
        steady += 1
        world.guardian.tick()
    world.now += days * 86400

    for second in range(60):
        world.now += 1
        steady += 1
        world.guardian.tick()
        assert second > 18 or weights() == {"v1": 99, "v2": 1}

    assert weights() == {"v1": 90, "v2": 10}


def test_counters_of_a_service_that_began_anew_count_from_zero(world):
    split(v1=90, v2=10)
    guard(error_rate=0.02)
    world.ask("v2", 1000)
    world.look()
    world.counts = {"v2": (40, 40)}

    world.look(1)

    assert weights() == {"v1": 100}


def test_what_an_earlier_service_counted_hides_no_error_of_this_one(world):
    world.ask("v2", 100)
    split(v1=90, v2=10)
    guard(error_rate=0.02)
    world.look(3)
    world.serve_anew()
    world.ask("v2", 120, errors=60)  # before anybody looks
    world.look()

    assert weights() == {"v1": 100}
    assert last()[1].startswith("v2 was taken out of traffic: 60 of 120 answers were errors")


def test_a_run_that_began_under_this_service_keeps_its_baseline(world):
    world.serve_anew()
    world.ask("v2", 100, errors=100)
    world.now += 1
    split(v1=90, v2=10)
    guard(error_rate=0.02)
    world.look()
    world.ask("v2", 50)
    world.anew()
    world.look(3)

    assert weights() == {"v1": 90, "v2": 10}


# -- drift --------------------------------------------------------------------------------------------------


def measured(drift, versions, seconds=10.0):
    """What is known of each version in its run, after a while of looks."""
    found, deadline = {}, time.monotonic() + seconds
    while time.monotonic() < deadline and None in [found.get(version) for version in versions]:
        for version in versions:
            found[version] = drift(version, 5.0, 1000)
        time.sleep(0.05)
    return found


def task(code):
    return lambda *_words: subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)


def test_each_of_two_canaries_is_measured_in_its_turn():
    started = []

    def start(_name, _task, version, _since):
        started.append(version)
        return task(f"print('{{\"score\": 0.{version[1:]}}}')")()

    drift = DriftWatch(NAME, start=start)

    assert measured(drift, ["v2", "v3"]) == {"v2": 0.2, "v3": 0.3}
    assert started == ["v2", "v3"]  # and not again within a minute
    assert drift("v2", 6.0, 1000) is None  # another run


def test_few_rows_are_not_measured():
    drift = DriftWatch(NAME, start=task("raise SystemExit(1)"))

    assert drift("v2", 5.0, 499) is None
    assert drift._child is None


@pytest.mark.parametrize("code", ["import os; os.abort()", "print('{')", 'print(\'{"error": "no Evidently"}\')'])
def test_a_measurement_that_fails_is_told_and_tried_again(code, capfd):
    drift = DriftWatch(NAME, every=0.0, start=task(code))

    assert measured(drift, ["v2"], 1.0) == {"v2": None}
    drift.close()

    assert capfd.readouterr().err.count("the drift of v2 is not known") > 1


# -- the process --------------------------------------------------------------------------------------------


def guardian_process():
    return subprocess.Popen([sys.executable, "-m", "nbdeploy.guardian", NAME], stderr=subprocess.PIPE, text=True)


def test_the_process_ends_by_itself_when_there_is_nothing_to_do(world):
    with guardian_process() as process:
        assert process.wait(20) == 0


def test_the_process_ends_with_whoever_started_it(world):
    guard(error_rate=0.02)
    code = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-m', 'nbdeploy.guardian', {NAME!r}]).pid)"
    starter = f"{code}; import time; time.sleep(2)"
    pid = int(subprocess.run([sys.executable, "-c", starter], capture_output=True, text=True, check=True).stdout)

    deadline = time.monotonic() + 20
    while _lives(pid) and time.monotonic() < deadline:
        time.sleep(0.1)

    assert not _lives(pid)


def _lives(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_two_guardians_never_look_at_once(world):
    guard(error_rate=0.02)
    with lock("guardian", NAME), guardian_process() as second:
        assert second.wait(30) != 0
        assert "flight-delay" in second.stderr.read()


def test_a_state_that_cannot_be_read_is_told_once_and_survived(world):
    guard(error_rate=0.02)
    path = routing.path(NAME)
    whole = path.read_bytes()
    with guardian_process() as process:
        time.sleep(2)
        path.write_bytes(b"{")
        time.sleep(3)
        path.write_bytes(whole)
        routing.change(NAME, lambda old: replace(old, guard=None))
        assert process.wait(20) == 0
        assert process.stderr.read().count("not readable as JSON") == 1


def test_a_guardian_is_small():
    code = (
        "import sys, nbdeploy.guardian\n"
        "print(sorted({'bentoml', 'evidently', 'httpx', 'numpy', 'pandas', 'pyarrow', 'scipy'} & {*sys.modules}))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
