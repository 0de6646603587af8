"""Finding and building methods by name, and what is said when the name or an option is wrong."""

from __future__ import annotations

import dataclasses
import sys
import textwrap
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import pytest

from comove.discovery import build, check_choice, check_seed, discover, label_of, lookup, parse_method
from comove.errors import InputError


@dataclasses.dataclass(frozen=True)
class Base(ABC):
    name: ClassVar[str]

    @abstractmethod
    def act(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class Cld(Base):
    name: ClassVar[str] = "cld"

    correlation: str = "pearson"
    depth: int = 3
    ratio: float = 0.5
    deep: bool = False
    limit: int | None = 7

    def act(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class Plain(Base):
    name: ClassVar[str] = "plain"

    def act(self) -> None: ...


AMONG: dict[str, type[Base]] = {"cld": Cld, "plain": Plain}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cld", Cld()),
        (" cld ", Cld()),
        ("plain", Plain()),
        ("cld:correlation=spearman", Cld(correlation="spearman")),
        ("cld:depth=5:ratio=0.25", Cld(depth=5, ratio=0.25)),
        ("cld:depth=-5:ratio=1e-3", Cld(depth=-5, ratio=0.001)),
        ("cld:deep=true:limit=none", Cld(deep=True, limit=None)),
        ("cld:deep=False", Cld(deep=False)),
        ("cld:correlation=a=b", Cld(correlation="a=b")),
        ("cld:correlation=(plain:of=2:more=x):depth=4", Cld(correlation="plain:of=2:more=x", depth=4)),
        ("cld:correlation=(plain)", Cld(correlation="plain")),
    ],
)
def test_text_becomes_a_method_with_typed_options(text: str, expected: Base) -> None:
    made = parse_method(text, AMONG, "method")
    assert made == expected
    assert {type(value) for value in dataclasses.asdict(made).values()} == {
        type(value) for value in dataclasses.asdict(expected).values()
    }


def test_further_options_count_before_those_in_the_text() -> None:
    assert parse_method("cld:depth=5:ratio=0.25", AMONG, "method", {"depth": 6}) == Cld(depth=6, ratio=0.25)
    with pytest.raises(InputError, match="has no option 'width'"):
        parse_method("cld:depth=5", AMONG, "method", {"width": 6})


@pytest.mark.parametrize("text", ["cld:", "cld:depth", "cld:correlation:depth=3", "cld::depth=3"])
def test_an_option_without_a_value_says_how_to_write_it(text: str) -> None:
    with pytest.raises(InputError, match=r"name:option=value:option=value, got"):
        parse_method(text, AMONG, "method")


@pytest.mark.parametrize("text", ["", "=3", "clf", "CLD", "cld(depth=3)"])
def test_an_unknown_name_lists_the_known_ones(text: str) -> None:
    with pytest.raises(InputError, match=r"Unknown method .*Known: cld, plain\."):
        parse_method(text, AMONG, "method")


def test_the_nearest_name_and_option_are_suggested() -> None:
    with pytest.raises(InputError, match=r"Unknown method 'plian'\. Did you mean 'plain'\?"):
        lookup("plian", AMONG, "method")
    with pytest.raises(InputError, match=r"'cld' has no option 'corelation'\. Did you mean 'correlation'"):
        build("cld", AMONG, "method", {"corelation": "spearman"})
    with pytest.raises(InputError, match=r"'plain' has no option 'x'\. Its options: none\."):
        parse_method("plain:x=1", AMONG, "method")
    with pytest.raises(InputError, match=r"'cld' has no option ''"):
        parse_method("cld:=1", AMONG, "method")


def test_a_name_stays_a_name_however_class_variables_are_called() -> None:
    with pytest.raises(InputError, match="has no option 'name'"):
        build("cld", AMONG, "method", {"name": "other"})


def test_the_label_names_changed_options_only() -> None:
    assert label_of(Cld()) == "cld"
    assert label_of(Cld(depth=4, limit=None)) == "cld(depth=4, limit=None)"


def test_choices_and_seeds_are_checked() -> None:
    check_choice("a", ("a", "b"), "option", "m")
    with pytest.raises(InputError, match=r"m: option must be one of alpha, beta, got 'alpa'\. Did you mean 'alpha'"):
        check_choice("alpa", ("alpha", "beta"), "option", "m")
    with pytest.raises(InputError, match="got 3"):
        check_choice(3, ("a",), "option", "m")
    check_seed(0, "m")
    with pytest.raises(InputError, match="m: seed must be a whole number from 0 on, got -1"):
        check_seed(-1, "m")


def test_a_package_is_walked_for_concrete_public_classes_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "pack_for_discovery"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "base.py").write_text(
        textwrap.dedent(
            """
            from abc import ABC, abstractmethod
            class Method(ABC):
                @abstractmethod
                def act(self): ...
            """
        )
    )
    (tmp_path / "beside_discovery.py").write_text(
        "from pack_for_discovery.base import Method\n"
        "class Foreign(Method):\n    name = 'foreign'\n    def act(self): ...\n"
    )
    (package / "zeta.py").write_text(
        textwrap.dedent(
            """
            from pack_for_discovery.base import Method
            from pack_for_discovery.alpha import Alpha  # imported, not its own
            from beside_discovery import Foreign
            class Zeta(Method):
                name = "zeta"
                def act(self): ...
            class _Hidden(Zeta):
                name = "hidden"
            class Unfinished(Method):
                name = "unfinished"
            """
        )
    )
    (package / "alpha.py").write_text(
        "from pack_for_discovery.base import Method\nclass Alpha(Method):\n    name = 'alpha'\n    def act(self): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import importlib

    base: Any = importlib.import_module("pack_for_discovery.base")
    found = discover("pack_for_discovery", base.Method)
    assert list(found) == ["alpha", "zeta"]
    assert found["alpha"].__module__ == "pack_for_discovery.alpha"
    for name in [name for name in sys.modules if name.startswith(("pack_for_", "beside_"))]:
        monkeypatch.delitem(sys.modules, name)
