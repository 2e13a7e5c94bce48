"""What does not fit is refused, what fits is served, and which is which is the same as the reference says."""

from __future__ import annotations

import datetime as dt
import gzip
import json
import time
import timeit
from importlib.util import find_spec
from typing import Any

import httpx
import numpy as np
import pandas as pd
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kinds import FRAME, RECORD, ROWS, SIGNATURE, Even
from nbdeploy import protocol_own, request_body
from nbdeploy.errors import InputError
from nbdeploy.exchange import Asked, Refused, Served
from nbdeploy.request_body import Unreadable, parse_json, read_json, read_rows
from nbdeploy.signature import Signature
from reference_validator import judge
from services import running

FACTS = json.loads(json.dumps(SIGNATURE.to_dict()))

NUMBERS = [
    "0", "-0", "-0.0", "1", "3.0", "3.5", "1e2", "1E2", "127", "128", "-128", "-129", "127.0", "128.0", "32767", "32768",
    "2147483647", "2147483648", "9007199254740993", "9223372036854775807", "9223372036854775808", "-9223372036854775808",
    "-9223372036854775809", "-9223372036854775809.0", "18446744073709551615", "18446744073709551616",
    "340282346638528859811704183484516925440", "3.5e38", "-3.5e38", "1.7976931348623157e308", "1.8e308", "1E400",
    "-1E400", "1e-400", "1e999999999999", "1e-999999999999", "0e999999999999", "1" + "0" * 400, "-" + "9" * 5000,
    "0." + "1" * 5000, "1" * 250 + "e99", "NaN", "Infinity", "-Infinity", "2e0", "1.0000000000000000000000001",
]  # fmt: skip
TEXTS = [
    '""', '"a"', '"x"', '"z"', '"NaN"', '"null"', '"1"', '"1.5"', '"true"', '"\\u0000"', '"\\"q\\""', '"\\\\"', '"\\\\\\""',
    '"\\u0022\\u005c"', '"\\ud800"', '"\\ud83d\\ude00"', '"😀"', '"\\/"', '"\u2028"', '"</script><script>"', '"[[[[{{{{"',
]  # fmt: skip
MOMENTS = [
    "2013-01-31", "2013-01-31T08:15:00", "2013-01-31 08:15", "2013-01-31T08:15:00.5", "2013-01-31T08:15:00.123456789",
    "2013-01-31T08:15:00.1234567891", "2013-01-31T08:15:00Z", "2013-01-31T08:15:00+01:00", "2013-01-31T08:15+0130",
    "2013-01-31T08:15:00-08", "2013-01-31T08:15:00+23:59", "2013-01-31T08:15:00+24:00", "2013-01-31T08:15:00+01:60",
    "2013-01-31T08:15:00 Z", "2013-01-31T08:15:00Z ", "2013-01-31T08:15:00z", "2013-01-31t08:15:00", "2013-01-31T24:00:00",
    "2013-01-31T23:60:00", "2013-01-31T08:15:60", "2013-02-29", "2012-02-29", "2013-02-30", "2013-13-01", "2013-00-01",
    "2013-1-5", "2013/01/05", "20130131", "2013-01", "2013", "2013-01-31T", "2013-01-31T08", "2013-01-31Z", "2013-01-31+01:00",
    "0000-01-01", "0001-01-01", "9999-12-31", "1677-09-21T00:12:43", "1677-09-21T00:12:44", "2262-04-11T23:47:16",
    "2262-04-11T23:47:17", "2262-04-11T23:47:16.854775807", "2262-04-11T23:47:16.854775807Z", "10000-01-01", "-2013-01-01",
    "now", "today", "NaT", "nan", "", "٢٠١٣-01-31", "2013-01-31T08:15:00+1:00", "2013-01-31T08:15:00,5", " 2013-01-31",
    "2013-W05-4", "2013-031", "1359590400",
]  # fmt: skip
OTHERS = [
    "null", "true", "false", "[]", "{}", "[1]", "[0.5, 1.5]", "[1, 2.5]", "[true, 1]", "[true, false]", "[null, 1.5]",
    "[1.5, NaN]", "[1.5, Infinity]", "[[1, 2], [3, 4]]", "[[1, 2], [3]]", "[[1, 2.0], [3, 4]]", "[[1, 2], [3, 40000]]",
    "[[1, 2], [3, true]]", '["a", 1]', '["a", null]', '["a", ["b"]]', '["a", true]', '[1, "2"]', '{"a": 1}', "[[[]]]",
    "[1e400, 1]", "[" + "9" * 400 + ", 1]", "[9223372036854775808, -1]", "[1, 2]", "[-9223372036854775809, 1]", "[9223372036854775807, 1]", "[9223372036854775807, -2.0]", "[9223372036854775808, 2.0]", "[1.5, 1]", "[1.0, 2]", "[0.5, true]", '["NaN", 1.5]', "[[], []]",
    "[" * 29 + "]" * 29, "[" * 40 + "]" * 40,
]  # fmt: skip
LITERALS = [*NUMBERS, *TEXTS, *(json.dumps(text, ensure_ascii=False) for text in MOMENTS), *OTHERS]

literals = st.one_of(
    st.sampled_from(LITERALS),
    st.integers(-(2**70), 2**70).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.text(max_size=6).map(lambda text: json.dumps(text, ensure_ascii=False)),
    st.datetimes(dt.datetime(1600, 1, 1), dt.datetime(2300, 1, 1)).map(  # noqa: DTZ001  local times
        lambda moment: json.dumps(moment.isoformat())
    ),
)


def escaped(name: str) -> str:
    return "".join(f"\\u{ord(letter):04x}" for letter in name)


@st.composite
def bodies(draw: Any) -> bytes:
    """A body near a valid one: of real rows, some cells, names, forms or bytes are others."""
    count = draw(st.integers(1, 3))
    rows = [
        [(name, json.dumps(value)) for name, value in zip(SIGNATURE.names, row, strict=True)] for row in ROWS[:count]
    ]
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 1, 2, 4]))):
        pairs = rows[draw(st.integers(0, count - 1))]
        if not pairs:
            continue
        place = draw(st.integers(0, len(pairs) - 1))
        name, value = pairs[place]
        what = draw(st.sampled_from(["cell"] * 12 + ["drop", "add", "double", "rename", "escape", "case"]))
        if what == "cell":
            pairs[place] = (name, draw(literals))
        elif what == "drop":
            del pairs[place]
        elif what == "add":
            pairs.insert(
                place, (draw(st.sampled_from(["extra", "", "__proto__", "columns", "\\u0000", "\\ud800"])), "1")
            )
        elif what == "double":
            pairs.append((draw(st.sampled_from([name, escaped(name)])), draw(st.one_of(st.just(value), literals))))
        else:
            pairs[place] = ({"rename": name + "x", "escape": escaped(name), "case": name.upper()}[what], value)
    for pairs in rows:
        if draw(st.booleans()):
            pairs.reverse()
    form = draw(st.sampled_from(["record", "records", "records", "split"]))
    if form == "split":
        names = ", ".join(f'"{name}"' for name, _ in rows[0])
        data = ", ".join("[" + ", ".join(value for _, value in pairs) + "]" for pairs in rows)
        text = f'{{"columns": [{names}], "data": [{data}]}}'
    else:
        objects = ["{" + ", ".join(f'"{name}": {value}' for name, value in pairs) + "}" for pairs in rows]
        text = objects[0] if form == "record" else "[" + ", ".join(objects) + "]"
    return draw(spoiled(text))


@st.composite
def spoiled(draw: Any, text: str) -> bytes:
    how = draw(st.sampled_from(["not"] * 24 + ["bom", "utf-16", "utf-32", "trail", "cut", "insert", "nul", "latin", "deep",
                                               "twice", "spaces", "in", "odd"]))  # fmt: skip
    body = text.encode("utf-8", "surrogatepass")
    place = draw(st.integers(0, len(body)))
    odd = draw(st.sampled_from([b",", b'"', b"}", b"]", b"{", b"[", b":", b"\\", b"\x00", b"\xff", b"\n", b"0", b"e"]))
    return {
        "not": body, "bom": b"\xef\xbb\xbf" + body, "utf-16": text.encode("utf-16", "surrogatepass"), "nul": body + b"\x00",
        "utf-32": text.encode("utf-32", "surrogatepass"), "trail": body + b" {}", "cut": body[:place],
        "insert": body[:place] + odd + body[place:], "latin": body + b"\xe4", "deep": b"[" * 33 + body + b"]" * 33,
        "twice": body + body, "spaces": b" \t\r\n" + body + b"\n ", "in": b"[" + body + b"]",
        "odd": draw(st.sampled_from([b"", b"null", b"3", b'"a"', b"[]", b"{}", b"[[]]", b"[null]", b"[" * 100_000, b"NaN",
                                     b'{"columns": []}', b'{"columns": [], "data": []}', b'{"columns": 1, "data": [[1]]}'])),
    }[how]  # fmt: skip


def answered(body: bytes, signature: Signature = SIGNATURE) -> tuple[int, list[dict[str, Any]], pd.DataFrame | None]:
    """Status, problems and the model's frame."""
    asked = Asked("POST", "/predict", {}, {"content-type": "application/json"}, body)
    try:
        question = protocol_own.read(Served("strict", "v1", signature), asked)
        return 200, [], signature.build(question.columns or {})
    except Unreadable:
        return 400, [], None
    except InputError as error:
        return 422, error.problems, None
    except Refused as refused:
        return refused.status, refused.problems, None


def plain(value: Any) -> Any:
    """A cell of the model's frame as the reference has it."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        return [plain(part) for part in value]
    if value is None or value is pd.NA or value is pd.NaT or value != value:
        return None
    if isinstance(value, pd.Timestamp):
        return value.as_unit("ns").value
    return value.isoformat() if isinstance(value, dt.date) else value.item() if isinstance(value, np.generic) else value


def agree(body: bytes) -> None:
    verdict = judge(body, FACTS)
    status, problems, frame = answered(body)
    assert status == verdict.status, (body[:2000], status, verdict.status, problems, verdict.columns)
    if status == 422:
        assert problems
        assert {each["column"] for each in problems} <= verdict.columns, (body[:2000], problems, verdict.columns)
    if frame is not None:
        for name in SIGNATURE.names:
            held = [plain(value) for value in frame[name]]
            wanted = [row[name] for row in verdict.rows]
            if name == "half":
                wanted = [float(np.float32(value)) for value in wanted]
            assert held == wanted, (name, held, wanted)
            assert frame[name].dtype == FRAME[name].dtype or name in ("kind", "level", "side", "share")


CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]


@settings(max_examples=300, deadline=None, suppress_health_check=CHECKS)
@given(body=bodies())
def test_any_body_gets_the_verdict_of_the_reference(body):
    agree(body)


@pytest.mark.slow
@settings(max_examples=5_000, deadline=None, suppress_health_check=CHECKS)
@given(body=bodies())
def test_five_thousand_bodies_get_the_verdict_of_the_reference(body):
    agree(body)


def every_odd_value(name: str, literals: list[str]) -> None:
    for literal in literals:
        pairs = [
            f'"{key}": {literal if key == name else json.dumps(value)}'
            for key, value in zip(SIGNATURE.names, ROWS[0], strict=True)
        ]
        agree(("{" + ", ".join(pairs) + "}").encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("place", range(len(SIGNATURE.names)), ids=SIGNATURE.names)
def test_odd_values_in_every_column_get_the_verdict_of_the_reference(place):
    every_odd_value(SIGNATURE.names[place], LITERALS[place % 4 :: 4])


@pytest.mark.slow
@pytest.mark.parametrize("name", SIGNATURE.names)
def test_every_odd_value_in_every_column_gets_the_verdict_of_the_reference(name):
    every_odd_value(name, LITERALS)


# Bodies as bytes


@pytest.mark.parametrize("read", [lambda body: read_rows(body, SIGNATURE), read_json], ids=["rows", "any"])
@pytest.mark.parametrize("depth", [33, 1_000, 1_025, 100_000, 2_000_000])
def test_a_body_nested_deeper_than_32_is_not_read(read, depth):
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        for body in (opening * depth, opening * depth + b"1" + closing * depth, b'["]", ' + opening * depth):
            begun = time.perf_counter()
            with pytest.raises(Unreadable, match="nested deeper than 32"):
                read(body)
            assert time.perf_counter() - begun < 5


def test_brackets_in_texts_are_no_nesting():
    text = "[" * 1_000 + '{"' * 1_000
    body = json.dumps([RECORD | {"word": text}, RECORD]).encode()

    assert read_rows(body, SIGNATURE)["word"][0] == text
    assert read_json(json.dumps({"a": [[text] * 40]}).encode()) == {"a": [[text] * 40]}
    assert read_json(b"[" * 32 + b"]" * 32)


def test_a_number_costs_no_more_than_its_length():
    for text in ("1" * 5_000_000, "1e" + "9" * 1_000_000, "0." + "1" * 5_000_000, "-" + "9" * 5_000_000):
        body = json.dumps(RECORD | {"whole": "@"}).replace('"@"', text).encode()
        begun = time.perf_counter()
        with pytest.raises(InputError, match="whole"):
            read_rows(body, SIGNATURE)
        assert time.perf_counter() - begun < 2


def test_more_rows_or_parts_than_the_limits_are_not_read(monkeypatch):
    with pytest.raises(InputError, match="at most 1,000,000 rows, got 1,000,001 rows"):
        read_rows(b"[" + b"0," * 1_000_000 + b"0]", SIGNATURE)
    bomb = b"[" + b"[]," * (request_body.MAX_PARTS + 1) + b"[]]"
    for read in (lambda body: read_rows(body, SIGNATURE), read_json):
        with pytest.raises(Unreadable, match="at most 8,000,000 are read"):
            read(bomb)
    assert len(read_json(b'["' + b"[" * (request_body.MAX_PARTS + 10) + b'"]')[0]) > request_body.MAX_PARTS


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('{"a": 1, "a": 1}', "a"), ('{"a": 1, "\\u0061": 2}', "a"), ('{"b": {"a": [{"x": 1, "x": "1"}]}}', "x"),
        ('{"": 1, "": 2}', ""), ('{"a": "\\"", "b": "\\\\", "a": "\\\\\\""}', "a"), ('[{"a": {"q": 1, "q": NaN}}]', "q"),
        ('{"a": {"b": 1}, "a": 2}', "a"), ('{"\\ud83d\\ude00": 1, "\U0001f600": 2}', "\U0001f600"),
    ],
)  # fmt: skip
def test_a_key_twice_anywhere_is_refused(text, key):
    with pytest.raises(InputError) as refused:
        read_json(text.encode())

    assert refused.value.problems[0]["column"] == key


@given(value=st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(st.text(max_size=3), parts, max_size=4), max_leaves=20,
), plain=st.booleans())  # fmt: skip
def test_any_json_without_a_doubled_key_is_read(value, plain):
    body = json.dumps(value, ensure_ascii=plain).encode("utf-8", "surrogatepass")
    try:
        body.decode()
    except UnicodeDecodeError:
        return
    read = read_json(body)

    assert json.dumps(read, default=str).count('"') == json.dumps(value).count('"')


def test_one_row_costs_ten_microseconds_to_parse_and_to_compare_with_its_keys():
    record = {name: RECORD[name] for name in ("whole", "byte", "size", "half", "flag", "word", "kind", "when")}
    signature = Signature(columns=tuple(c for c in SIGNATURE.columns if c.name in record))
    body = json.dumps(record).encode()
    lists = signature.check(record)

    def once():
        request_body.refuse_doubled_keys(body, parse_json(body), signature, lists)

    best = min(timeit.repeat(once, number=2_000, repeat=5)) / 2_000
    assert best < 40e-6  # 4 µs on the machine that this was written on; others share theirs


# Through HTTP, on a real service

HEADERS = {"Content-Type": "application/json"}
V2 = "/v2/models/kinds/infer"
PREDICTS = ["/predict", "/explain", "/invocations", V2, "/v1/models/kinds:predict", "/bentoml/predict"]
TYPES = {"int64": "INT64", "int8": "INT8", "uint64": "UINT64", "Int32": "INT32", "float64": "FP64", "float32": "FP32",
         "int16": "INT16", "bool": "BOOL", "boolean": "BOOL"}  # fmt: skip


@pytest.fixture(scope="module")
def deployed():
    with running(Even(), "kinds", FRAME, [True, False, True]) as (service, _):
        yield service


@pytest.fixture
def http(deployed):
    with httpx.Client(base_url=deployed.url, timeout=30, headers={"Connection": "keep-alive"}) as client:
        yield client


@pytest.fixture(autouse=True)
def unharmed(request):
    """Whatever a test sends, the worker is the same afterwards, and answers."""
    if "http" not in request.fixturenames:
        yield
        return
    service = request.getfixturevalue("deployed")
    before = workers(service.pid)
    yield
    assert workers(service.pid) == before
    answer = httpx.post(f"{service.url}/predict", json=RECORD, timeout=30)
    assert answer.status_code == 200, answer.text


def workers(pid: int) -> list[int]:
    return sorted(child.pid for child in psutil.Process(pid).children(recursive=True))


def body_for(path: str, pairs: list[tuple[str, str]]) -> str:
    """The body of a protocol for one row, whose values are JSON texts."""
    row = "{" + ", ".join(f"{json.dumps(name)}: {value}" for name, value in pairs) + "}"
    if path == V2:
        tensors = []
        for name, value in pairs:
            column = next((c for c in SIGNATURE.columns if c.name == name), None)
            shape, kind, data = [1], "BYTES", value
            if column is not None:
                dtype = column.category_dtype if column.kind == "category" else column.dtype
                kind = TYPES.get(dtype, "BYTES")
                shape += np.shape(RECORD[name])
                if column.shape:  # flat
                    data = value.replace("[", "").replace("]", "")
            tensors.append(f'{{"name": {json.dumps(name)}, "shape": {shape}, "datatype": "{kind}", "data": [{data}]}}')
        return f'{{"inputs": [{", ".join(tensors)}]}}'
    return {
        "/predict": row, "/explain": row, "/invocations": f'{{"dataframe_records": [{row}]}}',
        "/v1/models/kinds:predict": f'{{"instances": [{row}]}}', "/bentoml/predict": f'{{"rows": [{row}]}}',
    }[path]  # fmt: skip


GOOD = [(name, json.dumps(value)) for name, value in RECORD.items()]
# What a value may not be, by column.
BAD_CELLS = [
    ("whole", "1.5"), ("whole", '"far"'), ("whole", '"1"'), ("whole", "true"), ("whole", "null"), ("whole", "[1]"),
    ("whole", "{}"), ("whole", str(10**400)), ("whole", str(2**64)), ("whole", "1e400"), ("byte", "128"), ("byte", "-129"),
    ("big", "-1"), ("size", "NaN"), ("size", "Infinity"), ("size", "-Infinity"), ("size", "1e400"), ("size", "null"),
    ("size", "true"), ("size", '"a"'), ("size", "[[1]]"), ("half", "1e39"), ("flag", "1"), ("flag", '"true"'),
    ("flag", "null"), ("word", "7"), ("word", "null"), ("word", "false"), ("kind", "3"), ("level", '"1"'),
    ("side", "2"), ("when", "1359590400"), ("when", '"now"'), ("when", '"2013-02-30"'), ("when", '"2013-01-31T08:15:00Z"'),
    ("zoned", '"2013-01-31T08:15:00"'), ("day", '"2013-1-5"'), ("vector", "[1]"), ("vector", '["a", "b"]'),
    ("grid", "[[1, 2], [3, 99999]]"), ("words", "[1, 2]"), ("flags", "[1, 0]"),
]  # fmt: skip
# Tensors say their type themselves, so their problem may be the tensor's type; null is a null of any type.
BAD_NAMES = {
    "missing": ([pair for pair in GOOD if pair[0] != "kind"], "kind"),
    "extra": ([*GOOD, ("colour", '"red"')], "colour"),
    "misspelt": ([("knd" if name == "kind" else name, value) for name, value in GOOD], "kind"),
    "doubled": ([*GOOD, ("kind", '"x"')], "kind"),
    "markup": ([*GOOD, ("</script><script>", "1")], "</script><script>"),
    "prototype": ([*GOOD, ("__proto__", "1")], "__proto__"),
    "path": ([*GOOD, ("../../etc/passwd\x00", "1")], "../../etc/passwd\x00"),
}  # fmt: skip


def refused(response: httpx.Response, column: str | None = None) -> None:
    assert 400 <= response.status_code < 500, response.text[:500]
    answer = response.json()
    assert answer["error"]
    assert "\n" not in answer["error"]
    assert len(response.content) < 200_000
    for each in answer["problems"]:
        assert set(each) == {"row", "column", "expected", "got", "hint"}
        assert each["expected"]
        assert each["got"]
    if column is not None:
        assert column in [each["column"] for each in answer["problems"]], answer


@pytest.mark.parametrize("path", PREDICTS)
def test_a_good_row_is_answered_by_every_protocol(http, path):
    if path == "/explain" and find_spec("shap") is None:
        pytest.skip("SHAP is not installed")
    response = http.post(path, content=body_for(path, GOOD), headers=HEADERS)

    assert response.status_code == 200, response.text


@pytest.mark.parametrize("path", PREDICTS)
def test_a_value_that_does_not_fit_is_refused_with_its_column_by_every_protocol(http, path):
    if path == "/explain" and find_spec("shap") is None:
        pytest.skip("SHAP is not installed")
    for name, value in BAD_CELLS:
        pairs = [(key, value if key == name else held) for key, held in GOOD]
        response = http.post(path, content=body_for(path, pairs), headers=HEADERS)
        refused(response, name)
        assert response.status_code == 422 or path == V2, (name, value, response.text)


@pytest.mark.parametrize("path", PREDICTS)
def test_names_that_are_not_the_models_are_refused_by_every_protocol(http, path):
    if path == "/explain" and find_spec("shap") is None:
        pytest.skip("SHAP is not installed")
    for pairs, name in BAD_NAMES.values():
        refused(http.post(path, content=body_for(path, pairs), headers=HEADERS), name)


BAD_BODIES = [
    b"", b" ", b"{", b"[", b"not json", b"\xff\xfe\x00", b"\xef\xbb\xbf{}", '{"a": 1}'.encode("utf-16"), b"{} {}", b"[]", b"{}",
    b"null", b"3", b'"text"', b"true", b"[[1]]", b"[null]", b"[[]]", b'{"a": "\\ud800"}', b'{"a": "\x00"}', b"[" * 100_000,
    b"[" * 40 + b"]" * 40, b'{"a":' * 40 + b"1" + b"}" * 40, b"NaN", b"-", b"01", b"1" * 100_000, b"[" + b"1" * 100_000 + b"]",
    b"[1,]", b"{'a': 1}", b'{"a": 1,}', b'{"inputs": []}', b'{"inputs": {}}', b'{"inputs": null}', b'{"inputs": [[]]}',
    b'{"inputs": [{}]}', b'{"instances": []}', b'{"instances": {}}', b'{"instances": null}', b'{"rows": []}', b'{"rows": {}}',
    b'{"rows": null}', b'{"rows": [[]]}', b'{"frame": []}', b'{"dataframe_split": {}}', b'{"dataframe_split": []}',
    b'{"dataframe_split": {"columns": [], "data": []}}', b'{"dataframe_split": {"columns": 1, "data": [[1]]}}',
    b'{"dataframe_records": []}', b'{"dataframe_records": [1]}', b'{"dataframe_records": {}}', b'{"columns": [], "data": []}',
    b'{"columns": ["a"], "data": [[1, 2]]}', b'{"columns": [["a"]], "data": [[1]]}', b'{"columns": ["a", "a"], "data": [[1, 2]]}',
    b'{"labels": null}', b'{"labels": []}', b'{"labels": {}}', b'{"labels": {"": 1}}', b'{"labels": {"../../x": 1}}',
    b'{"labels": {"a": 1, "a": 2}}', b'{"labels": {"a-0": {}}}', b'{"labels": {"a-0": "\\ud800"}}', b'{"labels": {"a-0": 1e400}}',
    b'{"inputs": [{"name": "whole", "shape": [99999999999], "datatype": "INT64", "data": [1]}]}',
    b'{"inputs": [{"name": "whole", "shape": [-1], "datatype": "INT64", "data": [1]}]}',
    b'{"inputs": [{"name": "whole", "shape": [1], "datatype": "INT64", "parameters": {"binary_data_size": 8}}]}',
    b'{"inputs": [{"name": "whole", "shape": [1], "datatype": "INT64", "parameters": {"binary_data_size": -8}}]}',
    b'{"inputs": [{"name": 1, "shape": [1], "datatype": "INT64", "data": [1]}]}',
    b'{"inputs": [{"name": "whole", "shape": [1.5], "datatype": [], "data": {}}]}',
]  # fmt: skip


@pytest.mark.parametrize("path", [*PREDICTS, "/labels"])
def test_what_is_no_request_is_refused_by_every_route(http, path):
    if path == "/explain" and find_spec("shap") is None:
        pytest.skip("SHAP is not installed")
    for body in BAD_BODIES:
        response = http.post(path, content=body, headers=HEADERS)
        refused(response)
        assert response.status_code in (400, 422), (body[:100], response.text)


@pytest.mark.parametrize("path", [*PREDICTS, "/labels"])
def test_other_media_types_encodings_and_methods_are_refused_by_every_route(http, path):
    if path == "/explain" and find_spec("shap") is None:
        pytest.skip("SHAP is not installed")
    for media in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/xml",
                  "application/json5", "*/*", "application", "a" * 5_000, "application/json/x"):  # fmt: skip
        response = http.post(path, content=b"{}", headers={"Content-Type": media})
        refused(response)
        assert response.status_code == 415, (media[:100], response.text)
    for encoding in ("gzip", "deflate", "br", "zstd", "identity, gzip", "x"):
        response = http.post(path, content=gzip.compress(b"{}"), headers={**HEADERS, "Content-Encoding": encoding})
        refused(response)
        assert response.status_code == 415, (encoding, response.text)
    refused(http.request("FOO", path))
    for method in ("GET", "PUT", "DELETE", "PATCH", "TRACE", "OPTIONS"):
        response = http.request(method, path)
        refused(response)
        assert response.status_code == 405, (method, response.text)
        assert "POST" in response.headers["allow"]


def test_names_and_versions_in_paths_and_queries_are_only_compared(http):
    for name in ("..", "%2e%2e", "kinds%00", "kinds/../kinds", "KINDS", "kinds%0a", "k\u0131nds", "kinds%2f..", "x" * 60_000,
                 "kinds/versions/99", "kinds/versions/-1", "kinds/versions/%2e%2e", "%ff%fe", "$(id)", "`id`", "{{7*7}}"):  # fmt: skip
        for path in (f"/v2/models/{name}/infer", f"/v1/models/{name}:predict", f"/{name}", f"/predict/{name}"):
            response = http.post(path, content=b"{}", headers=HEADERS)
            assert response.status_code in (400, 404, 405, 414, 422, 431), (path[:100], response.text[:300])
            if response.status_code == 422:  # the path without its dots: the one that is there
                assert ".." in name
    for query in ("proba=maybe", "proba=", "proba=%00", "proba=1&proba=0", "proba=%ff", "proba=" + "1" * 60_000,
                  "&".join(f"a{i}=1" for i in range(2_000)), "%", "=", "proba[]=1"):  # fmt: skip
        for path in ("/predict", "/invocations", "/v1/models/kinds:predict", "/bentoml/predict"):
            response = http.post(f"{path}?{query}", content=body_for(path, GOOD), headers=HEADERS)
            assert response.status_code < 500, (path, query[:100], response.text[:300])


@pytest.mark.parametrize("body", [
    b"", b"\x00" * 64, b"ARROW1", b"\xff\xff\xff\xff\x10\x00\x00\x00" + b"\x00" * 64, b"\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"{}", b"\xff" * 1_000,
], ids=range(7))  # fmt: skip
def test_what_is_no_arrow_stream_is_refused(http, body):
    response = http.post("/predict", content=body, headers={"Content-Type": "application/vnd.apache.arrow.stream"})

    refused(response)
    assert response.status_code in (400, 422)
