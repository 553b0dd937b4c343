"""Which simulated sites train at once: as many as the device works best with, and no more.

A cohort is neighbours in the order of names whose batches together stay within a number of
samples. Who is in it depends on the job and the data only, never on the moment, because a
site's bits depend on it: a run that goes on after an interruption forms the same cohorts.
"""

import os
from collections.abc import Mapping, Sequence

import torch

from client.data.records import SiteData
from shared.adapter import TOWERS
from shared.config import JobConfig
from shared.errors import ConfigError
from shared.model.encoder import DualEncoder
from shared.model.view import AdapterView

CPU_SAMPLES = 128
"""On CPUs more does not fit the cache, and is slower (64 to 128 is fastest)."""

GPU_SAMPLES = 4096
"""Beyond this a GPU has long been busy."""

_SHARE = 0.6
"""Of the free memory, for activations; the rest is for adapters, optimisers and scoring."""


def cohorts(names: Sequence[str], load: Mapping[str, int], most: int) -> list[list[str]]:
    """Split sites into cohorts of neighbours.

    Args:
        names: Sites, in order.
        load: Samples that a site has in one step.
        most: Samples that one step may have; a site with more is alone.
    """
    result: list[list[str]] = []
    size = 0
    for name in names:
        if not result or size + load[name] > most:
            result.append([])
            size = 0
        result[-1].append(name)
        size += load[name]
    return result


def loads(sites: Mapping[str, SiteData], job: JobConfig) -> dict[str, int]:
    """Return how many samples every site has in a step, at most its batch size.

    In an exchange of features a batch of public pairs comes beside the site's own.
    """
    public = job.train.batch_size if job.aggregate.shares_features else 0
    return {
        name: public
        + max(1, min(job.train.batch_size, max(data.examples(tower) for tower in TOWERS)))
        for name, data in sites.items()
    }


def samples_at_once(encoder: DualEncoder, job: JobConfig) -> int:
    """Return how many samples one step should have, by the device and its free memory.

    Raises:
        ConfigError: If not even one site's batch fits into memory.
    """
    if job.simulation.samples_at_once is not None:
        return job.simulation.samples_at_once
    each = activation_bytes(encoder)
    free = _SHARE * free_memory_bytes(encoder.device)
    fits = int(free // each)
    if fits < job.train.batch_size:
        raise ConfigError(
            f"train.batch_size = {job.train.batch_size}: one step needs about "
            f"{job.train.batch_size * each / 2**30:.1f} GiB of memory for activations, "
            f"{free / 2**30:.1f} GiB are to be had on {encoder.device}; lower train.batch_size or "
            "model.max_tokens, adapt fewer layers (lora.layers = 'top:2'), or set "
            "model.precision = 'bfloat16'"
        )
    most = CPU_SAMPLES if encoder.device.type == "cpu" else GPU_SAMPLES
    # A power of two, so that a little more or less free memory makes no difference.
    return int(min(most, 2 ** (fits.bit_length() - 1)))


def activation_bytes(encoder: DualEncoder) -> int:
    """Return the bytes that training keeps for one pair until its backward pass, measured.

    What four pairs keep more than two do, texts at their longest; frozen weights and adapters
    are in both and cancel.
    """
    return max(1, (_kept_bytes(encoder, 4) - _kept_bytes(encoder, 2)) // 2)


def _kept_bytes(encoder: DualEncoder, pairs: int) -> int:
    stack = encoder.new_stack(1)
    stack.train(("A", "B"))
    encoder.use_stack(stack, AdapterView())
    height, width = encoder.picture_size
    pixels = torch.zeros(pairs, height, width, 1, dtype=torch.uint8)
    tokens = encoder.pad([[1] * encoder.max_tokens] * pairs)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = encoder.encode_images(pixels, [pairs]).sum()
        loss = loss + encoder.encode_texts(tokens, [pairs]).sum()
    del loss
    encoder.use(AdapterView())
    return sum(kept.values())


def free_memory_bytes(device: torch.device) -> int:
    """Return the free memory of a device; of the machine for the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123 - not a real file
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
