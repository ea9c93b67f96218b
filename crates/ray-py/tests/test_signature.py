"""The quick check of arguments against the signature itself."""

import inspect
import itertools

import pytest

from ray_rust._private.signature import Signature

FUNCTIONS = [
    lambda: None,
    lambda a: None,
    lambda a, b=1: None,
    lambda a, /: None,
    lambda a, /, b: None,
    lambda a=1, /, *, b: None,
    lambda *a: None,
    lambda a, *b, c=1: None,
    lambda *, a: None,
    lambda *, a=1, b: None,
    lambda **a: None,
    lambda a, **b: None,
    lambda a, /, **b: None,
    lambda a, b=1, *c, d, e=2, **f: None,
]
ARGS = [(None,) * count for count in range(4)]
KWARGS = [dict.fromkeys(names) for count in range(4) for names in itertools.combinations("abcdx", count)]


def binds(signature, args, kwargs):
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: str(inspect.signature(function)))
def test_what_fits_is_what_python_would_call(function):
    signature = inspect.signature(function)
    positional_only = any(p.kind is p.POSITIONAL_ONLY for p in signature.parameters.values())
    shape = Signature.of(function).shape
    for args, kwargs in itertools.product(ARGS, KWARGS):
        fits = shape.fits(args, kwargs)
        if fits or not positional_only:
            assert fits == binds(signature, args, kwargs), (args, kwargs)


def test_a_name_of_a_positional_only_parameter_may_be_a_keyword():
    signature = Signature.of(lambda a, /, **more: None)
    signature.check("f", (1,), {"a": 2})
    with pytest.raises(TypeError, match=r"f\(\)"):
        signature.check("f", (), {"a": 2})


def test_a_function_of_many_parameters_is_checked_too():
    names = [f"p{number}" for number in range(100)]
    scope = {}
    exec(f"def many({', '.join(names)}): pass", scope)
    signature = Signature.of(scope["many"])
    signature.check("many", tuple(range(100)), {})
    with pytest.raises(TypeError, match=r"many\(\)"):
        signature.check("many", tuple(range(101)), {})
