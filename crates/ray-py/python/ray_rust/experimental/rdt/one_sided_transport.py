"""What transports have in common in which the receiver reads what the sender has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional

from ray_rust.experimental.rdt.tensor_transport_manager import (
    CommunicatorMetadata,
    TensorTransportManager,
    TensorTransportMetadata,
)

if TYPE_CHECKING:
    from ray_rust.actor import ActorHandle


class OneSidedTransport(TensorTransportManager):
    """Senders take no part, and two actors need to know nothing of each other but what comes with the tensors."""

    @staticmethod
    def is_one_sided() -> bool:
        return True

    def actor_has_tensor_transport(self, actor: ActorHandle[Any]) -> bool:
        # Whether it has what is needed is seen when the tensors are made; to ask it would hold up every call.
        return True

    def get_communicator_metadata(
        self,
        src_actor: Optional[ActorHandle[Any]],
        dst_actor: Optional[ActorHandle[Any]],
        backend: Optional[str] = None,
    ) -> CommunicatorMetadata:
        return CommunicatorMetadata()

    def send_multiple_tensors(
        self,
        tensors: list[Any],
        tensor_transport_metadata: TensorTransportMetadata,
        communicator_metadata: CommunicatorMetadata,
    ) -> None:
        name = self.tensor_transport_backend()
        raise NotImplementedError(f"the tensor transport {name} is one-sided: senders take no part")
