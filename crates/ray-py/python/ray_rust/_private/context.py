"""What `init` returns."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Optional

from ray_rust._version import commit, version

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType


class BaseContext:
    """A connection to a cluster, as `init` gives it back."""

    dashboard_url: Optional[str]
    python_version: str
    ray_version: str

    def disconnect(self) -> None:
        """Ends the connection."""
        raise NotImplementedError

    def _context_table_template(self) -> str:
        from ray_rust.widgets import Template

        link = None
        if self.dashboard_url:
            link = Template("context_dashrow.html.j2").render(dashboard_url="http://" + self.dashboard_url)
        return Template("context_table.html.j2").render(
            python_version=self.python_version, ray_version=self.ray_version, dashboard_row=link
        )

    def _repr_html_(self) -> str:
        from ray_rust.widgets import Template

        return Template("context.html.j2").render(
            context_logo=Template("context_logo.html.j2").render(), context_table=self._context_table_template()
        )


class RayContext(BaseContext, Mapping[str, Any]):
    """What `init` returns: how the cluster can be reached; in a `with` statement, shuts down at its end."""

    def __init__(self, address_info: dict[str, Any]) -> None:
        self.dashboard_url = address_info.get("webui_url")
        self.python_version = "{}.{}.{}".format(*sys.version_info[:3])
        self.ray_version = version
        self.ray_commit = commit
        self.address_info = address_info

    def __getitem__(self, key: str) -> Any:
        return self.address_info[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.address_info)

    def __len__(self) -> int:
        return len(self.address_info)

    def __enter__(self) -> RayContext:  # noqa: PYI034 - typing.Self comes with Python 3.11
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.disconnect()

    def disconnect(self) -> None:
        """Shuts down."""
        from ray_rust._private.worker import shutdown

        shutdown()

    def __repr__(self) -> str:
        return (
            f"RayContext(dashboard_url={self.dashboard_url!r}, python_version={self.python_version!r}, "
            f"ray_version={self.ray_version!r}, ray_commit={self.ray_commit!r})"
        )
