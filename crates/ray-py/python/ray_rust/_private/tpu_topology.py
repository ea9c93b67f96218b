"""What Google's TPUs are made of, as far as tasks are laid on them; and which of them this machine belongs to.

A *slice* is some *hosts* (virtual machines) whose chips are wired to one another. Its *topology*, such as "4x4", says
how many chips it has along each axis.
"""

from __future__ import annotations

import os
import re
from itertools import product
from typing import Optional

# Labels of nodes.
SLICE_NAME_LABEL = "ray.io/tpu-slice-name"
WORKER_ID_LABEL = "ray.io/tpu-worker-id"
TOPOLOGY_LABEL = "ray.io/tpu-topology"
POD_TYPE_LABEL = "ray.io/tpu-pod-type"

GENERATIONS = ("v2", "v3", "v4", "v5p", "v5litepod", "v6e", "v7x")
# Of these a slice of up to eight chips may be one host, and a chip has one core instead of two.
_ONE_CORE = ("v5litepod", "v6e")
_ONE_HOST = ("1x1", "2x2", "2x4")
_CHIPS_PER_HOST = 4
_CORES_PER_CHIP = 2

_RESOURCE_PER_CHIP = "RAY_TPU_RESOURCE_PER_CHIP"
# Where machines of Google's cloud learn what they are, unless the environment says so.
_METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"
_METADATA_TIMEOUT_S = 2.0
_POD_TYPE = re.compile(r"(?:v|tpu)\d+[a-zA-Z]*-\d+")


def _boxes(most: tuple[int, int, int]) -> frozenset[str]:
    """Topologies of cubes of 4x4x4 chips, up to a size."""
    sides = (range(4, side + 1, 4) for side in most)
    return frozenset("x".join(map(str, box)) for box in product(*sides))


_PARTS_OF_A_CUBE = frozenset({"2x2x1", "2x2x2", "2x2x4", "2x4x4"})
_FLAT = frozenset({"4x4", "4x8", "8x8", "8x16", "16x16"})
_TOPOLOGIES = {
    "v2": _FLAT,
    "v3": _FLAT | {"16x32", "32x32"},
    "v4": _PARTS_OF_A_CUBE | _boxes((12, 12, 16)),
    "v5p": _PARTS_OF_A_CUBE | _boxes((16, 16, 24)),
    "v5litepod": _FLAT | {*_ONE_HOST, "2x8"},
    "v6e": _FLAT | {*_ONE_HOST, "2x8"},
    "v7x": _PARTS_OF_A_CUBE | {"4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16"},
}


def generation_of(accelerator_type: str) -> str:
    """The generation that "TPU-V6E", "tpu7x" or "v6e" names. ValueError if there is none."""
    name = accelerator_type.strip().lower()
    if name.startswith("tpu-"):
        name = name[len("tpu-") :]
    elif name.startswith("tpu"):
        name = "v" + name[len("tpu") :]
    if name not in GENERATIONS:
        raise ValueError(
            f"Invalid accelerator_type: {accelerator_type!r} names no generation of TPUs; there are "
            f"{', '.join(GENERATIONS)}, also with 'TPU-' in front"
        )
    return name


def chips_of(topology: str) -> int:
    """How many chips a slice of this topology has. ValueError if it is none."""
    chips = 1
    for side in topology.strip().lower().split("x"):
        if not side.isdecimal() or int(side) < 1:
            raise ValueError(f"{topology!r} is no topology of TPUs: it has to be like 2x4 or 2x2x2")
        chips *= int(side)
    return chips


def is_valid(generation: str, topology: str) -> bool:
    """Whether slices of this generation come in this topology."""
    return topology.strip().lower() in _TOPOLOGIES.get(generation, ())


def chips_per_host(topology: str, generation: str) -> int:
    """How many chips each host of such a slice has."""
    chips = chips_of(topology)
    return chips if generation in _ONE_CORE and topology.strip().lower() in _ONE_HOST else _CHIPS_PER_HOST


def cores_per_chip(generation: str) -> int:
    """How many cores a chip has, which pod types count."""
    return 1 if generation in _ONE_CORE else _CORES_PER_CHIP


def pod_type(topology: str, accelerator_type: str) -> str:
    """Such as "v4-16": the generation and how many cores a slice of this topology has."""
    generation = generation_of(accelerator_type)
    return f"{generation}-{chips_of(topology) * cores_per_chip(generation)}"


def resource_per_chip() -> int:
    """How many "TPU" a chip counts as: 1, unless RAY_TPU_RESOURCE_PER_CHIP says otherwise."""
    value = os.environ.get(_RESOURCE_PER_CHIP, "1")
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(f"{_RESOURCE_PER_CHIP} must be a positive integer, got: {value!r}")
    return int(value)


# What this machine is


def own_slice_name() -> Optional[str]:
    """The slice that this machine belongs to, if any."""
    return os.environ.get("TPU_NAME") or _metadata("instance-id") or None


def own_pod_type() -> Optional[str]:
    """The type of that slice, such as "v4-16"."""
    told = os.environ.get("TPU_ACCELERATOR_TYPE") or _metadata("accelerator-type")
    if not told or not _POD_TYPE.fullmatch(told):
        return None
    return re.sub("^tpu", "v", told.lower())


def own_chips() -> int:
    """How many chips this machine has."""
    import glob

    # A folder of this name belongs to another vendor's driver.
    chips = sum(not os.path.isdir(path) for path in glob.glob("/dev/accel*"))
    if chips:
        return chips
    try:
        groups = [name for name in os.listdir("/dev/vfio") if name.isdecimal()]
    except OSError:
        return 0
    return sum(map(_is_tpu, groups))


def _is_tpu(group: str) -> bool:
    """Whether a group of devices that programs drive themselves is one of Google's chips."""
    folder = f"/sys/kernel/iommu_groups/{group}/devices"
    try:
        for device in os.listdir(folder):
            with open(os.path.join(folder, device, "vendor"), encoding="ascii") as file:
                if file.read().strip().lower() == "0x1ae0":
                    return True
    except (OSError, UnicodeDecodeError):
        return False
    return False


def _metadata(key: str) -> Optional[str]:
    """What Google's cloud says of this machine; None elsewhere."""
    import urllib.error
    import urllib.request

    request = urllib.request.Request(_METADATA + key, headers={"Metadata-Flavor": "Google"})  # noqa: S310 - it is http
    try:
        with urllib.request.urlopen(request, timeout=_METADATA_TIMEOUT_S) as reply:  # noqa: S310
            text: str = reply.read().decode()
    except (OSError, ValueError):
        return None
    return text or None
