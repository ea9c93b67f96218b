"""What type checkers have to understand; `test_typing.py` runs them, and runs this."""

import asyncio
from typing import TYPE_CHECKING, Any, Union

import ray_rust as ray

if TYPE_CHECKING:
    from typing_extensions import assert_type
else:

    def assert_type(value: Any, kind: Any) -> Any:
        return value


@ray.remote
def add(x: int, y: int = 2) -> str:
    return str(x + y)


@ray.remote(num_cpus=1, name="named")
def shout(text: str, *, twice: bool = False) -> str:
    return text.upper() * (2 if twice else 1)


@ray.remote
def nothing() -> None: ...


@ray.remote(num_returns=2)
def two() -> tuple[int, str]:
    return 1, "a"


class PlainCounter:
    def __init__(self, start: int = 0) -> None:
        self.value = start

    @ray.method
    def add(self, amount: int) -> int:
        self.value += amount
        return self.value

    @ray.method(max_task_retries=1)
    def label(self, prefix: str, suffix: str = "") -> str:
        return f"{prefix}{self.value}{suffix}"

    def plain(self) -> int:
        return self.value


class PlainWaiter:
    @ray.method
    async def wait(self, seconds: float) -> bytes:
        await asyncio.sleep(seconds)
        return b"done"


# Not as a decorator: mypy does not look at those of classes.
Counter = ray.remote(PlainCounter)
Waiter = ray.remote(num_cpus=0)(PlainWaiter)


async def awaited(ref: ray.ObjectRef[str]) -> str:
    return await ref


def main() -> None:
    ref = add.remote(1)
    assert_type(ref, ray.ObjectRef[str])
    assert_type(add.remote(1, 2), ray.ObjectRef[str])
    assert_type(add.remote(x=1, y=2), ray.ObjectRef[str])
    number = ray.put(5)
    assert_type(number, ray.ObjectRef[int])
    assert_type(add.remote(number), ray.ObjectRef[str])
    assert_type(add.remote(1, number), ray.ObjectRef[str])
    assert_type(add.options(num_cpus=1).remote(number, 1), ray.ObjectRef[str])
    assert_type(shout.remote("a", twice=True), ray.ObjectRef[str])
    assert_type(shout.remote(ref), ray.ObjectRef[str])
    assert_type(nothing.remote(), ray.ObjectRef[None])

    assert_type(ray.get(ref), str)
    assert_type(ray.get([ref, add.remote(2)]), list[str])
    assert_type(ray.get(number, timeout=10), int)
    ready, rest = ray.wait([ref], num_returns=1)
    assert_type(ready, list[ray.ObjectRef[str]])
    assert_type(rest, list[ray.ObjectRef[str]])
    assert_type(asyncio.run(awaited(ref)), str)
    first, second = two.remote()
    assert ray.get([first, second]) == [1, "a"]

    counter = Counter.remote(1)
    value: Union[int, Any] = ray.get(counter.add.remote(2))
    label: Union[str, Any] = ray.get(counter.label.remote("<", suffix=">"))
    assert (value, label) == (3, "<3>")
    other = Counter.options(num_cpus=0).remote()
    assert ray.get(other.add.remote(number)) == 5
    waiter = Waiter.remote()
    waited: Union[bytes, Any] = ray.get(waiter.wait.remote(0.0))
    assert waited == b"done"
    handle: ray.actor.ActorHandle[Any] = ray.get_actor("nobody") if value == 0 else counter  # type: ignore[assignment]
    ray.kill(handle)


if __name__ == "__main__":
    ray.init("local", num_cpus=2)
    main()
    print("typed")
