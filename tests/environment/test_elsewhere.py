"""Calls on nodes that share nothing with their client: no disk, no network, no virtual environment, no home."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from tests.environment.conftest import Elsewhere
from tests.environment.lab import install, make_wheel, run, uv

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")]


def test_a_call_imports_modules_that_lie_beside_its_script(elsewhere: Elsewhere):
    found = elsewhere.run(
        """
        import helper

        def call(x):
            import later
            return [helper.double(x), later.WORD, os.path.exists(path), sys.prefix]

        path = __file__
        result = burla.remote_parallel_map(call, [1, 2])
        """,
        helper="def double(x): return 2 * x",
        later="from behind import WORD",
        behind="WORD = 'here'",
    )
    assert isinstance(found, list)
    assert [one[:3] for one in found] == [[2, "here", False], [4, "here", False]]
    assert str(elsewhere.machine.folder) in found[0][3], "an environment of the function's own, not the node's"


def test_nothing_of_the_nodes_own_packages_can_be_imported(elsewhere: Elsewhere):
    assert elsewhere.run(
        """
        def call(name):
            import importlib.util
            return importlib.util.find_spec(name) is not None

        result = burla.remote_parallel_map(call, ["distributed", "tornado", "psutil", "cloudpickle", "burla"])
        """
    ) == [False, False, False, True, True]


def test_a_module_that_was_edited_is_the_new_one_in_the_next_call(elsewhere: Elsewhere):
    assert elsewhere.run(
        """
        from pathlib import Path
        import changing
        def call(x):
            return changing.value()
        first = burla.remote_parallel_map(call, [0])
        Path(changing.__file__).write_text("def value(): return 'new'")
        result = first + burla.remote_parallel_map(call, [0])
        """,
        changing="def value(): return 'old'",
    ) == ["old", "new"]


def test_packages_and_their_data_travel_whole_and_a_call_starts_in_a_folder_of_its_own(elsewhere: Elsewhere):
    package = elsewhere.project / "carried"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("from .deep import found")
    (package / "deep" / "__init__.py").write_text(
        "from pathlib import Path\ndef found(): return Path(__file__).with_name('data.txt').read_text()"
    )
    (package / "deep" / "data.txt").write_text("data")
    assert (
        elsewhere.run(
            """
        import carried
        def call(x):
            with open("written", "x"):
                pass
            return carried.found(), os.getcwd() != here
        here = os.getcwd()
        result = [burla.remote_parallel_map(call, [0]) for _ in range(2)]
        """
        )
        == [[["data", True]]] * 2
    )


@pytest.mark.parametrize("backend", ["hatchling", "setuptools"])  # a .pth file, and a finder
def test_an_editable_installation_is_sent_as_source_with_its_version(elsewhere: Elsewhere, backend: str):
    project = elsewhere.folder / "client" / f"{backend}_project"
    module = f"edited_{backend}"
    (project / module).mkdir(parents=True)
    (project / module / "__init__.py").write_text("WORD = 'edited'")
    build = "hatchling.build" if backend == "hatchling" else "setuptools.build_meta"
    (project / "pyproject.toml").write_text(
        textwrap.dedent(f"""
        [build-system]
        requires = ["{backend}"]
        build-backend = "{build}"
        [project]
        name = "{module}"
        version = "4.5"
        """)
    )
    install(elsewhere.client, "--editable", str(project))
    try:
        assert elsewhere.run(
            f"""
            def call(x):
                import importlib.metadata, {module}
                return {module}.WORD, importlib.metadata.version("{module}")
            result = burla.remote_parallel_map(call, [0])
            """
        ) == [["edited", "4.5"]]
        assert not any(module.replace("_", "-") in path for path in elsewhere.index.asked)
    finally:
        run(uv(), "pip", "uninstall", "--quiet", "--python", str(elsewhere.client), module)


def test_what_is_installed_here_is_installed_there_also_what_nothing_imports_by_name(elsewhere: Elsewhere):
    folder = elsewhere.index.folder
    make_wheel(
        folder, "front", {"front.py": "import importlib\ndef go(): return importlib.import_module('ba' + 'ck').WORD"}
    )
    make_wheel(folder, "back", {"back.py": "WORD = 'back'"}, version="2.0")
    make_wheel(folder, "back", {"back.py": "WORD = 'newer'"}, version="3.0")
    source = """
        import front
        def call(x):
            return front.go()
        result = burla.remote_parallel_map(call, [0])
        """
    with elsewhere.installed("front", "back==2.0"):
        assert elsewhere.run(source) == ["back"]
        elsewhere.index.asked.clear()
        assert elsewhere.run(source) == ["back"]
        assert elsewhere.index.asked == [], "an environment that is there needs no index"


def test_a_local_wheel_is_sent_as_it_is_and_no_index_is_asked_for_its_name(elsewhere: Elsewhere, tmp_path: Path):
    make_wheel(elsewhere.index.folder, "taken", {"taken.py": "WHO = 'somebody else'"})
    mine = make_wheel(tmp_path, "taken", {"taken.py": "WHO = 'mine'"})
    source = """
        def call(x):
            import taken
            return taken.WHO
        result = burla.remote_parallel_map(call, [0])
        """
    with elsewhere.installed(mine):
        elsewhere.index.asked.clear()
        mine.unlink()  # then it is made of what is installed
        assert elsewhere.run(source) == ["mine"]
        assert not any("taken" in path for path in elsewhere.index.asked)


def test_another_project_of_the_same_name_on_the_index_is_not_used(elsewhere: Elsewhere, tmp_path: Path):
    make_wheel(elsewhere.index.folder, "squatted", {"squatted.py": "WHO = 'somebody else'"})
    make_wheel(tmp_path, "squatted", {"squatted.py": "WHO = 'mine'"})
    with elsewhere.installed("squatted", find=tmp_path):
        done = elsewhere.start(
            """
            def call(x):
                import squatted
                return squatted.WHO
            result = burla.remote_parallel_map(call, [0])
            """
        )
    assert "EnvironmentFailed" in done.stderr and "squatted: the index of the node has another project" in done.stderr
    assert "somebody else" not in done.stdout


def test_what_has_no_wheel_is_named_and_stops_only_who_imports_it(elsewhere: Elsewhere, tmp_path: Path):
    make_wheel(tmp_path, "rare", {"rare.py": "WORD = 'rare'"}, version="7.1")
    with elsewhere.installed("rare", find=tmp_path):
        beside = elsewhere.start(
            """
            def call(name):
                return 1 if name is None else __import__(name).WORD
            result = burla.remote_parallel_map(call, [None])
            try:
                burla.remote_parallel_map(call, ["rare"])
            except ModuleNotFoundError as error:
                result.append(str(error))
            """
        )
        needing = elsewhere.start(
            """
            def call(x):
                import rare
            result = burla.remote_parallel_map(call, [0])
            """
        )
    assert "not installed on the nodes, because no wheel was found for them there: rare 7.1" in beside.stderr
    assert beside.stdout.startswith("[1, \"No module named 'rare': rare 7.1 could not be installed on this node: ")
    assert needing.returncode and "burla.errors.EnvironmentFailed: the function needs packages" in needing.stderr
    assert "rare was not found" in needing.stderr, "what the installer said"


def test_a_file_or_variable_that_is_only_here_is_said_to_be(elsewhere: Elsewhere):
    (elsewhere.project / "data.csv").write_text("1")
    elsewhere.environ["ONLY_HERE"] = "1"
    found = elsewhere.run(
        """
        def call(what):
            return os.environ[what] if what.isupper() else open(what).read()
        result = []
        for what in ("data.csv", "nowhere.csv", "ONLY_HERE", "NOWHERE"):
            try:
                burla.remote_parallel_map(call, [what])
            except (FileNotFoundError, KeyError) as error:
                result.append(error.__notes__[1:])
        """
    )
    del elsewhere.environ["ONLY_HERE"]
    assert isinstance(found, list)
    file, no_file, variable, no_variable = found
    assert len(file) == 1 and "'data.csv' exists here" in file[0]
    assert len(variable) == 1 and "ONLY_HERE is set here" in variable[0] and "env_vars" in variable[0]
    assert no_file == no_variable == []


def test_packages_and_variables_that_are_named_reach_the_calls_and_calls_within_them(elsewhere: Elsewhere):
    make_wheel(elsewhere.index.folder, "named", {"named.py": "import base\nWORD = base.WORD"}, requires=("base>=1",))
    make_wheel(elsewhere.index.folder, "base", {"base.py": "WORD = 'named'"})
    assert elsewhere.run(
        """
        import helper
        burla.configure(packages=["named"], env_vars={"GREETING": "hello"})
        def call(x):
            import named
            def inner(y):
                return helper.shout(os.environ["GREETING"])
            return named.WORD, os.environ["GREETING"], burla.remote_parallel_map(inner, [0])
        first = burla.remote_parallel_map(call, [0])
        def other(x):
            return os.environ["GREETING"] + os.environ["ALSO"]
        result = first + burla.submit(other, [0], env_vars={"ALSO": "there"}).results()
        """,
        helper="def shout(text): return text.upper()",
    ) == [["named", "hello", ["HELLO"]], "hellothere"]


def test_a_corrected_function_is_retried_with_what_it_needs_now(elsewhere: Elsewhere):
    assert elsewhere.run(
        """
        from pathlib import Path
        import fixable
        job = burla.submit(fixable.call, [1, 2], on_error="continue")
        job.wait()
        Path(fixable.__file__).write_text("def call(x): return 10 * x")
        again = job.retry_failed()
        again.wait()
        result = [job.status, again.status, job.retry_failed(fixable.call).results()]
        """,
        fixable="def call(x): return 1 // (x - x)",
    ) == ["failed", "failed", [10, 20]]


def test_an_unknown_package_says_what_the_installer_said(elsewhere: Elsewhere):
    done = elsewhere.start(
        """
        burla.configure(packages=["no-such-package"])
        result = burla.remote_parallel_map(abs, [0])
        """
    )
    assert "EnvironmentFailed: packages=['no-such-package'] cannot be installed" in done.stderr
    assert "no-such-package was not found" in done.stderr
