"""What a transport of tensors is, for those who write one."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Optional

if TYPE_CHECKING:
    from ray_rust.actor import ActorHandle

__all__ = ["CommunicatorMetadata", "FetchRequest", "TensorTransportManager", "TensorTransportMetadata"]


@dataclasses.dataclass
class CommunicatorMetadata:
    """What two actors have to know of each other to exchange tensors; transports inherit from it."""


@dataclasses.dataclass
class TensorTransportMetadata:
    """What a receiver has to know of the tensors of one object; transports inherit from it.

    `tensor_meta` has the shape and dtype of each tensor, in order. `tensor_device` is the kind of device that they
    all are on, such as "cuda".
    """

    tensor_meta: list[tuple[Any, Any]]
    tensor_device: Optional[str] = None


@dataclasses.dataclass
class FetchRequest:
    """A transfer that was begun by `fetch_multiple_tensors`, for `wait_fetch_complete`.

    Transports that transfer in the background inherit from it.
    """

    obj_id: str
    tensors: list[Any]


class TensorTransportManager(ABC):
    """Moves tensors from one process to another. Each process makes one instance, when it first needs it.

    `obj_id` names the tensors of one value, the same in all processes; it is not the id of the reference to it.
    """

    @abstractmethod
    def tensor_transport_backend(self) -> str:
        """The name of the transport."""

    @staticmethod
    @abstractmethod
    def is_one_sided() -> bool:
        """Whether a receiver gets the tensors without the sender taking part: `send_multiple_tensors` is not called."""

    @staticmethod
    @abstractmethod
    def can_abort_transport() -> bool:
        """Whether `abort_transport` ends a transfer that hangs. If not, both actors are killed where one fails."""

    @abstractmethod
    def actor_has_tensor_transport(self, actor: ActorHandle[Any]) -> bool:
        """Whether the actor can use this transport; asked in the process that calls it."""

    @abstractmethod
    def extract_tensor_transport_metadata(self, obj_id: str, rdt_object: list[Any]) -> TensorTransportMetadata:
        """Describes tensors that were made in this process, and prepares them to be sent."""

    @abstractmethod
    def get_communicator_metadata(
        self,
        src_actor: Optional[ActorHandle[Any]],
        dst_actor: Optional[ActorHandle[Any]],
        backend: Optional[str] = None,
    ) -> CommunicatorMetadata:
        """What the two need to find each other; asked in the process that passes the reference on.

        `src_actor` is None if the tensors are in no actor; both are None if `get` asks.
        """

    @abstractmethod
    def recv_multiple_tensors(
        self,
        obj_id: str,
        tensor_transport_metadata: TensorTransportMetadata,
        communicator_metadata: CommunicatorMetadata,
        target_buffers: Optional[list[Any]] = None,
    ) -> list[Any]:
        """Receives the tensors, in this process, into `target_buffers` if there are some."""

    def fetch_multiple_tensors(
        self,
        obj_id: str,
        tensor_transport_metadata: TensorTransportMetadata,
        communicator_metadata: CommunicatorMetadata,
        target_buffers: Optional[list[Any]] = None,
    ) -> FetchRequest:
        """Begins to receive the tensors for `get`. Unless overridden, it waits until they are there."""
        tensors = self.recv_multiple_tensors(obj_id, tensor_transport_metadata, communicator_metadata, target_buffers)
        return FetchRequest(obj_id=obj_id, tensors=tensors)

    def wait_fetch_complete(self, fetch_request: FetchRequest, timeout: float = -1) -> list[Any]:
        """The tensors of a transfer that was begun. TimeoutError after `timeout` seconds, unless that is -1."""
        return fetch_request.tensors

    @abstractmethod
    def send_multiple_tensors(
        self,
        tensors: list[Any],
        tensor_transport_metadata: TensorTransportMetadata,
        communicator_metadata: CommunicatorMetadata,
    ) -> None:
        """Sends tensors of this actor, while the other one receives. Not called if the transport is one-sided."""

    @abstractmethod
    def garbage_collect(self, obj_id: str, tensor_transport_meta: TensorTransportMetadata, tensors: list[Any]) -> None:
        """Takes back what `extract_tensor_transport_metadata` has prepared: nobody refers to the tensors any more."""

    @abstractmethod
    def abort_transport(self, obj_id: str, communicator_metadata: CommunicatorMetadata) -> None:
        """Ends a transfer that is under way in this actor, because the other side has failed."""
