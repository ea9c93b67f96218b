"""Graphics processors: which there are, and which of them a process is to use.

A node numbers its devices from 0. Where `CUDA_VISIBLE_DEVICES` was set for the node, number i is the i-th
entry there; else it is the number that the driver gives it.
"""

from __future__ import annotations

import os
import re
from typing import Any, Optional, Union

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
_NOSET = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"
_OVERRIDE_ON_ZERO = "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"
# Without one of these there is no driver, and no need to load its library: Linux, and Linux under Windows.
_DRIVER_FILES = ("/dev/nvidiactl", "/dev/dxg")
_NVML_NAME_BYTES = 96

# Kinds of accelerators that programs for Ray look for in `get_accelerator_ids`; only GPUs are told apart here.
ACCELERATORS = ("GPU", "FURIOSA", "HPU", "MBLT", "NPU", "RBLN", "TPU", "TTNPU", "neuron_cores")


def found() -> tuple[int, Optional[str]]:
    """How many devices this process may use, and their type, such as "H100"."""
    if not any(os.path.exists(path) for path in _DRIVER_FILES):
        return 0, None
    library = _load_nvml()
    if library is None:
        return 0, None
    try:
        count, name = _ask(library)
    finally:
        library.nvmlShutdown()
    visible = visible_devices()
    if visible is not None:
        count = min(count, len(visible))
    return count, accelerator_type(name) if count and name else None


def _load_nvml() -> Any:
    import ctypes

    for name in ("libnvidia-ml.so.1", "libnvidia-ml.so"):
        try:
            library = ctypes.CDLL(name)
            return library if library.nvmlInit_v2() == 0 else None
        except (OSError, AttributeError):
            continue
    return None


def _ask(library: Any) -> tuple[int, Optional[str]]:
    import ctypes

    count = ctypes.c_uint()
    if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0 or not count.value:
        return 0, None
    device = ctypes.c_void_p()
    name = ctypes.create_string_buffer(_NVML_NAME_BYTES)
    named = (
        library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)) == 0
        and library.nvmlDeviceGetName(device, name, _NVML_NAME_BYTES) == 0
    )
    return count.value, name.value.decode(errors="replace") if named else None


def accelerator_type(name: str) -> Optional[str]:
    """The type by which tasks choose a device of this full name, as Ray abbreviates it."""
    _vendor, *words = name.split() or [""]
    model: list[str] = []
    for word in words:
        part = word.partition("-")[0]
        if not re.fullmatch(r"[A-Z0-9]+", part):
            break
        model.append(part)
        if any(character.isdigit() for character in part):
            return "-".join(model)
    # Names of products for consumers, such as "NVIDIA GeForce RTX 5090".
    return "-".join(word for word in name.split() if word != "NVIDIA") or None


def visible_devices() -> Optional[list[str]]:
    """What `CUDA_VISIBLE_DEVICES` lists; None if it is not set."""
    text = os.environ.get(VISIBLE_DEVICES)
    if text is None:
        return None
    return [] if text in ("", "NoDevFiles") else text.split(",")


def check_request(num_gpus: Optional[float]) -> None:
    """Whether a node that is started here can have so many. ValueError if fewer are visible."""
    visible = visible_devices()
    if num_gpus is not None and visible is not None and num_gpus > len(visible):
        raise ValueError(
            f"a node with {num_gpus:g} GPUs cannot be started: {VISIBLE_DEVICES} lists {len(visible)}, {visible}"
        )


class Visibility:
    """Which devices the tasks of this worker see."""

    def __init__(self) -> None:
        # As the node, or a runtime environment, has set it for this process.
        self._original = os.environ.get(VISIBLE_DEVICES)
        self._original_devices = visible_devices()

    def ids(self, devices: list[int]) -> Union[list[int], list[str]]:
        """What these devices of the node are called: numbers, or entries of `CUDA_VISIBLE_DEVICES`."""
        listed = self._original_devices
        if listed is None:
            return devices
        if all(device < len(listed) for device in devices):
            return [listed[device] for device in devices]
        # A runtime environment allows fewer than the node has.
        return listed

    def show(self, devices: list[int]) -> None:
        """From now on programs find these devices only; with none, what they would find anyway, as in Ray."""
        if _is_set(_NOSET):
            return
        if devices or _is_set(_OVERRIDE_ON_ZERO):
            os.environ[VISIBLE_DEVICES] = ",".join(str(name) for name in self.ids(devices))
        elif self._original is None:
            os.environ.pop(VISIBLE_DEVICES, None)
        else:
            os.environ[VISIBLE_DEVICES] = self._original


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true")


_visibility: Optional[Visibility] = None


def visibility() -> Visibility:
    """Of this process, made before it runs anything."""
    global _visibility
    if _visibility is None:
        _visibility = Visibility()
    return _visibility
