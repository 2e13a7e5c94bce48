"""Local files that travel with a model: which ones, and whose code runs after loading."""

from __future__ import annotations

import copy
import importlib
import inspect
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import traceback
from pathlib import Path

import cloudpickle
import pytest

from nbdeploy.carried_code import collect, imported_by, imported_from
from nbdeploy.errors import SaveError


class Project:
    """A folder on ``sys.path``, as the notebook's is."""

    def __init__(self, folder):
        self.folder = folder

    def write(self, path, source):
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(source))
        importlib.invalidate_caches()
        return file

    def load(self, name):
        return importlib.import_module(name)

    def sources(self, *modules):
        return {path: file.read_bytes() for path, file in collect(modules).items()}

    def forget(self):
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", "")).startswith(str(self.folder)):
                del sys.modules[name]


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    made = Project(tmp_path)
    yield made
    made.forget()
    for name in [name for name in sys.modules if name.partition(".")[0] in {"features", "helpers", "helpers2"}]:
        del sys.modules[name]


def load(sources, reference, key="m:v1"):
    """Unpickle a reference ``module:name`` as a pickle of a model has it."""
    module, _, name = reference.partition(":")
    with imported_from(sources, key):
        return pickle.loads(f"c{module}\n{name}\n.".encode())


# What is collected


def test_a_local_module_and_all_it_imports_are_collected(project):
    project.write(
        "helpers.py", "import json, numpy as np\nimport helpers2\ndef f():\n    import lazy_one\n    return 1\n"
    )
    project.write("helpers2.py", "from features import dates\nfrom features.text import clean\n")
    project.write("lazy_one.py", "")
    project.write("features/__init__.py", "")
    project.write("features/dates.py", "from . import text\nfrom .deep.er import x\n")
    project.write(
        "features/text.py", "import os\ndef clean():\n    from .deep import er\n    from features import late\n"
    )
    project.write("features/late.py", "import importlib\nm = importlib.import_module('.named', __package__)\n")
    project.write("features/named.py", "")
    project.write("features/unused.py", "")
    project.write("features/deep/er.py", "x = 1\n")  # a folder without __init__.py
    local = {"features", "helpers", "helpers2", "lazy_one"}
    found = collect(["helpers", "numpy", "sklearn.linear_model", "builtins", "__main__", "nbdeploy.errors"])
    assert list(found) == [
        "features/__init__.py",
        "features/dates.py",
        "features/deep/er.py",
        "features/late.py",
        "features/named.py",
        "features/text.py",
        "helpers.py",
        "helpers2.py",
        "lazy_one.py",
    ]
    assert all(path.is_file() for path in found.values())
    assert not local & set(sys.modules), "nothing was imported"


def test_what_only_a_type_checker_imports_stays_behind(project):
    project.write("helpers.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import helpers2\n")
    project.write("helpers2.py", "")
    assert list(collect(["helpers"])) == ["helpers.py"]


def test_modules_that_import_each_other_are_collected_once(project):
    project.write("helpers.py", "import helpers2\n")
    project.write("helpers2.py", "def f():\n    import helpers\n")
    assert list(collect(["helpers", "helpers2"])) == ["helpers.py", "helpers2.py"]


def test_a_file_with_the_name_of_a_standard_module_is_the_users(project):
    project.write(
        "antigravity.py",
        "import calendar\nWHO = 'mine'\ndef who():\n    import antigravity\n    return antigravity.WHO\n",
    )
    sources = project.sources("antigravity")
    assert list(sources) == ["antigravity.py"]
    assert load(sources, "antigravity:who")() == "mine"


def test_installed_and_unknown_modules_are_passed_over():
    assert collect(["numpy.linalg", "pandas", "cloudpickle", "json", "sys", "no_such_module.at_all"]) == {}


def test_nothing_that_is_installed_is_taken_for_the_users():
    code = """
        import sys, warnings
        warnings.simplefilter("ignore")
        import IPython, ipykernel.kernelapp, pandas, pyarrow.parquet, scipy.stats, sklearn.ensemble
        try:
            import torch
        except ImportError:
            pass
        from nbdeploy.carried_code import collect
        print(collect(list(sys.modules)))
    """
    env = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, cwd="/", env=env
    )
    assert done.stdout == "{}\n"


def test_a_compiled_extension_is_refused_with_the_ways_out(project):
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    project.write("helpers.py", "import fastone\n")
    (project.folder / f"fastone{suffix}").write_bytes(b"\x7fELF")
    with pytest.raises(SaveError, match=r"fastone, a compiled extension.*Install it as a package, put its source"):
        collect(["helpers"])


def test_a_module_without_source_is_refused(project):
    file = project.write("helpers.py", "x = 1\n")
    import py_compile

    py_compile.compile(str(file), cfile=str(project.folder / "helpers.pyc"))
    file.unlink()
    importlib.invalidate_caches()
    with pytest.raises(SaveError, match=r"helpers, which has no \.py file"):
        collect(["helpers"])


def test_a_module_that_exists_only_in_memory_is_refused(monkeypatch):
    import types

    monkeypatch.setitem(sys.modules, "made_here", types.ModuleType("made_here"))
    with pytest.raises(SaveError, match="made_here, which has no file"):
        collect(["made_here"])


def test_a_folder_full_of_data_is_no_code(project, monkeypatch):
    project.write("helpers.py", "import helpers2\n")
    project.write("helpers2.py", "x = '" + "y" * 2000 + "'\n")
    monkeypatch.setattr("nbdeploy.carried_code.MAX_BYTES", 1000)
    with pytest.raises(SaveError, match=r"more than 0 MB, with helpers2\.py"):
        collect(["helpers"])


def test_what_an_editable_install_brings_is_its_own_but_scripts_in_its_folder_are_the_users(
    project, tmp_path, monkeypatch
):
    # In a fresh process, so that site-packages is one of ours.
    site = tmp_path / "lib" / "site-packages"
    info = site / "proj-1.0.dist-info"
    info.mkdir(parents=True)
    work = tmp_path / "work"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: proj\nVersion: 1.0\n")
    (info / "direct_url.json").write_text(f'{{"url": "{work.as_uri()}", "dir_info": {{"editable": true}}}}')
    (site / "proj.pth").write_text(f"{work / 'src'}\n{work}\n")
    for path in ("src/proj/__init__.py", "src/other/__init__.py", "notebooks/helpers.py", "script.py"):
        (work / path).parent.mkdir(parents=True, exist_ok=True)
        (work / path).write_text("x = 1\n")
    code = f"""
        import site, sys
        site.addsitedir({str(site)!r})
        sys.path.insert(0, {str(work / "notebooks")!r})
        import proj, other, helpers, script
        from nbdeploy.carried_code import collect
        print(*collect(["proj", "other", "helpers", "script"]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    assert done.stdout.split() == ["helpers.py", "script.py"]


def test_what_pip_put_into_a_target_folder_is_installed(project):
    project.write("bought/__init__.py", "")
    project.write("bought-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: bought\nVersion: 1.0\n")
    project.write("bought-1.0.dist-info/RECORD", "bought/__init__.py,,\n")
    project.write("helpers.py", "import bought\n")
    assert list(collect(["helpers"])) == ["helpers.py"]


def test_imports_within_a_function_of_the_notebook_are_known():
    def predict(rows):
        import helpers
        from features import dates as d

        def inner():
            import features.late

            return features.late

        return helpers, d, inner

    assert imported_by(predict.__code__) == {"helpers", "features", "features.dates", "features.late"}


# Edits since the import

BEFORE = """
    import dataclasses, functools
    LIMIT = 5
    STATE = None
    CALLS = 0

    def plain(x, k=3):
        "Says something."
        return x + k

    def counted(x):
        global CALLS
        CALLS += 1
        return x

    def decorate(f):
        @functools.wraps(f)
        def around(*a):
            return f(*a)
        return around

    class Clip:
        high = 10
        seen = 0

        @decorate
        def predict(self, X):
            Clip.seen += 1
            return [min(x, self.high) for x in X]

        @property
        def top(self):
            return (lambda: self.high)()

        @staticmethod
        def fixed():
            return {1, 2}

    @dataclasses.dataclass
    class Point:
        x: int = 0

        def far(self):
            return self.x > 1.0
"""


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("return x + k", "return x - k", "plain"),
        ("min(x, self.high)", "max(x, self.high)", "predict"),
        ("(lambda: self.high)()", "(lambda: self.high + 1)()", "top"),
        ("{1, 2}", "{1, 3}", "fixed"),
        ("self.x > 1.0", "self.x > 1", "far"),
        ("def fixed", "def other", "no longer defines Clip.fixed"),
        ("LIMIT = 5", "LIMIT = 7", "LIMIT is 7 there and 5 in the kernel"),
        ("high = 10", "high = 11", r"Clip\.high is 11"),
        ("k=3", "k=4", "defaults of plain"),
        ("x: int = 0", "x: int = 9", "imported"),
        ("return x\n", "return x +\n", "not valid Python"),
    ],
)
def test_a_file_that_was_edited_after_its_import_is_refused(project, old, new, what):
    source = textwrap.dedent(BEFORE)
    file = project.write("helpers.py", source)
    project.load("helpers")
    assert list(collect(["helpers"])) == ["helpers.py"]
    assert old in source
    file.write_text(source.replace(old, new))
    os.utime(file, (2_000_000_000, 2_000_000_000))
    with pytest.raises(SaveError, match=rf"helpers\.py was edited after it was imported: .*{what}.*importlib\.reload"):
        collect(["helpers"])


def test_comments_docstrings_counters_and_late_values_are_no_edit(project):
    source = textwrap.dedent(BEFORE)
    file = project.write("helpers.py", source)
    helpers = project.load("helpers")
    helpers.counted(1)
    helpers.Clip().predict([1])
    helpers.STATE = 3
    edited = source.replace("Says something.", "Says else.").replace(
        "    return x + k", "\n    # sum\n    return x + k"
    )
    file.write_text("# A comment.\n\n" + edited)
    assert list(collect(["helpers"])) == ["helpers.py"]


def test_a_reloaded_module_is_no_edit(project):
    file = project.write("helpers.py", "def f():\n    return 1\n")
    helpers = project.load("helpers")
    file.write_text("def f():\n    return 22\n")
    with pytest.raises(SaveError, match="edited"):
        collect(["helpers"])
    importlib.reload(helpers)
    assert list(collect(["helpers"])) == ["helpers.py"]


# What runs after loading

VERSION = """
    import dataclasses, enum, sys
    import helpers2
    import numpy as np
    import features.dates as d
    from features import dates, text
    from features.dates import DAY as day

    class Base:
        def __init__(self):
            self.own = {n}

    class Clip(Base):
        def __init__(self):
            super().__init__()

        def predict(self, X):
            return np.asarray(X) * 0 + {n}

        def lazy(self):
            import helpers2 as h
            import features.late
            from features import late
            from features.late import VALUE
            return h.N, features.late.VALUE, late.VALUE, VALUE, features.dates.DAY

        def itself(self):
            return sys.modules[__name__].N, type(self) is sys.modules[type(self).__module__].Clip

        def fail(self):
            raise ValueError("here {n}")

    N = {n}

    @dataclasses.dataclass
    class Point:
        x: "int" = {n}

    class Color(enum.Enum):
        RED = {n}
"""


def version(project, n):
    project.forget()
    project.write("helpers.py", VERSION.replace("{n}", str(n)))
    project.write("helpers2.py", f"N = {n}\n")
    project.write("features/__init__.py", "from . import text\nfrom .dates import DAY\n")
    project.write("features/dates.py", f"from .text import base\nDAY = base() + {n}\n")
    project.write("features/text.py", "def base():\n    from . import zero\n    return zero.ZERO\n")
    project.write("features/zero.py", "ZERO = 0\n")
    project.write("features/late.py", f"from . import dates\nfrom features.dates import DAY\nVALUE = {n}\n")
    return project.sources("helpers")


@pytest.fixture
def both(project, monkeypatch):
    """Two versions of the same files, with their folder no longer on ``sys.path``."""
    one, two = version(project, 1), version(project, 2)
    assert len(one) == 7
    assert one != two
    project.forget()
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(project.folder)])
    return one, two


def test_two_versions_of_one_file_answer_each_with_its_own(both):
    one, two = (load(sources, "helpers:Clip", f"m:v{n}") for n, sources in enumerate(both, 1))
    for n, cls in ((1, one), (2, two), (1, one)):
        clip = cls()
        assert clip.own == n
        assert clip.predict([5, 6]).tolist() == [n, n]
        assert clip.lazy() == (n, n, n, n, n)
        assert clip.itself() == (n, True)
    assert "helpers" not in sys.modules
    assert not [name for name in sys.modules if name.partition(".")[0] == "features"]


def test_the_same_files_loaded_twice_are_one_set_of_modules(both):
    assert load(both[0], "helpers:Clip") is load(both[0], "helpers:Clip")
    assert load(both[0], "helpers:Clip") is not load(both[0], "helpers:Clip", "m:v2")


def test_the_kernels_own_module_comes_back(both, project, monkeypatch):
    monkeypatch.syspath_prepend(str(project.folder))
    mine = project.load("helpers")
    features = sys.modules["features"]
    path = list(sys.meta_path)
    with imported_from(both[0], "m:v9"):
        assert importlib.import_module("helpers").N == 1
        assert importlib.import_module("features.dates") is not features.dates
    assert sys.modules["helpers"] is mine
    assert mine.N == 2
    assert sys.modules["features"] is features
    assert load(both[0], "helpers:Clip", "m:v9")().lazy() == (1, 1, 1, 1, 1)
    assert [finder for finder in sys.meta_path if finder not in path][1:] == [], "only the version's own finder stays"


def test_after_a_failure_all_is_as_it_was(both, project, monkeypatch):
    monkeypatch.syspath_prepend(str(project.folder))
    mine = project.load("helpers")
    with pytest.raises(ZeroDivisionError), imported_from({"helpers.py": b"1 / 0"}, "m:v1"):
        import helpers  # noqa: F401
    assert sys.modules["helpers"] is mine
    import builtins

    assert vars(cloudpickle.cloudpickle)["__builtins__"]["__import__"] is builtins.__import__


def test_carried_classes_are_whole(both):
    one, two = (load(sources, "helpers:Point", f"m:v{n}") for n, sources in enumerate(both, 1))
    assert (one(), two().x) == (one(x=1), 2)
    assert one() != two()
    colors = [load(sources, "helpers:Color", f"m:v{n}") for n, sources in enumerate(both, 1)]
    assert [color.RED.value for color in colors] == [1, 2]
    assert colors[0].RED is not colors[1].RED
    import typing

    assert typing.get_type_hints(one) == {"x": int}


def test_instances_can_be_copied_and_pickled_in_this_process(both):
    for n, sources in enumerate(both, 1):
        point, color = (load(sources, f"helpers:{name}", f"m:v{n}") for name in ("Point", "Color"))
        again = pickle.loads(pickle.dumps([point(), color.RED]))
        assert again == [point(), color.RED]
        assert type(again[0]) is point
        assert copy.deepcopy(point(7)) == point(7)


def test_cloudpickle_takes_a_carried_class_along_to_a_fresh_process(both):
    clip = load(both[1], "helpers:Clip", "m:v2")()
    data = cloudpickle.dumps(clip)
    code = "import pickle, sys; m = pickle.loads(sys.stdin.buffer.read()); print(m.predict([5]).tolist(), m.own)"
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=False, cwd="/")
    assert done.stdout.decode().split() == ["[2]", "2"], done.stderr.decode()


def test_source_and_tracebacks_show_what_runs(both):
    cls = load(both[1], "helpers:Clip", "shown:v2")
    assert inspect.getsource(cls).startswith("class Clip(Base):")
    assert "* 0 + 2" in inspect.getsource(cls.predict)
    assert inspect.getsourcefile(cls) == "<shown:v2>/helpers.py"
    try:
        cls().fail()
    except ValueError:
        text = traceback.format_exc()
    assert 'File "<shown:v2>/helpers.py"' in text
    assert 'raise ValueError("here 2")' in text
    import linecache

    linecache.checkcache()
    assert "* 0 + 2" in inspect.getsource(cls.predict)


def test_other_files_under_the_same_key_show_their_own_source(both):
    one, two = (load(sources, "helpers:Clip", "same:v1") for sources in both)
    assert "* 0 + 1" in inspect.getsource(one.predict)
    assert "* 0 + 2" in inspect.getsource(two.predict)


def test_the_bytes_that_were_handed_over_run_not_the_disk(project):
    project.write("helpers.py", "N = 'disk'\ndef get():\n    import helpers2\n    return N, helpers2.N\n")
    project.write("helpers2.py", "N = 'disk'\n")
    sources = {
        "helpers.py": b"N = 'bytes'\ndef get():\n    import helpers2\n    return N, helpers2.N\n",
        "helpers2.py": b"N = 'bytes'\n",
    }
    assert load(sources, "helpers:get")() == ("bytes", "bytes")
    assert project.load("helpers").get() == ("disk", "disk")


def test_functions_of_the_notebook_import_carried_modules_when_they_are_called(both):
    main = sys.modules["__main__"]
    space = {"__name__": "__main__", "__builtins__": __builtins__}
    exec("def answer():\n    import helpers2\n    from features import late\n    return helpers2.N, late.VALUE", space)
    vars(main)["answer"] = space["answer"]
    try:
        data = cloudpickle.dumps(space["answer"])
    finally:
        del vars(main)["answer"]
    answers = []
    for n, sources in enumerate(both, 1):
        with imported_from(sources, f"m:v{n}"):
            answers.append(pickle.loads(data))
    assert [answer() for answer in answers] == [(1, 1), (2, 2)]


def test_a_class_of_the_notebook_that_was_changed_between_two_versions_changes_neither(monkeypatch):
    space = {"__name__": "__main__"}
    exec("class Noted:\n    def predict(self):\n        return 1\ndef other(self):\n    return 2", space)
    cls = space["Noted"]
    monkeypatch.setattr(sys.modules["__main__"], "Noted", cls, raising=False)
    pickles = [cloudpickle.dumps(cls())]
    cls.predict = space["other"]
    pickles.append(cloudpickle.dumps(cls()))
    loaded = []
    for n, data in enumerate(pickles):
        with imported_from({}, f"m:v{n}"):
            loaded.append(pickle.loads(data))
    cls.predict = None
    assert [one.predict() for one in loaded] == [1, 2]


def test_a_data_file_beside_a_carried_module_is_not_found():
    source = b"""
from pathlib import Path
FILE = __file__
def read():
    return (Path(__file__).parent / "table.csv").read_text()
def pkg():
    import pkgutil
    return pkgutil.get_data(__name__, "table.csv")
"""
    read, file, pkg = (load({"helpers.py": source}, f"helpers:{name}", "data:v1") for name in ("read", "FILE", "pkg"))
    assert file == "<data:v1>/helpers.py"
    with pytest.raises(FileNotFoundError, match=r"<data:v1>/table\.csv"):
        read()
    with pytest.raises(FileNotFoundError, match=r"\.py files only"):
        pkg()


def test_a_module_that_was_not_carried_is_named(both):
    sources = {**both[0], "helpers3.py": b"def f():\n    import features.gone\n"}
    with pytest.raises(
        ModuleNotFoundError, match=r"No module named 'features.gone': m:v1 carries 'features' without it"
    ):
        load(sources, "helpers3:f")()


def test_a_folder_without_init_is_shared_with_others(project):
    project.write("shared_space/theirs.py", "WHO = 'disk'\n")
    sources = {
        "shared_space/ours.py": b"WHO = 'carried'\n",
        "helpers.py": b"def f():\n    import shared_space.theirs as t\n    from shared_space import ours\n"
        b"    return t.WHO, ours.WHO\n",
    }
    assert load(sources, "helpers:f")() == ("disk", "carried")


def test_other_encodings_and_newlines_are_read_as_python_does(project):
    sources = {
        "helpers.py": "# -*- coding: latin-1 -*-\r\nWORD = 'Grün'\r\ndef f():\r\n    return WORD\r\n".encode("latin-1")
    }
    f = load(sources, "helpers:f")
    assert f() == "Grün"
    assert inspect.getsource(f) == "def f():\n    return WORD\n"


@pytest.mark.parametrize(
    "path", ["../helpers.py", "/etc/helpers.py", "helpers.txt", "a//b.py", "a b.py", ".py", "a\\b.py"]
)
def test_only_paths_of_modules_are_taken(path):
    with pytest.raises(SaveError, match="not the path of a Python module"), imported_from({path: b""}, "m:v1"):
        pass


def test_threads_load_and_call_different_versions_at_once(both):
    wrong = []

    def work(n):
        for _ in range(20):
            clip = load(both[n - 1], "helpers:Clip", f"m:v{n}")()
            if clip.lazy() != (n,) * 5 or clip.own != n:
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in (1, 2, 1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_no_sources_change_nothing():
    before = list(sys.meta_path)
    with imported_from({}, "m:v1"):
        assert sys.meta_path == before


def test_a_whole_model_goes_from_one_process_to_another(project):
    project.write(
        "helpers.py", "import features.steps\ndef double(X):\n    from features import late\n    return X * late.TWO\n"
    )
    project.write("features/__init__.py", "")
    project.write("features/steps.py", "class Add:\n    def __init__(self, n):\n        self.n = n\n")
    project.write("features/late.py", "TWO = 2\n")
    save = """
        import cloudpickle, json, sys
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import FunctionTransformer
        import helpers
        from features.steps import Add
        from nbdeploy.carried_code import collect, imported_by

        class Model:
            def __init__(self):
                self.first, self.added = make_pipeline(FunctionTransformer(helpers.double)), Add(1)
            def predict(self, X):
                from features.late import TWO
                return self.first.transform(X) + self.added.n * TWO

        named = {"helpers", "features.steps", "sklearn.pipeline", *imported_by(Model.predict.__code__)}
        files = {path: file.read_text() for path, file in collect(named).items()}
        print(json.dumps([files, cloudpickle.dumps(Model()).hex()]))
    """
    env = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(save)], capture_output=True, check=True, cwd=project.folder, env=env
    )
    load = """
        import json, pickle, sys
        import numpy as np
        from nbdeploy.carried_code import imported_from
        files, data = json.load(sys.stdin)
        with imported_from({path: text.encode() for path, text in files.items()}, "m:v1"):
            model = pickle.loads(bytes.fromhex(data))
        print(model.predict(np.array([[5.0]])).tolist(), sorted(files))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(load)],
        input=done.stdout,
        capture_output=True,
        check=True,
        cwd="/",
        env=env,
    )
    assert done.stdout.decode().startswith("[[12.0]] ['features/__init__.py', 'features/late.py', 'features/steps.py'")
