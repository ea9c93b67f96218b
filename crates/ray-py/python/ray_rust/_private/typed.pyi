"""How type checkers see remote functions and methods; nothing of this is there at run time.

`remote` keeps the parameters and the result of a function: its values may be given, by position or name, and by
position also references to them, as long as there are at most eight.
"""

from collections.abc import Awaitable
from typing import Any, Callable, Generic, Protocol, TypeVar, Union, overload

from typing_extensions import Concatenate, ParamSpec

from ray_rust._internal import ObjectRef
from ray_rust.actor import ActorClass
from ray_rust.remote_function import RemoteFunction

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")
A0 = TypeVar("A0")
A0_contra = TypeVar("A0_contra", contravariant=True)
A1 = TypeVar("A1")
A1_contra = TypeVar("A1_contra", contravariant=True)
A2 = TypeVar("A2")
A2_contra = TypeVar("A2_contra", contravariant=True)
A3 = TypeVar("A3")
A3_contra = TypeVar("A3_contra", contravariant=True)
A4 = TypeVar("A4")
A4_contra = TypeVar("A4_contra", contravariant=True)
A5 = TypeVar("A5")
A5_contra = TypeVar("A5_contra", contravariant=True)
A6 = TypeVar("A6")
A6_contra = TypeVar("A6_contra", contravariant=True)
A7 = TypeVar("A7")
A7_contra = TypeVar("A7_contra", contravariant=True)

# What can be called with so many values by position: structural, so that parameters with defaults may be left out.
class Takes1(Protocol[A0_contra, R_co]):
    @property
    def _typed(self) -> Callable[[A0_contra], R_co]: ...

class Takes2(Protocol[A0_contra, A1_contra, R_co]):
    @property
    def _typed(self) -> Callable[[A0_contra, A1_contra], R_co]: ...

class Takes3(Protocol[A0_contra, A1_contra, A2_contra, R_co]):
    @property
    def _typed(self) -> Callable[[A0_contra, A1_contra, A2_contra], R_co]: ...

class Takes4(Protocol[A0_contra, A1_contra, A2_contra, A3_contra, R_co]):
    @property
    def _typed(self) -> Callable[[A0_contra, A1_contra, A2_contra, A3_contra], R_co]: ...

class Takes5(Protocol[A0_contra, A1_contra, A2_contra, A3_contra, A4_contra, R_co]):
    @property
    def _typed(self) -> Callable[[A0_contra, A1_contra, A2_contra, A3_contra, A4_contra], R_co]: ...

class Takes6(Protocol[A0_contra, A1_contra, A2_contra, A3_contra, A4_contra, A5_contra, R_co]):
    @property
    def _typed(self) -> Callable[[A0_contra, A1_contra, A2_contra, A3_contra, A4_contra, A5_contra], R_co]: ...

class Takes7(Protocol[A0_contra, A1_contra, A2_contra, A3_contra, A4_contra, A5_contra, A6_contra, R_co]):
    @property
    def _typed(
        self,
    ) -> Callable[[A0_contra, A1_contra, A2_contra, A3_contra, A4_contra, A5_contra, A6_contra], R_co]: ...

class Takes8(Protocol[A0_contra, A1_contra, A2_contra, A3_contra, A4_contra, A5_contra, A6_contra, A7_contra, R_co]):
    @property
    def _typed(
        self,
    ) -> Callable[[A0_contra, A1_contra, A2_contra, A3_contra, A4_contra, A5_contra, A6_contra, A7_contra], R_co]: ...

class TypedFunction(RemoteFunction, Generic[P, R]):
    """A remote function of these parameters and this result."""

    @property
    def _typed(self) -> Callable[P, R]: ...
    @overload
    def remote(self, *args: P.args, **kwargs: P.kwargs) -> ObjectRef[R]: ...
    @overload
    def remote(self: Takes1[A0, R], a0: Union[A0, ObjectRef[A0]], /) -> ObjectRef[R]: ...
    @overload
    def remote(
        self: Takes2[A0, A1, R], a0: Union[A0, ObjectRef[A0]], a1: Union[A1, ObjectRef[A1]], /
    ) -> ObjectRef[R]: ...
    @overload
    def remote(
        self: Takes3[A0, A1, A2, R],
        a0: Union[A0, ObjectRef[A0]],
        a1: Union[A1, ObjectRef[A1]],
        a2: Union[A2, ObjectRef[A2]],
        /,
    ) -> ObjectRef[R]: ...
    @overload
    def remote(
        self: Takes4[A0, A1, A2, A3, R],
        a0: Union[A0, ObjectRef[A0]],
        a1: Union[A1, ObjectRef[A1]],
        a2: Union[A2, ObjectRef[A2]],
        a3: Union[A3, ObjectRef[A3]],
        /,
    ) -> ObjectRef[R]: ...
    @overload
    def remote(
        self: Takes5[A0, A1, A2, A3, A4, R],
        a0: Union[A0, ObjectRef[A0]],
        a1: Union[A1, ObjectRef[A1]],
        a2: Union[A2, ObjectRef[A2]],
        a3: Union[A3, ObjectRef[A3]],
        a4: Union[A4, ObjectRef[A4]],
        /,
    ) -> ObjectRef[R]: ...
    @overload
    def remote(
        self: Takes6[A0, A1, A2, A3, A4, A5, R],
        a0: Union[A0, ObjectRef[A0]],
        a1: Union[A1, ObjectRef[A1]],
        a2: Union[A2, ObjectRef[A2]],
        a3: Union[A3, ObjectRef[A3]],
        a4: Union[A4, ObjectRef[A4]],
        a5: Union[A5, ObjectRef[A5]],
        /,
    ) -> ObjectRef[R]: ...
    @overload
    def remote(
        self: Takes7[A0, A1, A2, A3, A4, A5, A6, R],
        a0: Union[A0, ObjectRef[A0]],
        a1: Union[A1, ObjectRef[A1]],
        a2: Union[A2, ObjectRef[A2]],
        a3: Union[A3, ObjectRef[A3]],
        a4: Union[A4, ObjectRef[A4]],
        a5: Union[A5, ObjectRef[A5]],
        a6: Union[A6, ObjectRef[A6]],
        /,
    ) -> ObjectRef[R]: ...
    @overload
    def remote(
        self: Takes8[A0, A1, A2, A3, A4, A5, A6, A7, R],
        a0: Union[A0, ObjectRef[A0]],
        a1: Union[A1, ObjectRef[A1]],
        a2: Union[A2, ObjectRef[A2]],
        a3: Union[A3, ObjectRef[A3]],
        a4: Union[A4, ObjectRef[A4]],
        a5: Union[A5, ObjectRef[A5]],
        a6: Union[A6, ObjectRef[A6]],
        a7: Union[A7, ObjectRef[A7]],
        /,
    ) -> ObjectRef[R]: ...
    # The results of other numbers of returns are not known.
    @overload  # type: ignore[override]
    def options(self, *, num_returns: Any, **task_options: Any) -> AnyCall: ...
    @overload
    def options(self, **task_options: Any) -> TypedFunction[P, R]: ...

class TypedMethod(Generic[P, R]):
    """A method of these parameters (without self) and this result."""

    @property
    def _typed(self) -> Callable[P, R]: ...
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def remote(self, *args: P.args, **kwargs: P.kwargs) -> ObjectRef[R]: ...
    @overload
    def remote(self: Takes1[A0, R], a0: Union[A0, ObjectRef[A0]], /) -> ObjectRef[R]: ...
    @overload
    def remote(
        self: Takes2[A0, A1, R], a0: Union[A0, ObjectRef[A0]], a1: Union[A1, ObjectRef[A1]], /
    ) -> ObjectRef[R]: ...
    @overload
    def remote(
        self: Takes3[A0, A1, A2, R],
        a0: Union[A0, ObjectRef[A0]],
        a1: Union[A1, ObjectRef[A1]],
        a2: Union[A2, ObjectRef[A2]],
        /,
    ) -> ObjectRef[R]: ...
    @overload
    def remote(
        self: Takes4[A0, A1, A2, A3, R],
        a0: Union[A0, ObjectRef[A0]],
        a1: Union[A1, ObjectRef[A1]],
        a2: Union[A2, ObjectRef[A2]],
        a3: Union[A3, ObjectRef[A3]],
        /,
    ) -> ObjectRef[R]: ...
    @overload
    def remote(
        self: Takes5[A0, A1, A2, A3, A4, R],
        a0: Union[A0, ObjectRef[A0]],
        a1: Union[A1, ObjectRef[A1]],
        a2: Union[A2, ObjectRef[A2]],
        a3: Union[A3, ObjectRef[A3]],
        a4: Union[A4, ObjectRef[A4]],
        /,
    ) -> ObjectRef[R]: ...
    @overload
    def remote(
        self: Takes6[A0, A1, A2, A3, A4, A5, R],
        a0: Union[A0, ObjectRef[A0]],
        a1: Union[A1, ObjectRef[A1]],
        a2: Union[A2, ObjectRef[A2]],
        a3: Union[A3, ObjectRef[A3]],
        a4: Union[A4, ObjectRef[A4]],
        a5: Union[A5, ObjectRef[A5]],
        /,
    ) -> ObjectRef[R]: ...
    @overload
    def remote(
        self: Takes7[A0, A1, A2, A3, A4, A5, A6, R],
        a0: Union[A0, ObjectRef[A0]],
        a1: Union[A1, ObjectRef[A1]],
        a2: Union[A2, ObjectRef[A2]],
        a3: Union[A3, ObjectRef[A3]],
        a4: Union[A4, ObjectRef[A4]],
        a5: Union[A5, ObjectRef[A5]],
        a6: Union[A6, ObjectRef[A6]],
        /,
    ) -> ObjectRef[R]: ...
    @overload
    def remote(
        self: Takes8[A0, A1, A2, A3, A4, A5, A6, A7, R],
        a0: Union[A0, ObjectRef[A0]],
        a1: Union[A1, ObjectRef[A1]],
        a2: Union[A2, ObjectRef[A2]],
        a3: Union[A3, ObjectRef[A3]],
        a4: Union[A4, ObjectRef[A4]],
        a5: Union[A5, ObjectRef[A5]],
        a6: Union[A6, ObjectRef[A6]],
        a7: Union[A7, ObjectRef[A7]],
        /,
    ) -> ObjectRef[R]: ...
    @overload
    def options(self, *, num_returns: Any, **method_options: Any) -> AnyCall: ...
    @overload
    def options(self, **method_options: Any) -> TypedMethod[P, R]: ...

class AnyCall(Protocol):
    """A call of which nothing is known."""

    def remote(self, *args: Any, **kwargs: Any) -> Any: ...

class RemoteDecorator(Protocol):
    """`@remote(...)` with options."""

    @overload
    def __call__(self, decorated: type[T], /) -> ActorClass[T]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, decorated: Callable[P, R], /) -> TypedFunction[P, R]: ...

class MethodDecorator(Protocol):
    """`@method(...)` with options."""

    @overload
    def __call__(self, method: Callable[Concatenate[Any, P], Awaitable[R]], /) -> TypedMethod[P, R]: ...
    @overload
    def __call__(self, method: Callable[Concatenate[Any, P], R], /) -> TypedMethod[P, R]: ...
