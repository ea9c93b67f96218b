"""Keys and values of the control plane, by which libraries leave things for one another.

A namespace keeps keys of one library apart from those of others; None is one too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional, Union

from ray_rust._private import session
from ray_rust.exceptions import RaySystemError

if TYPE_CHECKING:
    from ray_rust._internal import CoreWorker

# Text is taken for its UTF-8 form.
Bytes = Union[str, bytes]


class _KeyValueClient:
    """What libraries call a GCS client, as far as keys and values go."""

    def internal_kv_get(self, key: bytes, namespace: Optional[bytes] = None, timeout: Optional[float] = None) -> Any:
        """The value, or None."""
        return _core().kv_get(namespace or b"", [key]).get(key)

    def internal_kv_multi_get(
        self, keys: list[bytes], namespace: Optional[bytes] = None, timeout: Optional[float] = None
    ) -> dict[bytes, bytes]:
        """The values of those keys that exist."""
        return _core().kv_get(namespace or b"", keys)

    def internal_kv_put(
        self,
        key: bytes,
        value: bytes,
        overwrite: bool = False,
        namespace: Optional[bytes] = None,
        timeout: Optional[float] = None,
    ) -> int:
        """How many keys were added: 1, or 0 if there was one."""
        return int(_core().kv_put(namespace or b"", key, value, overwrite))

    def internal_kv_del(
        self,
        key: bytes,
        del_by_prefix: bool = False,
        namespace: Optional[bytes] = None,
        timeout: Optional[float] = None,
    ) -> int:
        """How many keys were removed."""
        return _core().kv_del(namespace or b"", key, del_by_prefix)

    def internal_kv_keys(
        self, prefix: bytes, namespace: Optional[bytes] = None, timeout: Optional[float] = None
    ) -> list[bytes]:
        """The keys that begin with `prefix`, in order."""
        return _core().kv_keys(namespace or b"", prefix)

    def internal_kv_exists(
        self, key: bytes, namespace: Optional[bytes] = None, timeout: Optional[float] = None
    ) -> bool:
        """Whether there is such a key."""
        return bool(_core().kv_get(namespace or b"", [key]))


_client = _KeyValueClient()


def _core() -> CoreWorker:
    connection = session.get_session()
    if connection is None:
        raise RaySystemError("keys and values are those of a cluster, and this process has not joined one; call init()")
    return connection.core


def _binary(what: str, text: Bytes) -> bytes:
    if isinstance(text, str):
        return text.encode()
    if not isinstance(text, bytes):
        raise TypeError(f"the {what} has to be bytes or text, is {text!r}")
    return text


def _namespace(namespace: Optional[Bytes]) -> Optional[bytes]:
    return None if namespace is None else _binary("namespace", namespace)


def internal_kv_get_gcs_client() -> Optional[_KeyValueClient]:
    """The client that the functions here use; None if this process has not joined a cluster."""
    return _client if _internal_kv_initialized() else None


def _initialize_internal_kv(gcs_client: Any) -> None:
    """Nothing is to be done: the connection of this process is used."""


def _internal_kv_reset() -> None:
    """Nothing is to be done: the connection of this process is used."""


def _internal_kv_initialized() -> bool:
    """Whether this process has joined a cluster."""
    return session.is_initialized()


def _internal_kv_get(key: Bytes, *, namespace: Optional[Bytes] = None) -> Optional[bytes]:
    """The value of a key; None if there is none."""
    value: Optional[bytes] = _client.internal_kv_get(_binary("key", key), _namespace(namespace))
    return value


def _internal_kv_exists(key: Bytes, *, namespace: Optional[Bytes] = None) -> bool:
    """Whether there is such a key."""
    return _client.internal_kv_exists(_binary("key", key), _namespace(namespace))


def _internal_kv_put(key: Bytes, value: Bytes, overwrite: bool = True, *, namespace: Optional[Bytes] = None) -> bool:
    """Sets a value; one that exists is kept unless `overwrite`. Returns whether the key existed before."""
    if not isinstance(overwrite, bool):
        raise TypeError(f"overwrite has to be True or False, is {overwrite!r}")
    added = _client.internal_kv_put(_binary("key", key), _binary("value", value), overwrite, _namespace(namespace))
    return added == 0


def _internal_kv_del(key: Bytes, *, del_by_prefix: bool = False, namespace: Optional[Bytes] = None) -> int:
    """Removes a key, or with `del_by_prefix` all that begin with it. Returns how many."""
    return _client.internal_kv_del(_binary("key", key), del_by_prefix, _namespace(namespace))


def _internal_kv_list(prefix: Bytes, *, namespace: Optional[Bytes] = None) -> list[bytes]:
    """The keys that begin with `prefix`."""
    return _client.internal_kv_keys(_binary("prefix", prefix), _namespace(namespace))
