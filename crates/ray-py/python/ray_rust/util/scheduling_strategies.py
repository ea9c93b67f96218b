"""Where tasks and actors run: values of the option `scheduling_strategy`, beside "DEFAULT" and "SPREAD".

"DEFAULT" packs onto used nodes until they are half full and then spreads, and takes no part in the placement group of
the task that submits it; "SPREAD" takes the node that is used least.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional, Union

from ray_rust._internal import NodeID
from ray_rust.util.annotations import PublicAPI

if TYPE_CHECKING:
    from ray_rust.util.placement_group import PlacementGroup

__all__ = [
    "DoesNotExist",
    "Exists",
    "In",
    "LabelMatchExpressionsT",
    "NodeAffinitySchedulingStrategy",
    "NodeLabelSchedulingStrategy",
    "NotIn",
    "PlacementGroupSchedulingStrategy",
    "SchedulingStrategyT",
]


@PublicAPI
class PlacementGroupSchedulingStrategy:
    """In what a placement group has reserved; with None in place of the group, in none."""

    def __init__(
        self,
        placement_group: Optional[PlacementGroup],
        placement_group_bundle_index: int = -1,
        placement_group_capture_child_tasks: Optional[bool] = None,
    ) -> None:
        """Any bundle will do with index -1.

        With `placement_group_capture_child_tasks`, what runs there has its own tasks and actors run in the group, too,
        unless they have a strategy of their own.
        """
        self.placement_group = placement_group
        self.placement_group_bundle_index = placement_group_bundle_index
        self.placement_group_capture_child_tasks = placement_group_capture_child_tasks


@PublicAPI
class NodeAffinitySchedulingStrategy:
    """On one node, named by its id in hexadecimal."""

    def __init__(
        self,
        node_id: str,
        soft: bool,
        _spill_on_unavailable: bool = False,
        _fail_on_unavailable: bool = False,
    ) -> None:
        """If the node is gone or too small, another one will do if `soft`; else it fails, naming the node.

        A node that is only busy is waited for, unless `_spill_on_unavailable` (another one will do) or
        `_fail_on_unavailable` (it fails) is set.
        """
        self.node_id = node_id if isinstance(node_id, str) else node_id.hex()
        self.soft = soft
        self._spill_on_unavailable = _spill_on_unavailable
        self._fail_on_unavailable = _fail_on_unavailable
        self._check()

    def _check(self) -> None:
        problem = f"Invalid node_id {self.node_id!r}: it has to be the id of a node, as nodes() lists them"
        try:
            node_id = NodeID.from_hex(self.node_id)
        except ValueError as error:
            raise ValueError(problem) from error
        if node_id.is_nil():
            raise ValueError(problem)
        if self._spill_on_unavailable and not self.soft:
            raise ValueError("_spill_on_unavailable cannot be set when soft is False: no other node will do then")
        if self._fail_on_unavailable and self.soft:
            raise ValueError("_fail_on_unavailable cannot be set when soft is True: another node will do then")


def _check_values(values: tuple[Any, ...], operator: str) -> list[str]:
    if not values:
        raise ValueError(f'{operator}() needs values, as in {operator}("value1", "value2")')
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise ValueError(  # noqa: TRY004 - as in Ray
                f"value {index} of {operator}() has to be a string, is {value!r} of type {type(value).__name__}"
            )
    return list(values)


@PublicAPI(stability="alpha")
class In:
    """The label is there, with one of these values."""

    def __init__(self, *values: str) -> None:
        self.values = _check_values(values, "In")


@PublicAPI(stability="alpha")
class NotIn:
    """The label is not there with one of these values."""

    def __init__(self, *values: str) -> None:
        self.values = _check_values(values, "NotIn")


@PublicAPI(stability="alpha")
class Exists:
    """The label is there."""


@PublicAPI(stability="alpha")
class DoesNotExist:
    """The label is not there."""


class _LabelMatchExpression:
    """One condition on the labels of a node."""

    def __init__(self, key: str, operator: Union[In, NotIn, Exists, DoesNotExist]) -> None:
        self.key = key
        self.operator = operator


LabelMatchExpressionsT = dict[str, Union[In, NotIn, Exists, DoesNotExist]]


@PublicAPI(stability="alpha")
class NodeLabelSchedulingStrategy:
    """On a node whose labels are as `hard` wants them; if possible, also as `soft` does."""

    def __init__(self, hard: LabelMatchExpressionsT, *, soft: Optional[LabelMatchExpressionsT] = None) -> None:
        self.hard = _expressions(hard, "hard")
        self.soft = _expressions(soft, "soft")
        if not self.hard and not self.soft:
            raise ValueError("NodeLabelSchedulingStrategy needs a condition: hard and soft are both empty")


def _expressions(given: Any, name: str) -> list[_LabelMatchExpression]:
    if given is None:
        return []
    if not isinstance(given, dict):
        raise ValueError(  # noqa: TRY004 - as in Ray
            f'{name} has to be a dict such as {{"region": In("eu")}}, is of type {type(given).__name__}'
        )
    for key, operator in given.items():
        if not isinstance(key, str):
            raise ValueError(f"the keys of {name} have to be strings, one is {key!r}")  # noqa: TRY004
        if not isinstance(operator, (In, NotIn, Exists, DoesNotExist)):
            raise ValueError(  # noqa: TRY004
                f"{name}[{key!r}] has to be In(), NotIn(), Exists() or DoesNotExist(), is {operator!r}"
            )
    return [_LabelMatchExpression(key, operator) for key, operator in given.items()]


SchedulingStrategyT = Union[
    None,
    str,
    PlacementGroupSchedulingStrategy,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
]
