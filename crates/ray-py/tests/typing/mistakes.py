"""What type checkers have to refuse: every line with "wrong" and no other; `test_typing.py` runs them."""

import ray_rust as ray


@ray.remote
def add(x: int, y: int = 2) -> str:
    return str(x + y)


class PlainCounter:
    @ray.method
    def add(self, amount: int) -> int:
        return amount


text = ray.put("a")
add.remote("a")  # wrong: no number
add.remote()  # wrong: too few
add.remote(1, 2, 3)  # wrong: too many
add.remote(text)  # wrong: a reference to text
add.remote(z=1)  # wrong: no such parameter
number: int = ray.get(add.remote(1))  # wrong: it returns text
numbers: list[int] = ray.get([add.remote(1)])  # wrong: it returns text
counter = ray.remote(PlainCounter).remote()
counter.add.remote("a")  # wrong: no number
ray.get(5)  # wrong: no reference
