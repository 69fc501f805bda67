"""Speed and memory of devices, for plans: a table of data sheets.

Peaks are dense, without sparsity, of the unit that a matrix product runs on. Links are one way.
`max_efficiency` and `half_width` give the share of the peak that large models reach in training:
matrices of width `half_width` reach half of `max_efficiency`. Both are fitted to published
trainings:

    A100   44 % at width 2,304 to 52 % at 25,600, pipeline and tensor parallelism included
           (Narayanan et al. 2021, arXiv 2104.04473, table 1); 43 to 46 % for Llama 2 7B to 70B
           (Touvron et al. 2023, arXiv 2307.09288, table 2: hours of A100)
    H100   38 to 43 % at width 16,384 (Dubey et al. 2024, arXiv 2407.21783, table 4)
    V100   39 of 125 teraFLOP/s at width 1,536 on one device (Shoeybi et al. 2019,
           arXiv 1909.08053, section 5.1)

Imports no torch: `headwater plan` reads this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.stage import Section

GIB = 2.0**30
SPARE = 0.06
"""Share of a GPU's memory that training cannot use: the driver's context, NCCL's buffers,
fragmentation."""
LINK = 0.8
"""Share of a link's rate that collectives reach: about 235 of 300 GB/s within an HGX A100, 185 of
200 between two (NVIDIA's nccl-tests)."""

DeviceName = Literal["v100-32gb", "a100-40gb", "a100-80gb", "h100", "h200", "cpu"]


@dataclass(frozen=True)
class Device:
    """One GPU, or one core of a processor."""

    name: str
    peak: Mapping[str, float]
    """FLOP/s by dtype; it cannot compute in other dtypes."""
    memory: float
    """Bytes that the driver offers; infinite if unknown."""
    bandwidth: float
    """Bytes per second to and from its memory."""
    intra_node_bandwidth: float
    """Bytes per second to others of its node, one way."""
    inter_node_bandwidth: float
    """Bytes per second to other nodes, one way: its own share of the node's network."""
    max_efficiency: float
    half_width: float

    @property
    def gpu(self) -> bool:
        """True if the device is a GPU."""
        return self.name != "cpu"

    @property
    def usable_memory(self) -> float:
        """Bytes that a training can use."""
        return self.memory * (1 - SPARE)

    def efficiency(self, width: int) -> float:
        """Return the share of the peak that matrices of that width reach without waiting."""
        return self.max_efficiency * width / (width + self.half_width)


DEVICES: Mapping[str, Device] = {
    device.name: device
    for device in (
        # DGX-1V: NVLink 2, four 100 Gb/s adapters for eight GPUs; float32 without tensor cores.
        Device(
            "v100-32gb",
            {"float32": 15.7e12, "float16": 125e12},
            memory=31.7 * GIB,
            bandwidth=0.9e12,
            intra_node_bandwidth=150e9,
            inter_node_bandwidth=6.25e9,
            max_efficiency=0.40,
            half_width=500,
        ),
        # DGX A100: NVLink 3, a 200 Gb/s adapter per GPU. float32 as torch computes by default: not
        # in TF32.
        Device(
            "a100-40gb",
            {"float32": 19.5e12, "float16": 312e12, "bfloat16": 312e12},
            memory=39.4 * GIB,
            bandwidth=1.555e12,
            intra_node_bandwidth=300e9,
            inter_node_bandwidth=25e9,
            max_efficiency=0.58,
            half_width=700,
        ),
        Device(
            "a100-80gb",
            {"float32": 19.5e12, "float16": 312e12, "bfloat16": 312e12},
            memory=79.2 * GIB,
            bandwidth=2.039e12,
            intra_node_bandwidth=300e9,
            inter_node_bandwidth=25e9,
            max_efficiency=0.58,
            half_width=700,
        ),
        # DGX H100 (SXM): NVLink 4, a 400 Gb/s adapter per GPU.
        Device(
            "h100",
            {"float32": 67e12, "float16": 989e12, "bfloat16": 989e12},
            memory=79.1 * GIB,
            bandwidth=3.35e12,
            intra_node_bandwidth=450e9,
            inter_node_bandwidth=50e9,
            max_efficiency=0.50,
            half_width=1000,
        ),
        Device(
            "h200",
            {"float32": 67e12, "float16": 989e12, "bfloat16": 989e12},
            memory=139.8 * GIB,
            bandwidth=4.8e12,
            intra_node_bandwidth=450e9,
            inter_node_bandwidth=50e9,
            max_efficiency=0.50,
            half_width=1000,
        ),
        # One core with AVX-512, measured: torch's product of two 2,048 x 2,048 matrices on one
        # thread; gloo between two processes of a machine. bfloat16 is emulated.
        Device(
            "cpu",
            {"float32": 110e9},
            memory=float("inf"),
            bandwidth=10e9,
            intra_node_bandwidth=1e9,
            inter_node_bandwidth=1e9,
            max_efficiency=0.7,
            half_width=150,
        ),
    )
}


class HardwareSection(Section):
    """The hardware of the stage, for the plan alone: nothing is detected."""

    renamed: ClassVar[Mapping[str, str]] = {
        "per_node": "devices_per_node",
        "host_gib": "host_memory_gib",
    }

    device: DeviceName | None = None
    """Device of each worker, for which `plan` gives memory, MFU and days, and refuses what does not
    fit. Default: the CPU, or a GPU of unknown memory."""
    devices_per_node: Annotated[int, Field(ge=1)] = 8
    """Devices per node, which share the fast links. Default: 8."""
    host_memory_gib: Annotated[float | None, Field(gt=0)] = None
    """Memory of a node, GiB, for what its processes hold in addition to the devices' memory
    (`host_bytes`). Default: assumed to be enough."""
