"""What objects look like in notebooks: `ray.widgets`."""

from ray_rust.widgets import util
from ray_rust.widgets.render import Template
from ray_rust.widgets.util import make_table_html_repr

__all__ = ["Template", "make_table_html_repr", "util"]
