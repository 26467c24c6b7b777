"""What verl needs to treat a machine without accelerators as a device; a run on GPUs imports nothing from here."""

# For vLLM's build for CPUs: GiB of its KV cache, which would otherwise be most of the memory, and no pinning of its
# threads to cores, where other processes' are too.
VLLM_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
