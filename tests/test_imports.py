"""What imports what: quick starts, one direction of flow, and no public name without a word about it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

import comove

SOURCE = Path(comove.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))
HEAVY = ("torch", "torchvision", "matplotlib", "ray", "sklearn", "scipy", "pandas", "trak", "jinja2", "PIL")
ORDER = """
errors checks ties display terminal discovery store jobs correlation plots data models tasks trace training gradients
attribution coreset lds retraining evaluation report demo cli __main__
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


FIRST_USES = """
import sys

def absent(*names):
    assert not set(names) & set(sys.modules), (names, sorted(set(names) & set(sys.modules)))

import comove
splits = comove.load_dataset("digits", limit=50, queries=20)
comove.train(splits, "mlp", {"epochs": 1}, out=sys.argv[1])
absent("torch._dynamo", "torch._inductor", "torchvision", "matplotlib", "trak", "ray")  # scikit-learn brings pandas

import comove.models
assert comove.models.model_names()
comove.models.build_model("resnet9", num_classes=2, input_shape=(3, 16, 16))
absent("torchvision")

import comove.attribution
comove.attribution.attributors()
absent("trak")

import numpy as np
from comove.attribution.scores import Scores
scores = Scores(np.eye(3), [1, 2, 3], [4, 5, 6], "x")
scores._repr_html_()
absent("matplotlib", "comove.report")
scores.plot(4, k=1)
assert "matplotlib" in sys.modules
absent("comove.report")
"""


def test_training_models_attribution_and_results_import_what_is_heavy_only_at_its_first_use(tmp_path: Path) -> None:
    _loaded(FIRST_USES, (), str(tmp_path / "run"))


def test_every_public_name_of_the_package_can_be_had() -> None:
    for name in comove.__all__:
        assert getattr(comove, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        comove.trian  # noqa: B018


# --- one direction of flow ---------------------------------------------------------------------------------------


def _name(path: Path) -> str:
    parts = ("comove", *path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _imports(path: Path) -> list[tuple[str, int]]:
    """Every module of comove that a file imports, and the line."""
    return list(_imports_in(_tree(path), {_name(module) for module in MODULES}))


def _imports_in(code: ast.Module, known: set[str]) -> Iterator[tuple[str, int]]:
    """The modules that code imports: at the top, within functions, for types only, and by a name in a string.

    A string that is a module's dotted name counts as an import of it, whatever is done with it: so no dynamic import
    can hide (names in docstrings and messages stand in longer texts).
    """
    for node in ast.walk(code):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            yield from ((alias.name, line) for alias in node.names if alias.name.split(".")[0] == "comove")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {line}: relative import"
            if node.module is not None and node.module.split(".")[0] == "comove":
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    yield (whole if whole in known else node.module), line
        elif isinstance(node, ast.Constant | ast.BinOp | ast.JoinedStr):
            text = _text(node)
            if text in known and text != "comove":
                yield text, line


def _text(node: ast.expr) -> str | None:
    """What a string literal says, or a sum or an f-string of literals; ``None`` for anything else."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    parts: list[ast.expr] = []
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = [node.left, node.right]
    elif isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.FormattedValue) else part for part in node.values]
    found = [_text(part) for part in parts]
    return "".join(part or "" for part in found) if parts and None not in found else None


def _layer(module: str) -> str:
    return module.split(".")[1]


def test_the_layers_name_every_part_of_the_package() -> None:
    parts = {_layer(_name(path)) for path in MODULES if _name(path) != "comove"}
    assert parts == set(LAYERS)


def test_a_module_imports_only_what_stands_above_it() -> None:
    wrong = [
        f"{path}, line {line}: {module}"
        for path in MODULES
        if _name(path) != "comove"
        for module, line in _imports(path)
        if module == "comove"  # the front door is for users
        or LAYERS.index(_layer(module)) > LAYERS.index(_layer(_name(path)))
    ]
    assert wrong == []


def _circle(graph: Mapping[str, set[str]]) -> list[str]:
    """The nodes that reach themselves."""

    def reach(start: str) -> set[str]:
        found: set[str] = set()
        stack = [start]
        while stack:
            for node in graph.get(stack.pop(), set()) - found:
                found.add(node)
                stack.append(node)
        return found

    return sorted(node for node in graph if node in reach(node))


def test_no_circle_of_files() -> None:
    graph = {_name(path): {module for module, _ in _imports(path)} for path in MODULES}
    assert sum(map(len, graph.values())) > 500  # the graph is there
    assert _circle(graph) == []


def test_no_circle_of_packages() -> None:
    """A package is a folder; its ``__init__``, which only hands on names of what lies in it, stands for nothing."""
    folder = {_name(path): _name(path).rpartition(".")[0] for path in MODULES if path.name != "__init__.py"}
    fronts = {_name(path) for path in MODULES if path.name == "__init__.py"}
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        if (own := folder.get(_name(path))) is not None and own != "comove":
            named = {module if module in fronts else folder[module] for module, _ in _imports(path)}
            graph.setdefault(own, set()).update(named - {own, "comove"})
    assert _circle(graph) == []


@pytest.mark.parametrize(
    "code",
    [
        "import comove.two",
        "from comove.two import x",
        "def f():\n    from comove.two import x",
        "if TYPE_CHECKING:\n    from comove import two",
        "import importlib\nimportlib.import_module('comove.two')",
        "getattr(import_module('comove' + '.two'), name)",
        "__import__('comove.two')",
        "HOMES = {'x': 'comove.two'}",
    ],
)
def test_the_graph_sees_every_way_of_importing(code: str) -> None:
    assert "comove.two" in {module for module, _ in _imports_in(ast.parse(code), {"comove", "comove.two"})}


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


def test_every_module_and_public_name_has_a_docstring() -> None:
    wrong = []
    for path in MODULES:
        tree = _tree(path)
        wrong += [] if ast.get_docstring(tree) else [_name(path)]
        wrong += _undocumented(tree, _name(path))
    assert wrong == []


def _listed_but_not_defined(tree: ast.Module) -> set[str]:
    """The names in ``__all__`` that the module neither defines nor imports."""
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
    return set(listed) - defined


def test_everything_in_all_exists_in_the_module() -> None:
    trees = {_name(path): _tree(path) for path in MODULES}
    assert len(trees) > 200
    wrong = {name: missing for name, tree in trees.items() if (missing := _listed_but_not_defined(tree))}
    wrong.pop("comove", None)  # whose names come on demand: they are imported above
    assert wrong == {}
