"""What accelerators can do, by their makers' data sheets: for plans, and for the utilisation that training logs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hrsa_jax.runtime.errors import InputError


@dataclass(frozen=True)
class Hardware:
    """One device.

    bf16_flops, float32_flops: dense FLOP/s of matrix products (float32: full precision, as the similarity measures ask
    for). memory: bytes. memory_bandwidth: bytes/s. link: bytes/s that a device receives in a ring over one mesh axis
    inside a `domain` (devices joined by the fast links: a TPU slice, a GPU node); network: the same beyond it.
    """

    name: str
    bf16_flops: float
    float32_flops: float
    memory: float
    memory_bandwidth: float
    link: float
    domain: int
    network: float


# Sources: docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e} (bf16 peak, HBM, inter-chip bandwidth, pod size, data-centre
# network) and NVIDIA's data sheets of the A100 80 GB, H100 and H200 SXM. Inter-chip bandwidth of a TPU is stated for
# all ports, both directions: a ring over one axis receives through two of its 4 (v5e, v6e) or 6 (v5p) ports. NVLink is
# stated for both directions. Network of a GPU node: one 400 Gb/s adapter a GPU (A100: 200), as in the maker's own
# systems. A TPU computes float32 at full precision as six bf16 products; GPUs do it outside their tensor cores.
_TABLE = (
    Hardware("v5e", 197e12, 197e12 / 6, 16e9, 819e9, 100e9, 256, 3.1e9),
    Hardware("v5p", 459e12, 459e12 / 6, 95 * 2**30, 2765e9, 200e9, 8960, 6.25e9),
    Hardware("v6e", 918e12, 918e12 / 6, 32e9, 1638e9, 200e9, 256, 12.5e9),
    Hardware("A100", 312e12, 19.5e12, 80e9, 2039e9, 300e9, 8, 25e9),
    Hardware("H100", 989e12, 67e12, 80e9, 3350e9, 450e9, 8, 50e9),
    Hardware("H200", 989e12, 67e12, 141e9, 4800e9, 450e9, 8, 50e9),
)
HARDWARE: Mapping[str, Hardware] = {item.name: item for item in _TABLE}


def hardware(name: str) -> Hardware:
    """The device of that name (upper and lower case are the same).

    Raises:
        InputError: a name that is not in the table.
    """
    found = next((item for item in _TABLE if item.name.lower() == name.lower()), None)
    if found is None:
        raise InputError(f"hardware {name!r} is not known: it is one of {', '.join(HARDWARE)}")
    return found


def link_bandwidths(item: Hardware, mesh_shape: Mapping[str, int]) -> dict[str, float]:
    """Bytes/s that a device receives over each mesh axis; neighbours of the last axis are neighbouring devices.

    An axis whose groups reach beyond a domain runs at the network's speed.
    """
    found, inside = {}, 1
    for axis, size in reversed(list(mesh_shape.items())):
        inside *= size
        found[axis] = item.link if inside <= item.domain else item.network
    return found
