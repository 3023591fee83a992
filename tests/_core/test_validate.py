"""Scalar arguments: what passes comes back unchanged, what does not is refused with its name and what was found."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from otbilevel._core import validate

finite = st.floats(allow_nan=False, allow_infinity=False)
names = st.sampled_from(["tol", "reg", "time_limit", "x_1"])
not_numbers = st.one_of(
    st.text(),
    st.binary(),
    st.none(),
    st.booleans(),
    st.complex_numbers(),
    st.lists(finite),
    st.dictionaries(st.text(), finite),
    st.just(Decimal(1)),
    st.builds(np.ones, st.integers(0, 3)),
    st.builds(np.bool_, st.booleans()),
)


def refusal(error: type[Exception], check, *args, **keywords) -> str:
    with pytest.raises(error) as refused:
        check(*args, **keywords)
    return str(refused.value)


@hypothesis.given(value=finite, name=names, low=finite, high=finite, strict=st.booleans())
def test_real_accepts_the_interval_and_nothing_else(value, name, low, high, strict):
    hypothesis.assume(low <= high)
    inside = low <= value <= high and not (strict and value == low)
    if inside:
        assert validate.real(value, name, low=low, high=high, strict=strict) == value
    else:
        message = refusal(ValueError, validate.real, value, name, low=low, high=high, strict=strict)
        assert message.startswith(f"{name} must be finite")
        assert f"{'>' if strict else '>='} {low:g} and <= {high:g}" in message
        assert message.endswith(f"got {value!r}")


@pytest.mark.parametrize("strict", [False, True])
def test_real_at_the_ends_of_the_interval(strict):
    assert validate.real(1.0, "w", low=0.0, high=1.0, strict=strict) == 1.0
    assert validate.real(math.nextafter(0.0, 1.0), "w", low=0.0, high=1.0, strict=strict) == 5e-324
    refusal(ValueError, validate.real, math.nextafter(1.0, 2.0), "w", low=0.0, high=1.0, strict=strict)
    if strict:
        assert refusal(ValueError, validate.real, 0.0, "w", low=0.0, strict=True) == "w must be finite and > 0, got 0.0"
    else:
        assert validate.real(0.0, "w", low=0.0, high=1.0) == 0.0


@hypothesis.given(value=st.sampled_from([math.nan, math.inf, -math.inf]), name=names)
def test_real_refuses_what_is_not_finite(value, name):
    for wrapped in (value, np.float32(value), np.asarray(value)):
        message = refusal(ValueError, validate.real, wrapped, name)
        assert message == f"{name} must be finite, got {value!r}"


@hypothesis.given(value=not_numbers, name=names)
def test_real_refuses_other_types(value, name):
    message = refusal(TypeError, validate.real, value, name)
    assert message.startswith(f"{name} must be a real number, got ")
    assert type(value).__name__ in message


@pytest.mark.parametrize("value", [2, np.int8(2), np.float32(2), np.asarray(2.0), Fraction(4, 2), np.longdouble(2)])
def test_real_understands_every_kind_of_number(value):
    number = validate.real(value, "x")
    assert (type(number), number) == (float, 2.0)


def test_real_understands_zero_dimensional_arrays(device_backend):
    assert validate.real(device_backend.asarray(0.5), "x") == 0.5
    assert validate.integer(device_backend.asarray(3), "k") == 3
    refusal(TypeError, validate.real, device_backend.asarray([0.5]), "x")
    refusal(TypeError, validate.integer, device_backend.asarray(3.0), "k")


@pytest.mark.parametrize("value", [10**400, -(10**400), Fraction(10**400, 3)], ids=["large", "small", "fraction"])
def test_real_refuses_numbers_beyond_double_precision(value):
    assert "tol" in refusal(ValueError, validate.real, value, "tol", low=0.0)


def test_real_refuses_a_tensor_that_requires_gradients(make_backend):
    torch = make_backend("torch").xp
    assert "reg" in refusal(TypeError, validate.real, torch.tensor(0.1, requires_grad=True), "reg")


@hypothesis.given(value=st.integers(), low=st.integers(), name=names)
def test_integer_accepts_from_its_bound_on(value, low, name):
    if value >= low:
        assert validate.integer(value, name, low=low) == value
    else:
        assert refusal(ValueError, validate.integer, value, name, low=low) == f"{name} must be >= {low}, got {value}"


@hypothesis.given(value=st.one_of(not_numbers, finite, st.sampled_from([math.nan, math.inf])), name=names)
def test_integer_refuses_other_types(value, name):
    message = refusal(TypeError, validate.integer, value, name)
    assert message.startswith(f"{name} must be an integer, got ")
    assert type(value).__name__ in message


def test_integer_says_which_number_was_found():
    assert "1000.0" in refusal(TypeError, validate.integer, 1e3, "max_iter")


@pytest.mark.parametrize("value", [np.int64(3), np.uint8(3), np.asarray(3), 3])
def test_integer_understands_numpy(value):
    number = validate.integer(value, "k")
    assert (type(number), number) == (int, 3)


@hypothesis.given(value=st.one_of(st.integers(), st.text(), st.none(), finite, st.lists(st.booleans())), name=names)
def test_boolean_refuses_other_types(value, name):
    message = refusal(TypeError, validate.boolean, value, name)
    assert message.startswith(f"{name} must be True or False, got ")
    assert type(value).__name__ in message


@pytest.mark.parametrize("value", [True, False])
def test_boolean_returns_what_it_got(value):
    assert validate.boolean(value, "flag") is value


@hypothesis.given(value=st.one_of(st.text(), st.none(), st.integers(), st.lists(st.text())), name=names)
def test_choice_refuses_what_is_not_listed(value, name):
    hypothesis.assume(value not in ("robust", "paper"))
    message = refusal(ValueError, validate.choice, value, name, ("robust", "paper"))
    assert message == f"{name} must be one of 'robust', 'paper'; got {value!r}"


@pytest.mark.parametrize("value", ["robust", "paper"])
def test_choice_returns_what_it_got(value):
    assert validate.choice(value, "variant", ("robust", "paper")) == value
