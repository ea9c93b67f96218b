"""The marks of what is public, and what is imported only when it is looked at."""

import subprocess
import sys
import warnings

import pytest

import ray_rust
from ray_rust.util.annotations import (
    AnnotationType,
    Deprecated,
    DeveloperAPI,
    PublicAPI,
    RayDeprecationWarning,
    _get_annotation_type,
    _is_annotated,
)


@pytest.mark.parametrize(
    ("decorate", "kind"),
    [
        (PublicAPI, AnnotationType.PUBLIC_API),
        (PublicAPI(stability="beta", api_group="Data"), AnnotationType.PUBLIC_API),
        (DeveloperAPI, AnnotationType.DEVELOPER_API),
        (DeveloperAPI(), AnnotationType.DEVELOPER_API),
        (Deprecated, AnnotationType.DEPRECATED),
        (Deprecated(message="use g"), AnnotationType.DEPRECATED),
    ],
)
def test_a_mark_leaves_the_function_as_it_is(decorate, kind):
    def f(x):
        """Doubles."""
        return 2 * x

    marked = decorate(f)
    assert marked is f
    assert marked(2) == 4
    assert marked.__doc__.startswith("Doubles.")
    assert marked._annotated_type is kind
    assert _get_annotation_type(marked) == kind.value


def test_the_documentation_says_how_stable_it_is():
    @PublicAPI(stability="alpha")
    def f():
        """Summary.

        Args:
            nothing
        """

    assert "        **PublicAPI (alpha):**" in f.__doc__
    assert f._annotated_api_group == "Others"

    @Deprecated(message="use g")
    class Old:
        pass

    assert ".. warning::" in Old.__doc__
    assert "use g" in Old.__doc__


def test_a_subclass_is_not_marked_by_its_base():
    @PublicAPI
    class Base:
        pass

    class Derived(Base):
        pass

    assert _is_annotated(Base)
    assert not _is_annotated(Derived)
    assert _get_annotation_type(Derived) is None


def test_what_is_deprecated_warns_if_it_is_to():
    @Deprecated(message="use g", warning=True)
    def f(x):
        return x

    @Deprecated(warning=True)
    class Old:
        def __init__(self, x):
            self.x = x

    with pytest.warns(RayDeprecationWarning, match=r"f is deprecated.*\nuse g"):
        assert f(1) == 1
    with pytest.warns(RayDeprecationWarning, match="Old is deprecated"):
        assert Old(3).x == 3


def test_a_property_can_be_deprecated_without_a_warning():
    class Holder:
        @Deprecated
        @property
        def x(self):
            return 1

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Holder().x == 1


def test_wrong_words_are_refused():
    with pytest.raises(AssertionError, match="stability"):
        PublicAPI(stability="solid")
    with pytest.raises(ValueError, match="nonsense"):
        Deprecated(nonsense=1)


def test_subpackages_are_imported_when_they_are_looked_at():
    code = (
        "import sys, ray_rust\n"
        "assert 'ray_rust.util' not in sys.modules\n"
        "ray_rust.util\n"
        "assert 'ray_rust.util' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = ray_rust.nonsense
