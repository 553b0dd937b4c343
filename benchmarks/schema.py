"""What a benchmark writes: one JSON file, read by ``benchmarks.table`` and by tests.

The result is the ratios; seconds stand beside them as context, because they belong to one
machine on one day.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Machine(_Frozen):
    """Where it was measured.

    Attributes:
        processor: Name of the processor.
        cores: Cores that this process may use.
        flags: Those of the processor's abilities that decide how fast matrices are multiplied.
        memory_bytes: Main memory.
        accelerator: Name of the GPU, if there is one.
        versions: Of the libraries that do the work.
    """

    processor: str
    cores: int
    flags: list[str]
    memory_bytes: int
    accelerator: str | None
    versions: dict[str, str]


class Load(_Frozen):
    """How much of the machine the run had to itself.

    Attributes:
        average: Load average over a minute, before and after the run.
        probes: Of every spin probe: CPU time over wall time of one spinning thread per core,
            1 on a machine that has nothing else to do.
        share: Mean of the probes.
        contended: The share is below 0.9: others were at work, and times say little.
    """

    average: tuple[float, float]
    probes: list[float]
    share: float
    contended: bool


class Gate(_Frozen):
    """A numerical check that was made before the clock was started."""

    name: str
    value: float
    limit: float
    passed: bool


class Arm(_Frozen):
    """One of the things that are compared.

    Attributes:
        name: What it is.
        threads: Threads of each of its processes.
        processes: How many processes.
        wall: Seconds of every repeat.
        cpu: CPU seconds of every repeat, over all processes and threads; empty if not known.
        wall_median: Median of ``wall``.
        cpu_median: Median of ``cpu``.
    """

    name: str
    threads: int
    processes: int
    wall: list[float]
    cpu: list[float]
    wall_median: float
    cpu_median: float | None


class Target(_Frozen):
    """What the ratio should be."""

    bound: Literal["at least", "at most"]
    value: float


class Ratio(_Frozen):
    """The result: how two arms compare, or what share of something was reached.

    Attributes:
        name: What is divided by what, in words.
        value: Median over the repeats of the ratio within a repeat.
        low: Smallest of the repeats.
        high: Largest of the repeats.
        cpu: The same ratio in CPU time, where both arms do the same work.
        target: If there is one.
    """

    name: str
    value: float
    low: float
    high: float
    cpu: float | None = None
    target: Target | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; ``None`` without one."""
        if self.target is None:
            return None
        if self.target.bound == "at least":
            return self.value >= self.target.value
        return self.value <= self.target.value


class Row(_Frozen):
    """One setting: its arms, its ratios, and further numbers.

    Attributes:
        name: The setting.
        gates: What was checked first.
        arms: What was timed.
        ratios: The result.
        numbers: Context by name, the unit in the name.
    """

    name: str
    gates: list[Gate] = []
    arms: list[Arm] = []
    ratios: list[Ratio] = []
    numbers: dict[str, float] = {}


class Missing(_Frozen):
    """A row that was not measured, and why."""

    name: str
    reason: str


class Report(_Frozen):
    """One run of one benchmark."""

    format: Literal[1] = 1
    benchmark: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    title: str
    command: str
    created: str
    seconds: float
    repeats: int
    machine: Machine
    load: Load
    rows: list[Row]
    not_measured: list[Missing] = []
