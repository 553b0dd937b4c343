"""What the consortium's job will cost this site: time, memory, traffic, disk."""

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from client.check.finding import Finding, NotCheckedError, duration, size
from client.check.measure import Measured
from client.check.subject import Subject
from client.check.traffic import RULES, Sizes, Traffic, forecast_features, forecast_traffic
from client.proxy import load_proxy
from client.service import LARGEST_MESSAGE
from shared.config import JobConfig
from shared.errors import ConsiliaError

_OVERHEAD_SECONDS: Final = 5.0
"""Of a round beside the work: Flower's polling and the start of a process; 4 to 7 were seen."""
_SPARE: Final = 1.25
_LEAST_FREE: Final = 10**9


@dataclass(frozen=True)
class Forecast:
    """What a job will cost.

    Attributes:
        round_seconds: Of a round, from being asked to having answered.
        run_seconds: Of the run: rounds, the fit of the site's own adapter, reading the records.
        memory_bytes: Peak resident memory of the agent.
        device_bytes: Peak memory on the GPU, if there is one.
        traffic: By round; ``None`` if it cannot be told.
    """

    round_seconds: float
    run_seconds: float
    memory_bytes: int
    device_bytes: int | None
    traffic: Traffic | None

    def tree(self) -> dict[str, Any]:
        """Return the forecast for JSON."""
        tree = asdict(self)
        if self.traffic is not None:
            known = ("largest", "total_down", "total_up")
            tree["traffic"] |= {name: getattr(self.traffic, name) for name in known}
        return tree


def forecast(subject: Subject) -> Forecast:
    """Return the forecast, if a step could be measured."""
    measured, job = subject.measured, subject.job
    one = measured.work_seconds + _OVERHEAD_SECONDS
    own = job.personalize.steps * measured.step_seconds if job.personalize.fits else 0.0
    whole = job.rounds * one + own + subject.records.seconds
    return Forecast(one, whole, measured.memory_bytes, measured.device_bytes, traffic_of(subject))


def traffic_of(subject: Subject) -> Traffic | None:
    """Return the traffic of the job; ``None`` if it is about a public set that is not here."""
    data, job, encoder = subject.records.data, subject.job, subject.encoder
    if data is None:
        raise NotCheckedError("the records cannot be used")
    sizes = Sizes(job, encoder.layout, data.name, data.towers)
    if job.aggregate.rule in RULES:
        return forecast_traffic(sizes, subject.members)
    try:
        items = len(load_proxy(subject.settings.site, encoder))
    except ConsiliaError:
        return None
    width = encoder.encode_texts(encoder.tokenize(["a"])).shape[1]
    return forecast_features(sizes, items, width)


def judge_time(measured: Measured, found: Forecast, job: JobConfig) -> Finding:
    """Forecast the time of a round, and whether the coordinator waits so long."""
    work = f"{measured.steps} steps of {duration(measured.step_seconds)}"
    beside = duration(measured.round_seconds)
    words = (
        f"about {duration(found.round_seconds)} a round: {work}, {beside} beside them, about "
        f"{_OVERHEAD_SECONDS:g} s on the way; {job.rounds} rounds and the own adapter: "
        f"{duration(found.run_seconds)}, without the evaluation at the end"
    )
    if measured.rough:
        words += " (from one step, the first, which is the slowest)"
    deadline = job.aggregate.deadline_seconds
    if found.round_seconds > deadline:
        return Finding(
            "",
            "warn",
            words,
            f"the job's deadline of {duration(deadline)} a round",
            "tell the coordinator, who can raise aggregate.deadline_seconds or lower train.steps; "
            "or give the agent a GPU or more threads",
        )
    return Finding("", "ok", words)


def judge_memory(found: Forecast, memory: int | None, device: int | None) -> Finding:
    """Forecast the peak memory.

    Args:
        found: The forecast.
        memory: Bytes that the agent may use here.
        device: Bytes of the GPU.
    """
    words = f"up to {size(found.memory_bytes)}"
    if memory is not None:
        words += f" of {size(memory)}"
    if found.device_bytes is not None and device is not None:
        words += f", and {size(found.device_bytes)} of the GPU's {size(device)}"
    tight = memory is not None and found.memory_bytes * _SPARE > memory
    crowded = device is not None and (found.device_bytes or 0) * _SPARE > device
    if tight or crowded:
        return Finding(
            "",
            "warn",
            words,
            "a quarter more than the peak",
            "give the agent more memory, stop what else runs here, or ask for a smaller "
            "train.batch_size",
        )
    return Finding("", "ok", words)


def judge_traffic(traffic: Traffic | None, rounds: int) -> Finding:
    """Forecast the traffic of a round and of the run."""
    if traffic is None:
        raise NotCheckedError("the job's public set (proxy in site.toml) is not here")
    down, up = sum(traffic.down) / rounds, sum(traffic.up) / rounds
    words = (
        f"down {size(down)}, up {size(up)} a round; {rounds} rounds and what follows: down "
        f"{size(traffic.total_down)}, up {size(traffic.total_up)}; largest message "
        f"{size(traffic.largest)}"
    )
    if traffic.largest > LARGEST_MESSAGE:
        return Finding(
            "",
            "fail",
            words,
            f"messages of at most {size(LARGEST_MESSAGE)}",
            "ask the coordinator for a smaller lora.rank, fewer lora.targets, or a rule that "
            "folds less",
        )
    return Finding("", "ok", words)


def disk_needed(subject: Subject, traffic: Traffic | None) -> int:
    """Return the bytes that the agent will still write into its state."""
    data, encoder = subject.records.data, subject.encoder
    if data is None or traffic is None:
        return 0
    folder = subject.settings.site.pixels
    pixels = sum(split.pixels.size for split in data.splits.values()) if folder else 0
    kept = sum(file.stat().st_size for file in folder.glob("pixels")) if folder else 0
    own = Sizes(subject.job, encoder.layout, data.name, data.towers)
    personal = own.factors(("A", "B"), subject.job.personalize.rank)
    # A file that is replaced is there twice for a moment.
    return max(0, pixels - kept) + 2 * (traffic.held + max(traffic.up) + personal)


def judge_disk(state: Path, free: int, needed: int | None) -> Finding:
    """Whether there is room for what the agent keeps.

    Args:
        state: Its folder.
        free: Bytes that are free there.
        needed: Bytes that it will write; ``None`` if that is not known.
    """
    least = _LEAST_FREE if needed is None else needed
    use = "" if needed is None else f", the job needs about {size(needed)}"
    found = f"{size(free)} free at {state}{use}"
    do = "make room, or move state in site.toml to a larger disk"
    if free < least:
        return Finding("", "fail" if needed is not None else "warn", found, size(least), do)
    if free < 2 * least + _LEAST_FREE // 10:
        return Finding("", "warn", found, "twice as much, to be safe", do)
    return Finding("", "ok", found)


def free_bytes(folder: Path) -> int:
    """Return the bytes that are free where a folder is, or will be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def memory_here() -> int | None:
    """Return the bytes of memory that this process may use: the machine's, or its container's."""
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return machine
    return min(machine, int(limit)) if limit.isdigit() else machine
