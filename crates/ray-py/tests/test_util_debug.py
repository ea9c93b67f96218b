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


def test_code_that_keeps_more_memory_each_time_is_found(capsys):
    kept = []
    found = debug._test_some_code_for_memory_leaks(
        "keeping bytes", kept.clear, lambda: kept.append(bytes(500)), repeats=20, max_num_trials=2
    )
    worst = found[0]
    assert isinstance(worst, debug.Suspect)
    assert "test_util_debug.py" in str(worst.traceback[-1])
    # The second trial has twice the runs.
    assert len(worst.hist) == 40
    assert worst.memory_increase == worst.hist[-1] - worst.hist[0] > 39 * 500
    assert worst.slope > 500
    assert worst.rvalue > 0.99
    said = capsys.readouterr().out
    assert "keeping bytes: 40 runs, trial 2 of at most 2" in said
    assert "kept.append" in said


def test_code_that_gives_its_memory_back_is_not_suspected(capsys):
    prepared = []
    used = [b""]

    def code():
        used[0] = bytes(100_000)

    found = debug._test_some_code_for_memory_leaks("reusing", lambda: prepared.append(1), code, 10, max_num_trials=3)
    assert found == []
    # Without a suspect there is nothing to try again.
    assert prepared == [1]
    assert "no place holds more and more memory" in capsys.readouterr().out


def test_leaks_that_are_too_small_are_left_out():
    kept = []
    found = debug._test_some_code_for_memory_leaks(
        "little", None, lambda: kept.append(bytes(500)), repeats=10, min_memory_increase=1 << 20
    )
    assert found == []


@pytest.mark.parametrize(
    ("hist", "is_leak"),
    [
        ([0, 1000, 2000, 3000], True),
        ([0, 0, 0, 3000, 0, 0], False),  # given back
        ([0, 0, 0, 0, 0, 0, 0, 0, 0, 5000], False),  # once
        ([5000, 5000, 5000], False),
        ([0, 100, 200, 300], False),  # too little to tell
        ([8000], False),
    ],
)
def test_only_what_grows_steadily_is_a_leak(hist, is_leak):
    suspect = debug._suspect(("program.py:7",), hist)
    assert (suspect is not None) == is_leak


def test_lines_are_laid_through_values():
    assert debug._line_through([1, 3, 5, 7]) == (2.0, 1.0)
    assert debug._line_through([7, 5, 3, 1]) == (-2.0, -1.0)
    slope, fit = debug._line_through([0, 2, 1, 3])
    assert slope == pytest.approx(0.8)
    assert fit == pytest.approx(0.8)
