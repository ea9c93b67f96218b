"""The tensors of this process, and what `get` is to do with those of others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional

from ray_rust.util.annotations import PublicAPI

if TYPE_CHECKING:
    from ray_rust._internal import ObjectRef
    from ray_rust._private.tensors.refs import TensorRef
    from ray_rust.actor import ActorHandle
    from ray_rust.experimental.rdt.rdt_store import RDTStore

__all__ = ["RDTManager", "set_target_device_for_ref", "set_target_for_ref", "wait_tensor_freed"]


@PublicAPI(stability="alpha")
def wait_tensor_freed(tensor: Any, timeout: Optional[float] = None) -> None:
    """Waits until no reference to a value with this tensor is left, in any process: then it may be overwritten.

    The tensor is one that this process has returned from a method with a tensor transport, or put with one.
    TimeoutError after `timeout` seconds.
    """
    RDTManager().rdt_store.wait_tensor_freed(tensor, timeout)


@PublicAPI(stability="alpha")
def set_target_for_ref(ref: ObjectRef[Any], target: list[Any]) -> None:
    """Has `get` of this reference receive the tensors into these, if the transport can do that.

    They have to be as many, of the same shapes and dtypes, in the order in which the value has its tensors. Only this
    reference is changed, not copies of it.
    """
    RDTManager().set_target_buffers_for_ref(ref, target)


@PublicAPI(stability="alpha")
def set_target_device_for_ref(ref: ObjectRef[Any], target_device: str) -> None:
    """Has `get` of this reference receive the tensors on this device, such as "cpu" or "cuda:0"."""
    RDTManager().set_target_device_for_ref(ref, target_device)


class RDTManager:
    """What this process knows of tensors; all instances are the same."""

    @property
    def rdt_store(self) -> RDTStore:
        """The tensors that are kept in this process."""
        from ray_rust._private.tensors import shelf

        return shelf.store

    @staticmethod
    def actor_has_tensor_transport(actor: ActorHandle[Any], tensor_transport: str) -> bool:
        """Whether the actor can use this transport, as far as the transport knows in this process."""
        from ray_rust._private.tensors.registry import registry

        return registry.manager(tensor_transport).actor_has_tensor_transport(actor)

    def set_target_buffers_for_ref(self, ref: ObjectRef[Any], target_buffers: list[Any]) -> None:
        """See `set_target_for_ref`."""
        _of_tensors(ref).set_target_buffers(target_buffers)

    def set_target_device_for_ref(self, ref: ObjectRef[Any], target_device: str) -> None:
        """See the function of this name."""
        _of_tensors(ref).set_target_device(target_device)


def _of_tensors(ref: ObjectRef[Any]) -> TensorRef:
    from ray_rust._private.tensors.refs import TensorRef

    if not isinstance(ref, TensorRef):
        raise ValueError(f"{ref!r} is not a reference to a value whose tensors have a transport")  # noqa: TRY004 - as Ray
    return ref
