"""verl's hardware abstraction for a machine without accelerators.

verl loads this module in every process (driver, Ray workers, rollout servers) when the environment says
``VERL_PLATFORM=cpu`` and ``VERL_USE_EXTERNAL_MODULES=workers.cpu.platform``; `recipes.common.processes.launch` sets
both for configurations with ``trainer.device=cpu``.  Ray still counts "GPU"s, since verl's placement groups ask for
them: they are logical slots here, one per data-parallel worker, declared with ``ray_init.num_gpus``.
"""

from __future__ import annotations

import types
from contextlib import contextmanager
from typing import Any

import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry

from workers.cpu import VLLM_ENVIRONMENT


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _zero(*_: Any, **__: Any) -> int:
    return 0


def _device_module() -> types.ModuleType:
    """``torch.cpu`` completed with the memory functions of ``torch.cuda`` that verl calls: all no-ops or zero."""
    module = types.ModuleType("torch_cpu_as_device")
    module.__dict__.update({name: getattr(torch.cpu, name) for name in dir(torch.cpu) if not name.startswith("_")})
    for name in ("synchronize", "empty_cache", "ipc_collect", "reset_peak_memory_stats", "set_device", "manual_seed"):
        setattr(module, name, _nothing)
    for name in ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"):
        setattr(module, name, _zero)
    module.mem_get_info = lambda *_: (0, 0)  # type: ignore[attr-defined]
    module.get_rng_state = torch.get_rng_state  # type: ignore[attr-defined]
    module.set_rng_state = torch.set_rng_state  # type: ignore[attr-defined]
    module.is_available = lambda: True  # type: ignore[attr-defined]
    module.get_device_name = lambda *_: "CPU"  # type: ignore[attr-defined]
    return module


@PlatformRegistry.register("cpu")
class PlatformCPU(PlatformBase):
    """One logical device a process, gloo between them, and ``torch.device("cpu")`` wherever verl asks for a device."""

    def __init__(self) -> None:
        self._module = _device_module()

    device_name = "cpu"
    vendor_name = "generic"

    @property
    def device_module(self) -> types.ModuleType:
        """The module that verl uses as ``torch.cuda``."""
        return self._module

    def is_available(self) -> bool:
        """Whether the device can be used: always."""
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        """Never found by verl's own search: a machine with GPUs must not fall back to the CPU silently."""
        return False

    def current_device(self) -> torch.device:  # type: ignore[override]
        """The device itself: verl passes this to Tensor.to(), where an integer would mean an accelerator's index."""
        return torch.device("cpu")

    def device_count(self) -> int:
        """One logical device for each process."""
        return 1

    def communication_backend_name(self) -> str:
        """The backend of torch.distributed that works on CPUs."""
        return "gloo"

    def visible_devices_envvar(self) -> str:
        """CUDA's variable, since verl asks every platform for one; on a CPU it limits nothing."""
        return "CUDA_VISIBLE_DEVICES"

    def ray_resource_name(self) -> str:
        """The resource that verl's placement groups ask for; here its units are logical slots."""
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        """Variables that keep Ray from hiding devices: none."""
        return []

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        """No compute capability."""
        return None, None

    def is_ipc_supported(self) -> bool:
        """No device memory to share between processes."""
        return False

    def cudart(self) -> None:
        """No CUDA runtime."""
        return None

    def manual_seed(self, seed: int) -> None:
        """Seed torch's generator; there is none of a device."""
        torch.manual_seed(seed)

    manual_seed_all = manual_seed
    set_device = synchronize = set_allocator_settings = empty_cache = _nothing
    profiler_start = profiler_stop = _nothing

    @contextmanager
    def nvtx_range(self, msg: str):
        """No ranges of a GPU's profiler."""
        yield

    def rollout_env_vars(self) -> dict[str, str]:
        """What vLLM's build for CPUs needs to share the machine."""
        return dict(VLLM_ENVIRONMENT)
