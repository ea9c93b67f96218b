"""Saying things once, timing them, and what they look like in a notebook."""

import pytest

from ray_rust.util import debug
from ray_rust.util.debug import log_once, reset_log_once
from ray_rust.util.timer import _Timer
from ray_rust.widgets import Template, make_table_html_repr
from ray_rust.widgets.util import in_ipython_shell, in_notebook, repr_with_fallback


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    for name, value in {"_logged": set(), "_disabled": False, "_periodic_log": False, "_last_logged": 0.0}.items():
        monkeypatch.setattr(debug, name, value)


def test_things_are_said_once():
    assert log_once("a")
    assert not log_once("a")
    assert log_once("b")
    reset_log_once("a")
    assert log_once("a")
    assert not log_once("b")
    reset_log_once()
    assert log_once("b")


def test_nothing_is_said_when_it_is_turned_off():
    debug.disable_log_once_globally()
    assert not log_once("a")


def test_things_are_said_again_after_a_while(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(debug.time, "monotonic", lambda: now)
    debug.enable_periodic_logging()
    assert log_once("a")
    now += 61
    assert not log_once("a")  # the period ends with this call
    assert log_once("a")
    assert not log_once("a")


def test_a_timer_keeps_the_last_few():
    timer = _Timer(window_size=2)
    assert timer.mean == timer.mean_units_processed == timer.mean_throughput == 0.0
    for seconds in (100, 1, 3):
        timer.push(seconds)
    timer.push_units_processed(8)
    assert timer.has_units_processed()
    assert (timer.count, timer.mean, timer.mean_units_processed, timer.mean_throughput) == (3, 2.0, 8.0, 2.0)


def test_a_timer_times_one_block_at_a_time():
    timer = _Timer()
    with timer, pytest.raises(AssertionError):
        timer.__enter__()
    assert timer.count == 1
    assert timer.mean >= 0


# Widgets


class Settings:
    def __init__(self):
        self.name = "<b>"
        self.number = 3
        self.inner = {"depth": 1}
        self.unknown = [1, 2]


def test_attributes_become_a_table():
    html = make_table_html_repr(Settings(), title="Set & go", max_height="100px")
    assert "<h3>Set &amp; go</h3>" in html
    assert "<td>name</td><td>&lt;b&gt;</td>" in html
    assert "<td>number</td><td>3</td>" in html
    assert "<td>depth</td><td>1</td>" in html
    assert "max-height: 100px" in html
    assert "unknown" not in html
    assert "{{" not in html


def test_templates_are_filled_in():
    assert Template("rendered_html_common.html.j2").render(content=["a", "b"]).count("ab") == 1
    for path in Template.list_templates():
        assert Template(path.name).template
    assert Template("divider.html.j2").render()
    with pytest.raises(FileNotFoundError):
        Template("nonsense.html.j2")


def test_notebooks_are_known_by_their_shell():
    assert in_notebook("ZMQInteractiveShell")
    assert not in_notebook("TerminalInteractiveShell")
    assert in_ipython_shell("TerminalInteractiveShell")
    assert not in_notebook()
    assert not in_ipython_shell()


@pytest.mark.parametrize(
    ("notebook", "needs", "rich"),
    [
        (False, (), False),
        (True, (), True),
        (True, (["numpy", "1.0"],), True),
        (True, (["numpy", "999"],), False),
        (True, (["no_such_package", None],), False),
    ],
)
def test_rich_output_needs_a_notebook_and_its_packages(monkeypatch, notebook, needs, rich):
    monkeypatch.setattr("ray_rust.widgets.util.in_notebook", lambda: notebook)

    class Shown:
        @repr_with_fallback(*needs)
        def _repr_mimebundle_(self, **kwargs):
            return {"text/html": "<b>"}

        def __repr__(self):
            return "plain"

    assert Shown()._repr_mimebundle_() == ({"text/html": "<b>"} if rich else {"text/plain": "plain"})
