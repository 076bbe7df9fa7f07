"""The package as it is installed: what importing it costs, what it exports, documents and ships."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import unspoken
from unspoken import cachefile, errors
from unspoken.cachefile.schema import schema

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "code" / "unspoken"
MODULES = sorted(PACKAGE.rglob("*.py"))
Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _name(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT / "docs")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_the_import_root_does_not_hide_the_standard_librarys_code() -> None:
    assert not (ROOT / "code" / "__init__.py").exists()
    assert [path.name for path in (ROOT / "code").iterdir() if path.is_dir() and path.suffix != ".egg-info"] == [
        "unspoken"
    ]
    assert _python("import code, unspoken; print(hasattr(code, 'InteractiveConsole'))") == "True"


def test_tests_are_no_packages() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


@pytest.mark.parametrize("module", ["unspoken", "unspoken.cli", "unspoken.errors", "unspoken.cachefile.header"])
def test_importing_loads_neither_torch_nor_numpy(module: str) -> None:
    code = f"import sys, {module}; print([name for name in ('torch', 'numpy', 'transformers') if name in sys.modules])"
    assert _python(code) == "[]"


def test_importing_everything_does_nothing_but_import() -> None:
    modules = [
        ".".join(("unspoken", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        for path in MODULES
        # The last is loaded by lm-evaluation-harness alone, whose import sets variables of the environment.
        if path.name not in ("__main__.py", "lm_eval_model.py")
    ]
    code = (
        "import importlib, logging, os, signal, sys, warnings\n"
        "import torch\n"
        "def state(): return (dict(os.environ), logging.root.level, logging.root.handlers[:], sys.excepthook,"
        " sys.path[:], warnings.filters[:], signal.getsignal(signal.SIGINT), torch.get_num_threads(),"
        " torch.initial_seed())\n"
        "before = state()\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(state() == before)\n"
    )
    assert _python(code) == "True"


def test_what_is_exported_is_there() -> None:
    assert dir(unspoken) == sorted(unspoken.__all__)
    for name in unspoken.__all__:
        assert getattr(unspoken, name) is not None
    assert set(unspoken.__all__) == {*unspoken._HOMES, "__version__"}
    scope: dict[str, object] = {}
    exec("from unspoken import *", scope)  # noqa: S102
    assert scope.keys() - {"__builtins__"} == set(unspoken.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        unspoken.nothing  # noqa: B018


def test_type_checkers_see_what_is_exported() -> None:
    (block,) = (node for node in ast.parse((PACKAGE / "__init__.py").read_text()).body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == unspoken._HOMES


def test_the_modules_of_files_and_errors_export_what_is_there() -> None:
    for name in cachefile.__all__:
        assert getattr(cachefile, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        cachefile.nothing  # noqa: B018


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_everything_public_is_documented(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    missing = [name for name, node in _public(tree) if not ast.get_docstring(node)]
    assert ast.get_docstring(tree), f"{_name(path)} has no docstring"
    assert missing == []


def _public(tree: ast.Module | ast.ClassDef, within: str = "") -> Iterator[tuple[str, Documented]]:
    for node in tree.body:
        if isinstance(node, Documented) and not node.name.startswith("_"):
            yield f"{within}{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from _public(node, f"{node.name}.")


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 350
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    long = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert {name: lines for name, lines in long.items() if lines > 80} == {}


def _errors() -> list[type[errors.UnspokenError]]:
    return [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.UnspokenError)]


def test_every_error_has_a_section() -> None:
    lines = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8").splitlines()
    headings = {line.strip("# `") for line in lines if line.startswith("#")}
    names = {each.__name__ for each in _errors()}
    assert names <= headings
    assert all(each.__name__ in (errors.__doc__ or "") for each in _errors())


@pytest.mark.parametrize("kind", _errors(), ids=lambda kind: kind.__name__)
def test_every_error_says_what_and_what_to_do(kind: type[errors.UnspokenError]) -> None:
    error = kind("It is broken.", "Mend it.")
    assert (error.problem, error.hint, str(error)) == ("It is broken.", "Mend it.", "It is broken. Mend it.")
    assert kind.__doc__


def test_the_schema_in_the_docs_is_the_manifests_own() -> None:
    assert (ROOT / "docs" / "manifest.schema.json").read_text(encoding="utf-8") == schema()
    assert _python("from unspoken.cachefile.schema import schema; print(schema(), end='')") == schema().strip()


def test_a_manifest_fits_its_schema_and_a_changed_one_does_not(tmp_path: Path) -> None:
    import jsonschema

    from unspoken.cachefile import peek, write_cache
    from unspoken.engines.fake import FakeEngine
    from unspoken.engines.protocol import Piece, Prompt

    write_cache(FakeEngine().prefill(Prompt((Piece("content", (65, 66)),))), tmp_path / "a.kv")
    header = (tmp_path / "a.kv").read_bytes()[8 : peek(tmp_path / "a.kv").header_bytes]
    manifest = json.loads(json.loads(header)["__metadata__"]["unspoken.manifest"])
    check = jsonschema.Draft202012Validator(json.loads(schema()))
    assert list(check.iter_errors(manifest)) == []
    for change in ({"evil": 1}, {"version": "2"}, {"digests": []}, {"cache": {}}):
        assert list(check.iter_errors(manifest | change)) != []


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    assert ast.get_docstring(ast.parse(text))


def test_there_are_examples() -> None:
    assert list((ROOT / "examples").glob("*.py"))


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"unspoken-{unspoken.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(f"unspoken-{unspoken.__version__}.dist-info/METADATA").decode()
        scripts = archive.read(f"unspoken-{unspoken.__version__}.dist-info/entry_points.txt").decode()
    inside = {name.removeprefix("unspoken/") for name in names if name.startswith("unspoken/")}
    assert {_name(path) for path in MODULES} <= inside
    assert {"lab/report.html.j2", "lab/recognition.html.j2", "modelstore/manifest.json"} <= inside
    assert {"identity/lexicon.yaml", "identity/passages.txt"} <= inside
    backgrounds = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.glob("identity/backgrounds/*.safetensors")}
    assert backgrounds
    assert {name for name in inside if name.endswith(".safetensors")} == backgrounds
    assert {name.split("/")[0] for name in names} == {"unspoken", f"unspoken-{unspoken.__version__}.dist-info"}
    assert not [name for name in names if name.endswith((".pyc", ".gguf"))]
    assert "License-Expression: Apache-2.0" in metadata
    assert "unspoken = unspoken.cli:main" in scripts


def test_the_version_is_told_once() -> None:
    assert f'\nversion = "{unspoken.__version__}"\n' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_every_registered_name_can_be_loaded() -> None:
    from unspoken.registry import Registry

    found = []
    for path in MODULES:
        name = ".".join(("unspoken", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        if path.name == "__main__.py":
            continue
        for registry in list(vars(importlib.import_module(name)).values()):  # Loading adds modules to a package.
            if isinstance(registry, Registry):
                found.append(registry)
                assert all(registry.load(each) is not None for each in registry)
    assert len({id(each) for each in found}) >= 4
