"""The names of actors."""

from __future__ import annotations

from typing import Union

from ray_rust._private import session

__all__ = ["list_named_actors"]


def list_named_actors(all_namespaces: bool = False) -> Union[list[str], list[dict[str, str]]]:
    """The names of the living actors that have one.

    Those in the namespace of this process; with `all_namespaces` all of them, each as a dict of "name"
    and "namespace".
    """
    connection = session.current_session()
    named = connection.core.named_actors()
    if all_namespaces:
        return [{"name": name, "namespace": namespace} for namespace, name in named]
    return [name for namespace, name in named if namespace == connection.namespace]
