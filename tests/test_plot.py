"""A picture is small whatever it shows, read on light and dark, and nothing in it is markup but what was drawn."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest

from nbdeploy import plot, release_history
from nbdeploy.plot import Line, over_time, time_ticks
from nbdeploy.release_history import History

SVG = "{http://www.w3.org/2000/svg}"
EVIL = '</text><script>alert(1)</script>"><img src=x onerror=alert(2)>\x00\u202e'
DAYS = pd.date_range("2026-07-01", periods=30, freq="D", tz="UTC")


def texts(picture):
    return [element.text for element in ET.fromstring(picture).iter(f"{SVG}text")]


def paths(picture, tag="polyline"):
    found = [element.get("points") for element in ET.fromstring(picture).iter(f"{SVG}{tag}")]
    return [[tuple(map(float, point.split(","))) for point in points.split()] for points in found]


# Colours


def _linear(shade):
    held = np.array([int(shade[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(held <= 0.04045, held / 12.92, ((held + 0.055) / 1.055) ** 2.4)


def _luminance(shade):
    return float(_linear(shade) @ [0.2126729, 0.7151522, 0.0721750])


def _lab(linear):
    xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    held = np.clip(linear, 0, 1) @ np.array(xyz).T / [0.95047, 1, 1.08883]
    x, y, z = np.where(held > 0.008856, np.cbrt(held), 7.787 * held + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


# G. M. Machado, M. M. Oliveira and L. A. F. Fernandes (2009), of people who see no red, no green or no blue.
_EYES = {
    "all": np.eye(3),
    "no red": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no green": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "no blue": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


@pytest.mark.parametrize("eyes", _EYES)
def test_versions_are_told_apart_by_everybody(eyes):
    seen = [_lab(_linear(shade) @ np.array(_EYES[eyes]).T) for shade in plot.VERSIONS]
    apart = [float(np.linalg.norm(a - b)) for i, a in enumerate(seen) for b in seen[:i]]
    assert min(apart) > 15


@pytest.mark.parametrize("ground", ["#ffffff", "#111111", "#212121"])
def test_versions_are_seen_on_light_and_dark(ground):
    for shade in plot.VERSIONS:
        light, dark = sorted((_luminance(shade), _luminance(ground)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 2.95


def test_a_version_has_the_same_colour_in_every_picture():
    line = Line("v2", DAYS, np.arange(30.0), version="v2")
    numbers = np.arange(30.0)
    for picture in (
        over_time([line], "t"),
        plot.histograms(numbers, numbers, ("v1", "v2"), "t"),
        plot.bars(["a"], [1.0], [0.5], ("v1", "v2"), "t"),
        plot.cloud(numbers, numbers, ("v1", "v2"), "t"),
    ):
        assert plot.colour("v2") in picture
    assert len({plot.colour(f"v{n}") for n in range(1, 7)}) == 6
    assert plot.colour("v7") == plot.colour("v1")
    assert plot.colour("") == plot.NEUTRAL
    assert plot.colour(EVIL) in plot.VERSIONS


# Lines over time


def test_a_line_goes_through_its_points_in_the_order_of_time():
    order = np.random.default_rng(0).permutation(30)
    (points,) = paths(over_time([Line("v1", DAYS[order], np.arange(30.0)[order], version="v1")], "t"))
    assert len(points) == 30
    assert points == sorted(points)
    steps = np.diff(np.array(points), axis=0)
    assert np.allclose(steps, steps[0], atol=0.11)


def test_a_missing_value_is_a_gap_and_a_lonely_point_is_a_point():
    values = np.arange(30.0)
    values[[10, 12]] = np.nan, np.inf
    picture = over_time([Line("v1", DAYS, values, values - 1, values + 1)], "t")
    assert [len(points) for points in paths(picture)] == [10, 17]
    assert [len(points) for points in paths(picture, "polygon")] == [20, 34]
    assert len([*ET.fromstring(picture).iter(f"{SVG}circle")]) == 28


def test_what_is_estimated_is_dashed():
    assert "stroke-dasharray" not in over_time([Line("", DAYS, np.arange(30.0))], "t")
    assert "stroke-dasharray" in over_time([Line("", DAYS, np.arange(30.0), dashed=True)], "t")


def test_pictures_of_one_span_have_the_same_axis():
    span = (DAYS[0], DAYS[29])
    half, whole = (over_time([Line("", DAYS[:n], np.arange(n) * 1.0)], "t", span=span) for n in (15, 30))
    assert [text for text in texts(half) if "Jul" in text] == [text for text in texts(whole) if "Jul" in text] != []
    assert max(x for x, _ in paths(half)[0]) < 320


def test_a_limit_and_events_are_marked_and_named():
    line = Line("v1", DAYS, np.linspace(0.8, 0.7, 30), version="v1")
    events = [(DAYS[20].to_pydatetime(), "v2 promoted"), (DAYS[0] - pd.Timedelta("9D"), "before the picture")]
    picture = over_time([line], "t", limit=0.9, limit_name="gate", events=events)
    assert {"gate", "v2 promoted"} <= {*texts(picture)}
    assert "before the picture" not in picture
    assert re.search(r'stroke-dasharray="6 4"', picture)
    assert min(float(text) for text in texts(picture) if re.fullmatch(r"[\d.]+", text)) <= 0.7


def test_an_axis_of_counts_begins_at_zero():
    def marks(**options):
        found = texts(over_time([Line("", DAYS, np.full(30, 13.0))], "t", **options))
        return [float(text) for text in found if re.fullmatch(r"[\d.]+", text)]

    assert min(marks(from_zero=True)) == 0
    assert min(marks()) > 0


def test_an_interval_that_is_far_too_wide_does_not_hide_the_line():
    values = np.linspace(0, 1, 30)
    low, high = values - 0.1, values + 0.1
    low[0], high[0] = -1e6, 1e6
    (points,) = paths(over_time([Line("", DAYS, values, low, high)], "t"))
    assert max(y for _, y in points) - min(y for _, y in points) > 80


@pytest.mark.parametrize(
    ("start", "end", "told"),
    [
        ("2026-07-01 09:59:51", "2026-07-01 10:00:12", ["1 Jul 09:59:55", "10:00:00", "10:00:05", "10:00:10"]),
        (
            "2026-07-01 10:00:00",
            "2026-07-01 10:00:20",
            ["1 Jul 10:00:00", "10:00:05", "10:00:10", "10:00:15", "10:00:20"],
        ),
        ("2026-07-01 10:07", "2026-07-01 13:01", ["1 Jul 10:30", "11:00", "11:30", "12:00", "12:30", "13:00"]),
        ("2026-07-01 20:00", "2026-07-02 05:00", ["1 Jul 21:00", "2 Jul", "03:00"]),
        ("2026-12-30", "2027-01-02", ["30 Dec 00:00", "12:00", "31 Dec", "12:00", "1 Jan", "12:00", "2 Jan"]),
        ("2026-07-01", "2026-08-03", ["6 Jul 2026", "13 Jul", "20 Jul", "27 Jul", "3 Aug"]),
        ("2025-11-05", "2026-03-02", ["Dec 2025", "2026", "Feb", "Mar"]),
        ("2019-05-05", "2026-03-02", ["Jan 2020", "2021", "2022", "2023", "2024", "2025", "2026"]),
    ],
)
def test_the_axis_is_marked_where_people_would(start, end, told):
    found = time_ticks(pd.Timestamp(start).value, pd.Timestamp(end).value)
    assert [text for _, text in found] == told


def test_names_of_the_axis_do_not_stand_on_each_other():
    when = pd.date_range("2026-11-30 00:58:15", periods=6, freq="s")
    picture = over_time([Line("", when, range(6))], "t")
    named = [(float(at), anchor, text) for at, anchor, text in re.findall(
        r'<text x="([\d.]+)" y="213.0"[^>]*text-anchor="(\w+)"[^>]*>([^<]+)<', picture) if text != "UTC"]  # fmt: skip
    assert named[0][2] == "30 Nov 00:58:15"
    ends = -1.0
    for at, anchor, text in named:
        wide = 5.6 * len(text)
        left = at - {"start": 0, "middle": wide / 2, "end": wide}[anchor]
        assert left > ends
        ends = left + wide


@pytest.mark.parametrize("seconds", [3 * 10**k for k in range(9)])
def test_the_axis_has_few_marks_however_long_it_is(seconds):
    for start in range(0, 2_000_000_000, 123_456_789):
        found = time_ticks(start * 1e9, (start + seconds) * 1e9)
        assert 1 <= len(found) <= 9
        assert [place for place, _ in found] == sorted(place for place, _ in found)


# Whatever comes


def test_a_picture_is_small_whatever_it_shows():
    rng = np.random.default_rng(0)
    when = pd.date_range("2026-01-01", periods=50_000, freq="min")
    lines = [Line(EVIL * 100, when, v := rng.normal(size=50_000), v - 1, v + 1, f"v{n}") for n in range(20)]
    events = [(moment.to_pydatetime(), EVIL * 100) for moment in when[::50]]
    for some in (lines, lines[:1]):
        picture = over_time(some, EVIL * 1000, limit=0.0, limit_name=EVIL * 100, events=events, unit=EVIL)
        assert len(picture.encode()) < 60_000
        ET.fromstring(picture)
    assert len(plot.cloud(when.asi8, when.asi8, (EVIL, EVIL), EVIL).encode()) < 60_000


def test_a_spike_among_many_points_is_still_there():
    values = np.zeros(50_000)
    values[31_234] = 1.0
    picture = over_time([Line("", pd.date_range("2026-01-01", periods=50_000, freq="s"), values)], "t")
    heights = [y for points in paths(picture) for _, y in points]
    assert max(heights) - min(heights) > 100


def test_no_text_is_markup():
    pictures = (
        over_time([Line(EVIL, DAYS, np.arange(30.0), version=EVIL)], EVIL, unit=EVIL, events=[(DAYS[3], EVIL)],
                  limit=3, limit_name=EVIL),
        plot.histograms(np.arange(9.0), np.arange(9.0), (EVIL, EVIL), EVIL),
        plot.bars([EVIL], [1.0], [0.5], (EVIL, EVIL), EVIL),
        plot.cloud(np.arange(9.0), np.arange(9.0), (EVIL, EVIL), EVIL),
    )  # fmt: skip
    for picture in pictures:
        tags = {element.tag.removeprefix(SVG) for element in ET.fromstring(picture).iter()}
        assert tags <= {"svg", "text", "line", "polyline", "polygon", "circle", "rect", "g", "title"}
        assert not re.search(r"<(script|img)", picture)
        assert "\u202e" not in picture


@pytest.mark.parametrize(
    "lines",
    [
        [], [Line("v1", [], [])], [Line("v1", DAYS, np.full(30, np.nan))], [Line("v1", [pd.NaT], [1.0])],
        [Line("v1", DAYS[:1], [0.0], [-1.0], [1.0])], [Line("v1", DAYS[:2], [1e300, -1e300])],
        [Line("v1", ["2026-07-01", "2026-07-01T05:00+02:00"], [1, 2])], [Line("v1", [DAYS[0]] * 3, [1, 1, 1])],
        [Line("v1", DAYS[:2], [1e-300, 2e-300])],
    ],
)  # fmt: skip
def test_little_or_nothing_is_drawn_too(lines):
    picture = over_time(lines, "t", limit=math.nan)
    assert texts(picture)[0] == "t"
    assert "nan" not in picture


# What happened to the traffic


def steps(*told):
    found = [
        {
            "time": f"2026-07-{day:02d}T12:00:00.500+00:00",
            "who": "me",
            "action": action,
            "from": "v1",
            "to": to,
            "why": EVIL,
        }
        for day, action, to in told
    ]
    return History.of(reversed(found))


def test_the_history_shows_the_share_of_each_version_over_time():
    taken = steps((1, "served", "v1"), (11, "traffic", "v1 90 %, v2 10 %; shadow v3"), (12, "gates", "v1"),
                  (13, "guard", "v1 100 %"), (21, "promote", "v2"))  # fmt: skip
    drawn = release_history.picture(taken, pd.Timestamp("2026-07-31T12:00Z"))
    first, second = ({y for _, y in line} for line in _joined(drawn, "v1", "v2"))
    full, nothing = min(first), max(first)
    assert sorted(first) == [full, pytest.approx(nothing + 0.9 * (full - nothing), abs=0.1), nothing]
    assert len(second) == 3
    at = [x for x, y in _joined(drawn, "v2")[0] if y == full]
    assert at == [pytest.approx(64 + (560 - 12 - 64) * 20 / 30, abs=0.2), 548.0]
    assert "promote v2" in texts(drawn)
    assert "v3" not in drawn


def _joined(picture, *versions):
    found = []
    for version in versions:
        lines = re.findall(rf'<polyline points="([^"]+)" fill="none" stroke="{plot.colour(version)}"', picture)
        found.append([tuple(map(float, point.split(","))) for line in lines for point in line.split()])
    return found


def test_the_history_stays_a_frame_and_its_page_is_small():
    taken = steps(*((1 + k % 28, "traffic", f"v1 {k % 100} %, v2 {100 - k % 100} %") for k in range(2_000)))
    page = taken._repr_html_()
    assert isinstance(taken, pd.DataFrame)
    assert type(taken.head(1)) is pd.DataFrame
    assert page.startswith("<svg")
    assert "<script>" not in page
    assert len(release_history.picture(taken).encode()) < 60_000
    assert steps()._repr_html_().startswith("<div")
