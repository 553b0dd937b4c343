"""What a device's errors mean: too little memory, or a device that is gone.

torch has no type of its own for either on every device, so the runtime's fixed sentences are
looked for; no other text of an error is ever shown.
"""

from typing import Final

import torch

from shared.errors import TrainingError

OUT_OF_MEMORY: Final = "out-of-memory"
DEVICE_LOST: Final = "device-lost"

_NO_MEMORY: Final = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "HIP error: out of memory",
)

# After any of these a process can do nothing more with its device, whether that fell off the bus
# or a kernel on it failed: only a new process can.
_LOST: Final = (
    "device-side assert triggered",
    "unspecified launch failure",
    "an illegal memory access was encountered",
    "misaligned address",
    "uncorrectable ECC error encountered",
    "uncorrectable NVLink error",
    "hardware stack error",
    "the launch timed out and was terminated",
    "busy or unavailable",
    "no CUDA-capable device is detected",
    "GPU is lost",
    "device lost",
    "CUDA error: unknown error",
    "CUBLAS_STATUS_EXECUTION_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def lost_device(error: BaseException) -> str | None:
    """Return what a runtime says of a device that is gone, in its fixed words; else ``None``."""
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return None
    text = str(error).casefold()
    return next((words for words in _LOST if words.casefold() in text), None)


def device_lost(words: str) -> TrainingError:
    """Return what a site is told whose device is gone; ``words`` from ``lost_device``."""
    return TrainingError(
        DEVICE_LOST,
        f"the device that trains this site stopped working ({words}); this process cannot use it "
        "any more: check it (on NVIDIA with nvidia-smi), then start again",
    )


def does_not_fit() -> TrainingError:
    """Return what a site is told that does not fit into memory even alone."""
    free = ""
    if torch.cuda.is_available():
        free = f" ({torch.cuda.mem_get_info()[0] / 2**30:.1f} GiB free on the device)"
    return TrainingError(
        OUT_OF_MEMORY,
        f"one site alone does not fit into memory{free}; lower train.batch_size or "
        "model.max_tokens, adapt fewer layers (lora.layers = 'top:2'), or use "
        "model.precision = 'bfloat16'",
    )
