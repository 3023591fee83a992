"""The registry: lookup, options and the table all come from one row."""

from __future__ import annotations

import dataclasses

import hypothesis
import pytest
from hypothesis import strategies as st

from otbilevel._core import validate
from otbilevel._core.registry import Method, Registry


@dataclasses.dataclass(frozen=True)
class Options:
    relaxation: float = 1.0
    time_limit: float | None = None

    def __post_init__(self) -> None:
        validate.real(self.relaxation, "relaxation", low=0.0, high=2.0)


@dataclasses.dataclass(frozen=True)
class NoOptions:
    pass


def row(name: str, options: type = Options, **changes) -> Method:
    given = {"summary": f"what {name} does", "backends": ("numpy", "torch"), "reference": f"{name} et al.", "max_iter": 10}
    return Method(name=name, solve=lambda *_: None, options=options, **(given | changes))


@pytest.fixture
def registry() -> Registry:
    filled = Registry("solve_it")
    filled.add(row("newton"))
    filled.add(row("gradient", NoOptions, backends=("numpy",)))
    return filled


def test_rows_are_found_by_name_and_in_order(registry):
    assert registry["newton"].name == "newton"
    assert registry["gradient"].options is NoOptions
    assert [method.name for method in registry] == ["newton", "gradient"]


@pytest.mark.parametrize("name", ["", "Newton", "newtown", None, 3, ["newton"], ("newton",)])
def test_an_unknown_method_lists_the_known_ones(registry, name):
    with pytest.raises(ValueError, match="unknown method") as refused:
        registry[name]
    assert str(refused.value) == f"unknown method {name!r} for solve_it: choose one of 'newton', 'gradient'"


def test_a_second_row_of_the_same_name_is_refused(registry):
    before = registry["newton"]
    with pytest.raises(ValueError, match=r"solve_it already has a method 'newton'"):
        registry.add(row("newton", NoOptions))
    assert registry["newton"] is before


def test_options_are_made_from_what_was_given(registry):
    assert registry["newton"].make_options(None) == Options()
    assert registry["newton"].make_options({}) == Options()
    assert registry["newton"].make_options({"relaxation": 1.5}) == Options(relaxation=1.5)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("relaxatoin", "relaxation"), ("relax", "relaxation"), ("timelimit", "time_limit"), ("Time_Limit", "time_limit")],
)
def test_an_unknown_option_names_the_nearest(registry, key, nearest):
    with pytest.raises(TypeError) as refused:
        registry["newton"].make_options({key: 1.0})
    message = str(refused.value)
    assert message.startswith(f"unknown option {key!r} for method 'newton': did you mean {nearest!r}?")
    assert message.endswith("Valid options: relaxation, time_limit")


@hypothesis.given(key=st.one_of(st.text(), st.integers(), st.none(), st.tuples(st.text())))
def test_any_unknown_option_lists_the_valid_ones(key):
    hypothesis.assume(key not in ("relaxation", "time_limit"))
    with pytest.raises(TypeError) as refused:
        row("newton").make_options({"relaxation": 1.0, key: 1.0})
    assert repr(key) in str(refused.value)
    assert "Valid options: relaxation, time_limit" in str(refused.value)


def test_a_method_without_options_says_so(registry):
    with pytest.raises(TypeError, match=r"unknown option 'step' for method 'gradient': .*(none|no options)"):
        registry["gradient"].make_options({"step": 1.0})


@pytest.mark.parametrize("given", [[("relaxation", 1.0)], "relaxation", 3, Options()])
def test_options_must_be_a_dict(registry, given):
    with pytest.raises(TypeError, match=f"^options must be a dict, got {type(given).__name__}$"):
        registry["newton"].make_options(given)


def test_bad_values_are_refused_by_the_options_themselves(registry):
    with pytest.raises(ValueError, match=r"^relaxation .*got 3\.0"):
        registry["newton"].make_options({"relaxation": 3.0})


def test_the_table_has_a_row_per_method(registry):
    lines = registry.table().splitlines()
    assert registry.table().endswith("|\n")
    assert len(lines) == 2 + 2
    assert {line.count("|") for line in lines} == {6}
    assert lines[2] == '| `"newton"` | what newton does | `relaxation`, `time_limit` | numpy, torch | newton et al. |'
    assert lines[3] == '| `"gradient"` | what gradient does |  | numpy | gradient et al. |'


def test_a_row_cannot_be_changed(registry):
    with pytest.raises(dataclasses.FrozenInstanceError):
        registry["newton"].max_iter = 20
