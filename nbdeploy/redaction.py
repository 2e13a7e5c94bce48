"""Source code without the secrets that were typed into it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

HIDDEN = "***"
# Words of a name, of an option or of an environment variable: DB_PASSWORD, api_key, authToken.
SECRET_NAME = re.compile(
    r"passw(or)?d|passwd|passphrase|pwd|secret|token(?!i[sz])|credential|api_?key|access_?key|private_?key|account_?key"
    r"|auth(?!or(?!iz))|bearer|cookie|conn(ection)?_?str|dsn|signature_?key|salt|(^|_)(key|pass|pw|sas)$",
    re.IGNORECASE,
)
# What gives itself away, wherever it stands.
KNOWN_FORMS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|\b(AKIA|ASIA|AROA|AIDA)[0-9A-Z]{16}\b"
    r"|\b(ghp|gho|ghu|ghs|ghr)_[0-9A-Za-z]{20,}|\bgithub_pat_[0-9A-Za-z_]{20,}|\bglpat-[0-9A-Za-z_-]{16,}"
    r"|\bhf_[0-9A-Za-z]{20,}|\bsk-[0-9A-Za-z_-]{16,}|\bpypi-[0-9A-Za-z_-]{32,}|\bdapi[0-9a-f]{32}\b"
    r"|\b(sk|rk|pk)_(live|test)_[0-9A-Za-z]{16,}"
    r"|\bxox[abeoprs]-[0-9A-Za-z-]{10,}|\bAIza[0-9A-Za-z_-]{30,}|\beyJ[0-9A-Za-z_-]{10,}\.[0-9A-Za-z_.-]{10,}",
    re.DOTALL,
)
# Every repetition is bounded: a cell may hold a megabyte without a space.
IN_URL = re.compile(r"(?<=://)[^\s/@:'\"]{0,200}:[^\s/@'\"]{1,500}(?=@)")
MAGIC = re.compile(
    r"^(\s*(?:%(?:set_)?env\s+|[!%]*\s*(?:export|set)\s+)\w{1,80}\s*[= ]\s*)\S.*$"  # %env TOKEN=..., !export TOKEN=...
    r"|((?<![\w-])[\w-]{0,60}?(?:password|passwd|token|secret|api[-_]?key)[\w-]{0,60}[ =:]\s{0,8})"
    r"(?=[^\s=])(?![\"']?\*\*\*)\S+",
    re.IGNORECASE,
)
# Where Python does not parse: name = "..." and "name": "...".
ASSIGNED = re.compile(
    r"""((?:environ\[\s{0,4}["'])?(?<!\w)(\w{1,80})["']?\s{0,4}\]?\s{0,4}(?::\s{0,4}\w{1,40}\s{0,4})?[=:]\s{0,4}[rbfu]{0,2})"""
    r"""(\"\"\".*?(?:\"\"\"|\Z)|'''.*?(?:'''|\Z)|"(?:\\.|[^"\\\n])*(?:["\n]|\Z)|'(?:\\.|[^'\\\n])*(?:['\n]|\Z))""",
    re.DOTALL | re.IGNORECASE,
)


def without_secrets(source: str) -> str:
    """`source` with ``***`` for literals that are given to what is named like a password, a token or a key.

    Also for all that is put into ``os.environ``, for passwords in URLs, and for tokens of known forms anywhere. A
    secret under a harmless name and of no known form cannot be told from a word.
    """
    python = re.sub(r"(?m)^(?=[%!?])", "#", source)
    is_magic = source.startswith("%%")
    try:
        if "\r" in source:
            raise ValueError  # noqa: TRY301  Python and we would count other lines
        tree = ast.parse(python)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        source = ASSIGNED.sub(_if_secret, source)
    else:
        source = _blanked(python, list(_secret_literals(tree)))
        source = re.sub(r"(?m)^#(?=[%!?])", "", source)
    source = "\n".join(_magic(line, is_magic) for line in source.split("\n"))
    return IN_URL.sub(f"{HIDDEN}:{HIDDEN}", KNOWN_FORMS.sub(HIDDEN, source))


def _magic(line: str, is_magic: bool) -> str:
    is_magic = is_magic or line.lstrip().startswith(("%", "!")) or re.match(r"\s*\w+\s*=\s*[!%]", line) is not None
    return MAGIC.sub(lambda found: f"{found[1] or found[2]}{HIDDEN}", line) if is_magic else line


def _if_secret(found: re.Match[str]) -> str:
    if not (SECRET_NAME.search(found[2]) or "environ" in found[1]):
        return found[0]
    end = "\n" if found[3].endswith("\n") else ""
    return f'{found[1]}"{HIDDEN}"{end}'


def _secret_literals(tree: ast.AST) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        for name, value in _given(node):
            if value is not None and (name == "environ" or SECRET_NAME.search(name)):
                yield from _literals(value)


def _given(node: ast.AST) -> Iterator[tuple[str, ast.expr | None]]:
    """Names, and what is given to them."""
    if isinstance(node, ast.Assign):
        for target in node.targets:
            yield from _to(target, node.value)
    elif isinstance(node, (ast.AnnAssign, ast.AugAssign, ast.NamedExpr)):
        yield from _to(node.target, node.value)
    elif isinstance(node, ast.keyword):
        yield node.arg or "", node.value
    elif isinstance(node, ast.Dict):
        yield from ((_text(key), value) for key, value in zip(node.keys, node.values, strict=True))
    elif isinstance(node, ast.Compare):
        yield from ((_named(node.left), value) for value in node.comparators)
    elif isinstance(node, ast.arguments):
        both = [*node.posonlyargs, *node.args]
        yield from zip((arg.arg for arg in both[len(both) - len(node.defaults) :]), node.defaults, strict=True)
        yield from ((arg.arg, value) for arg, value in zip(node.kwonlyargs, node.kw_defaults, strict=True))
    elif isinstance(node, ast.Call):
        yield from _to_call(node)


def _to(target: ast.expr, value: ast.expr | None) -> Iterator[tuple[str, ast.expr | None]]:
    if isinstance(target, (ast.Tuple, ast.List)):
        if isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(target.elts):
            for one, its in zip(target.elts, value.elts, strict=True):
                yield from _to(one, its)
        else:
            yield from ((_named(one), value) for one in target.elts)
    elif isinstance(target, ast.Subscript) and _named(target.value) == "environ":
        yield "environ", value
    else:
        yield _named(target), value


def _to_call(node: ast.Call) -> Iterator[tuple[str, ast.expr | None]]:
    called = _named(node.func)
    of = _named(node.func.value) if isinstance(node.func, ast.Attribute) else ""
    if called == "putenv" or (of == "environ" and called == "setdefault"):
        yield from (("environ", value) for value in node.args[1:])
    elif of == "environ" and called == "update":
        values = [keyword.value for keyword in node.keywords]
        values += [value for arg in node.args if isinstance(arg, ast.Dict) for value in arg.values]
        yield from (("environ", value) for value in values)
    elif len(node.args) > 1:  # setattr(x, "password", "..."), environ.get("TOKEN", "..."), Header("X-Token", "...")
        for before, value in zip(node.args, node.args[1:], strict=False):
            yield _text(before), value
    if node.args and SECRET_NAME.search(called):  # login_token("..."), HTTPBasicAuth("...", "...")
        yield from ((called, value) for value in node.args)


def _named(node: ast.AST | None) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    return _text(node.slice) if isinstance(node, ast.Subscript) else ""


def _text(node: ast.AST | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _literals(value: ast.expr) -> Iterator[ast.expr]:
    """The outermost literals of strings and bytes within an expression."""
    waiting: list[ast.AST] = [value]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes))):
            yield node
        elif not isinstance(node, (ast.Lambda, ast.Subscript)):  # os.environ["TOKEN"] names one and holds none
            waiting += ast.iter_child_nodes(node)


def _blanked(source: str, nodes: list[ast.expr]) -> str:
    lines = source.encode().split(b"\n")  # columns are counted in bytes of UTF-8
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)
    data = b"\n".join(lines)
    spans = {
        (starts[n.lineno - 1] + n.col_offset, starts[(n.end_lineno or 1) - 1] + (n.end_col_offset or 0)) for n in nodes
    }
    kept, end = b"", 0
    for start, stop in sorted(spans):
        if start >= end:  # else it is within one that is blanked already
            kept += data[end:start] + f'"{HIDDEN}"'.encode()
            end = stop
    return (kept + data[end:]).decode()
