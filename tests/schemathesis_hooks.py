"""What schemathesis does not know by itself; its command line loads this file."""

from __future__ import annotations

import datetime as dt

import schemathesis
from hypothesis import strategies as st

# No time zone on purpose, and the years that nanoseconds since 1970 can hold.
moments = st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2200, 1, 1))  # noqa: DTZ001
schemathesis.openapi.format("date-time-local", moments.map(dt.datetime.isoformat))
schemathesis.openapi.format("date-time", moments.map(lambda moment: moment.isoformat() + "Z"))
