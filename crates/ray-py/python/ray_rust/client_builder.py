"""`ray.client`, with which Ray connects from a machine that is not in the cluster."""

from __future__ import annotations

from typing import Any, NoReturn, Optional

__all__ = ["ClientBuilder", "client", "refuse"]


def refuse(address: Optional[str]) -> NoReturn:
    """Says what to do instead."""
    raise NotImplementedError(
        f"Ray Client is not supported (address {address!r}): run the program on a machine of the cluster, where "
        "init(address='auto') or init(address='host:port') connects it"
    )


class ClientBuilder:
    """For programs that look for this class; `connect` refuses."""

    def __init__(self, address: Optional[str]) -> None:
        self.address = address

    def env(self, env: dict[str, Any]) -> ClientBuilder:
        """Itself: nothing will have this runtime environment."""
        return self

    def namespace(self, namespace: str) -> ClientBuilder:
        """Itself: nothing will be in this namespace."""
        return self

    def connect(self) -> NoReturn:
        """Refused: see `client`."""
        refuse(self.address)


def client(address: Optional[str] = None, _deprecation_warn_enabled: bool = True) -> ClientBuilder:
    """Refused, for there is no Ray Client: `init` connects instead."""
    refuse(address)
