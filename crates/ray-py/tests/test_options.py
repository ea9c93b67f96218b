"""What is wrong with options or arguments is said at once, before anything is sent."""

import functools
import math
import pickle

import cloudpickle
import pytest

import ray_rust
from ray_rust._private import options
from ray_rust._private.signature import Signature


@ray_rust.remote
def task(x, y=1, *, z=2):
    return x


@ray_rust.remote
class Actor:
    CONSTANT = 5

    def __init__(self, value):
        self.value = value

    def method(self, x):
        return x


BAD = [
    ("num_cpus", -1, ValueError),
    ("num_cpus", math.nan, ValueError),
    ("num_cpus", math.inf, ValueError),
    ("num_cpus", "2", TypeError),
    ("num_cpus", True, TypeError),
    ("num_cpus", 0.00001, ValueError),
    ("num_gpus", 1.5, ValueError),
    ("memory", -1, ValueError),
    ("resources", {"CPU": 1}, ValueError),
    ("resources", {"GPU": 1}, ValueError),
    ("resources", {"gizmo": -1}, ValueError),
    ("resources", {1: 1}, TypeError),
    ("resources", [], TypeError),
    ("scheduling_strategy", "ANYWHERE", ValueError),
    ("scheduling_strategy", object(), TypeError),
    ("placement_group", object(), TypeError),
    ("runtime_env", {"conda": "x"}, NotImplementedError),
    ("accelerator_type", 4, TypeError),
    ("label_selector", {"a": "b c"}, ValueError),
    ("label_selector", {"a": 1}, TypeError),
    ("label_selector", {"": "b"}, ValueError),
    ("fallback_strategy", {}, TypeError),
    ("fallback_strategy", [{}], ValueError),
    ("fallback_strategy", [{"num_cpus": 1}], ValueError),
    ("placement_group_bundle_index", -2, ValueError),
    ("placement_group_capture_child_tasks", 1, TypeError),
]
BAD_FOR_TASKS = [
    ("num_returns", -1, ValueError),
    ("num_returns", 1.5, TypeError),
    ("num_returns", "streaming", ValueError),
    ("num_returns", "many", ValueError),
    ("_generator_backpressure_num_objects", 0, ValueError),
    ("_num_objects_per_yield", 0, ValueError),
    ("max_retries", -2, ValueError),
    ("max_retries", "many", TypeError),
    ("retry_exceptions", ["ValueError"], ValueError),
    ("retry_exceptions", [KeyboardInterrupt], ValueError),
    ("retry_exceptions", 1, TypeError),
    ("max_calls", -1, ValueError),
    ("object_store_memory", 100, ValueError),
    ("_labels", "a", TypeError),
    ("max_restarts", 1, ValueError),
    ("nonsense", 1, ValueError),
]
BAD_FOR_ACTORS = [
    ("name", "", ValueError),
    ("name", 5, TypeError),
    ("lifetime", "long", ValueError),
    ("max_restarts", -2, ValueError),
    ("max_concurrency", 0, ValueError),
    ("max_task_retries", -2, ValueError),
    ("max_pending_calls", -2, ValueError),
    ("max_calls", 1, ValueError),
    ("retry_exceptions", True, ValueError),
    ("object_store_memory", -1, ValueError),
    ("get_if_exists", None, TypeError),
    ("num_returns", 2, ValueError),
    ("nonsense", 1, ValueError),
]


@pytest.mark.parametrize(("name", "value", "error"), BAD + BAD_FOR_TASKS)
def test_bad_options_of_tasks_are_named(name, value, error):
    with pytest.raises(error, match=name):
        task.options(**{name: value})
    with pytest.raises(error, match=name):
        ray_rust.remote(**{name: value})(lambda: None)


@pytest.mark.parametrize(("name", "value", "error"), BAD + BAD_FOR_ACTORS)
def test_bad_options_of_actors_are_named(name, value, error):
    with pytest.raises(error, match=name):
        Actor.options(**{name: value})


def test_an_unknown_option_is_refused_when_the_decorator_is_written():
    with pytest.raises(ValueError, match="num_cpu"):
        ray_rust.remote(num_cpu=1)


def test_good_options_pass():
    task.options(num_cpus=0.5, num_gpus=None, resources={"gizmo": 1}, max_retries=-1, num_returns=0, name="n")
    Actor.options(name="n", lifetime="detached", max_restarts=-1, num_cpus=0, scheduling_strategy="SPREAD")


def test_every_option_of_ray_is_taken():
    """With a good value each, so that the tables are complete; what they do has tests of its own."""
    common = {
        "num_cpus": 1,
        "num_gpus": 1,
        "memory": 100,
        "resources": {"gizmo": 1},
        "scheduling_strategy": "SPREAD",
        "runtime_env": {"env_vars": {"A": "b"}},
        "enable_task_events": False,
        "_labels": {"a": "b"},
        "accelerator_type": "H100",
        "label_selector": {"zone": "!in(a,b)"},
        "fallback_strategy": [{"label_selector": {"zone": "c"}}],
        "placement_group": "default",
        "placement_group_bundle_index": -1,
        "placement_group_capture_child_tasks": True,
        "name": "n",
    }
    tasks = {
        **common,
        "num_returns": 2,
        "max_calls": 3,
        "max_retries": -1,
        "retry_exceptions": (ValueError,),
        "_generator_backpressure_num_objects": 1,
        "_num_objects_per_yield": 2,
    }
    actors = {
        **common,
        "concurrency_groups": {"io": 2},
        "enable_tensor_transport": False,
        "lifetime": "non_detached",
        "max_concurrency": 2,
        "max_restarts": -1,
        "max_task_retries": -1,
        "max_pending_calls": 5,
        "namespace": "n",
        "get_if_exists": True,
        "allow_out_of_order_execution": True,
        "_actor_generator_backpressure_num_objects": 3,
    }
    for name, value in tasks.items():
        assert options.check({name: value}, options.TASK_OPTIONS, "a task") == {name: value}
    for name, value in actors.items():
        assert options.check({name: value}, options.ACTOR_OPTIONS, "an actor") == {name: value}
    # `object_store_memory` is refused for tasks and warned of for actors; `_metadata` is of older versions.
    left = {"object_store_memory", "_metadata"}
    assert set(options.TASK_OPTIONS) - set(tasks) == left
    assert set(options.ACTOR_OPTIONS) - set(actors) == left


def test_memory_of_the_object_store_is_taken_for_actors_with_a_warning():
    with pytest.warns(DeprecationWarning, match="object_store_memory"):
        Actor.options(object_store_memory=100)


def test_an_actor_that_may_exist_needs_a_name():
    for call in (Actor, Actor.options(num_cpus=1)):
        with pytest.raises(ValueError, match="name"):
            call.options(get_if_exists=True)


def test_how_many_calls_a_process_runs_is_said_with_the_function():
    limited = ray_rust.remote(max_calls=2)(lambda: None)
    for call in (limited, limited.options(num_cpus=2)):
        with pytest.raises(ValueError, match="max_calls"):
            call.options(max_calls=3)
    assert options.max_calls({}) == 0
    assert options.max_calls({"num_gpus": 0.5}) == 1
    assert options.max_calls({"num_gpus": 1, "max_calls": 0}) == 0


def test_concurrency_groups_are_said_with_the_class():
    grouped = ray_rust.remote(concurrency_groups={"io": 1})(type("Grouped", (), {}))
    for call in (grouped, grouped.options(num_cpus=2)):
        with pytest.raises(ValueError, match="concurrency_groups cannot be changed"):
            call.options(concurrency_groups={"io": 2})


def test_a_transport_of_tensors_is_known_or_refused_by_name():
    ray_rust.method(tensor_transport="object_store")
    ray_rust.method(tensor_transport="nixl")
    with pytest.raises(NotImplementedError, match="collective library"):
        ray_rust.method(tensor_transport="nccl")
    with pytest.raises(ValueError, match="no tensor transport PIGEON"):
        ray_rust.method(tensor_transport="pigeon")
    with pytest.raises(TypeError, match="tensor_transport"):
        ray_rust.method(tensor_transport=1)
    Actor.options(enable_tensor_transport=True)
    with pytest.raises(TypeError, match="enable_tensor_transport"):
        Actor.options(enable_tensor_transport="yes")


def test_none_takes_an_option_back():
    merged = options.merge({"num_cpus": 4}, {"num_cpus": None}, options.TASK_OPTIONS, "a task")
    assert merged == {}


@pytest.mark.parametrize(
    ("given", "cpus", "placement_cpus"),
    [
        ({}, 0, 1),
        ({"memory": 100}, 0, 1),
        ({"num_cpus": 0}, 0, 0),
        ({"num_cpus": 2}, 2, 0),
        ({"num_gpus": 1}, 1, 0),
        ({"resources": {"gizmo": 1}}, 1, 0),
    ],
)
def test_actors_take_cpus_as_in_ray(given, cpus, placement_cpus):
    placement, additional = options.actor_placement(given)
    assert (placement.num_cpus, additional) == (cpus, placement_cpus)


@pytest.mark.parametrize("wrong", [((), {}), ((1, 2, 3), {}), ((1,), {"q": 1}), ((1,), {"x": 2})])
def test_arguments_are_checked_before_anything_is_sent(wrong):
    args, kwargs = wrong
    with pytest.raises(TypeError, match=r"task\(\)"):
        task.remote(*args, **kwargs)


def test_constructor_arguments_are_checked():
    with pytest.raises(TypeError, match="value"):
        Actor.remote()

    @ray_rust.remote
    class Plain:
        pass

    with pytest.raises(TypeError, match="takes no arguments"):
        Plain.remote(1)


def test_direct_calls_name_the_right_way():
    with pytest.raises(TypeError, match=r"task\.remote"):
        task(1)
    with pytest.raises(TypeError, match=r"Actor\.remote"):
        Actor(1)


def test_an_actor_class_cannot_be_inherited_from():
    with pytest.raises(TypeError, match="Actor"):

        class Child(Actor):
            pass


def test_constants_of_an_actor_class_can_be_read():
    assert Actor.CONSTANT == 5


@pytest.mark.parametrize("wrong", [1, None, "text"])
def test_only_functions_and_classes_can_be_remote(wrong):
    with pytest.raises(TypeError, match="remote"):
        ray_rust.remote(wrong)


def test_remote_twice_is_refused():
    with pytest.raises(TypeError, match="already"):
        ray_rust.remote(task)


def test_what_is_not_supported_yet_says_so():
    async def coroutine():
        pass

    with pytest.raises(ValueError, match="coroutine"):
        ray_rust.remote(coroutine)


def test_method_options_are_checked():
    with pytest.raises(ValueError, match="num_returns"):
        ray_rust.method(num_returns=-1)
    with pytest.raises(TypeError, match="by name"):
        ray_rust.method(5)
    with pytest.raises(ValueError, match="nonsense"):
        ray_rust.method(nonsense=1)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: ray_rust.get(5), TypeError, "5"),
        (lambda: ray_rust.get(5), ValueError, "int"),
        (lambda: ray_rust.get([5]), TypeError, "index 0"),
        (lambda: ray_rust.get({}), TypeError, "dict"),
        (lambda: ray_rust.get([], timeout="1"), TypeError, "timeout"),
        (lambda: ray_rust.get([], timeout=-2), ValueError, "timeout"),
        (lambda: ray_rust.wait(5), TypeError, "int"),
        (lambda: ray_rust.wait([5]), TypeError, "index 0"),
        (lambda: ray_rust.wait([], timeout=-1), ValueError, "negative"),
        (lambda: ray_rust.wait([], timeout=1, timeout_ms=1), ValueError, "not both"),
        (lambda: ray_rust.kill(5), ValueError, "actor handle"),
        (lambda: ray_rust.cancel(5), TypeError, "ObjectRef"),
        (lambda: ray_rust.get_actor(""), ValueError, "name"),
        (lambda: ray_rust.get_actor("x", namespace=""), ValueError, "namespace"),
    ],
)
def test_calls_name_what_they_were_given(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize(
    ("function", "good", "bad"),
    [
        (lambda: None, [()], [(1,)]),
        (lambda a, b=1: None, [(1,), (1, 2)], [(), (1, 2, 3)]),
        (lambda *a: None, [(), (1, 2, 3)], []),
        (lambda a, *, k: None, [], [(1,)]),
    ],
)
def test_signatures_count_arguments(function, good, bad):
    for signature in (Signature.of(function), pickle.loads(pickle.dumps(Signature.of(function)))):
        for args in good:
            signature.check("f", args, {})
        for args in bad:
            with pytest.raises(TypeError, match=r"f\(\)"):
                signature.check("f", args, {})


def test_signatures_that_nobody_knows_take_anything():
    signature = pickle.loads(pickle.dumps(Signature.of(type("Odd", (), {"__signature__": 5}))))
    signature.check("f", (1, 2), {"a": 3})


def test_partial_functions_can_be_remote():
    partial = ray_rust.remote(functools.partial(lambda a, b: a + b, 1))
    with pytest.raises(TypeError):
        partial.remote()


def test_a_remote_function_pickles_with_its_options():
    again = cloudpickle.loads(cloudpickle.dumps(task.options(num_cpus=3)))
    assert again._options == {"num_cpus": 3}
