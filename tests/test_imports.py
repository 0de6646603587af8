"""What imports what: quick starts, one direction of flow, and no public name without a word about it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import comove

SOURCE = Path(comove.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))
HEAVY = ("torch", "torchvision", "matplotlib", "ray", "sklearn", "scipy", "pandas", "trak", "jinja2", "PIL")
ORDER = """
errors checks ties display discovery store jobs correlation plots data models trace training gradients attribution
coreset lds retraining evaluation report demo cli __main__
"""
LAYERS = ORDER.split()


def _loaded(code: str, names: tuple[str, ...], *arguments: str) -> list[str]:
    """Run ``code`` in a fresh interpreter, and return which of ``names`` it has imported."""
    tail = f"\nimport sys\nprint('LOADED', *[name for name in {names!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code + tail, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.rsplit("LOADED", 1)[1].split()


def test_importing_comove_imports_nothing_heavy() -> None:
    assert _loaded("import comove, sys; comove.__version__; dir(comove)", (*HEAVY, "numpy")) == []


@pytest.mark.parametrize("command", [[], ["--help"], ["train", "--help"], ["nonsense"]])
def test_help_and_usage_errors_import_nothing_heavy(command: list[str]) -> None:
    code = f"import sys\nsys.argv = ['comove', *{command!r}]\nfrom comove.cli import run\ntry:\n    run()\n"
    assert _loaded(code + "except SystemExit:\n    pass", (*HEAVY, "numpy")) == []


def test_training_imports_neither_torchs_compiler_nor_torchvision_nor_plots(tmp_path: Path) -> None:
    code = (
        "import comove, sys\n"
        "splits = comove.load_dataset('digits', limit=50, queries=20)\n"
        "comove.train(splits, 'mlp', {'epochs': 1}, out=sys.argv[1])"
    )
    names = (
        "torch._dynamo",
        "torch._inductor",
        "torchvision",
        "matplotlib",
        "trak",
        "ray",
    )  # scikit-learn brings pandas
    assert _loaded(code, names, str(tmp_path / "run")) == []


def test_every_public_name_of_the_package_can_be_had() -> None:
    for name in comove.__all__:
        assert getattr(comove, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        comove.trian  # noqa: B018


# --- one direction of flow ---------------------------------------------------------------------------------------


def _name(path: Path) -> str:
    parts = ("comove", *path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module of comove that a file imports, within functions too, and the line."""
    known = {_name(module) for module in MODULES}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if alias.name.split(".")[0] == "comove")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module is not None and node.module.split(".")[0] == "comove":
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    yield (whole if whole in known else node.module), node.lineno


def _layer(module: str) -> str:
    return module.split(".")[1]


def test_the_layers_name_every_part_of_the_package() -> None:
    parts = {_layer(_name(path)) for path in MODULES if _name(path) != "comove"}
    assert parts == set(LAYERS)


@pytest.mark.parametrize("path", [path for path in MODULES if _name(path) != "comove"], ids=_name)
def test_a_module_imports_only_what_stands_above_it(path: Path) -> None:
    own = _layer(_name(path))
    wrong = [
        f"line {line}: {module}"
        for module, line in _imports(path)
        if module != "comove" and _layer(module) != own and LAYERS.index(_layer(module)) > LAYERS.index(own)
    ]
    assert wrong == []
    assert [line for module, line in _imports(path) if module == "comove"] == []  # the front door is for users


def test_within_a_package_no_two_modules_import_each_other() -> None:
    graph = {_name(path): {module for module, _ in _imports(path)} for path in MODULES}

    def reach(start: str) -> set[str]:
        found: set[str] = set()
        stack = [start]
        while stack:
            for module in graph.get(stack.pop(), set()) - found:
                found.add(module)
                stack.append(module)
        return found

    packages = {_name(path) for path in MODULES if path.name == "__init__.py"}
    assert [module for module in graph if module not in packages and module in reach(module)] == []


# --- a word about every public name ------------------------------------------------------------------------------


def _undocumented(node: ast.AST, prefix: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or child.name.startswith("_"):
            continue
        overload = any(isinstance(mark, ast.Name) and mark.id == "overload" for mark in child.decorator_list)
        if ast.get_docstring(child) is None and not overload:
            yield f"{prefix}.{child.name}"
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from _undocumented(child, f"{prefix}.{child.name}")


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_every_module_and_public_name_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    assert list(_undocumented(tree, _name(path))) == []


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_everything_in_all_exists_in_the_module(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    defined: set[str] = set()
    listed: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            defined |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                defined |= {part.id for part in ast.walk(target) if isinstance(part, ast.Name)}
            if "__all__" in defined and not listed and node.value is not None:
                listed = ast.literal_eval(node.value)
    if _name(path) != "comove":
        assert set(listed) <= defined
