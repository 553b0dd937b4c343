"""What a site owns and a job may not decide: its name, data, folders and device."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.data.sources import SiteSource
from shared.errors import ConfigError
from shared.results import Model
from shared.toml_files import first_problem, read_toml

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class SiteSettings:
    """One site.

    Attributes:
        name: The site's name in the federation.
        source: Where its records are.
        state: The site's own folder: personal adapter, held adapters, audit log.
        references: Further shared adapters to score beside the federation's, as files; a
            file that does not exist is left out.
        device: What to compute on.
        held: Folder where parts of the shared adapter are held, if not in ``state``.
        proxy: The public paired set, for jobs whose sites exchange features of it.
    """

    name: str
    source: SiteSource
    state: Path
    references: Mapping[Model, Path] = field(default_factory=dict)
    device: Device = "cpu"
    held: Path | None = None
    proxy: SiteSource | None = None

    @property
    def pixels(self) -> Path:
        """Folder of the site's prepared pictures."""
        return self.state / "pixels"


@dataclass(frozen=True)
class AgentSettings:
    """What an agent's process needs beside its site.

    Attributes:
        site: The site.
        policy: The site's ``policy.toml``.
        socket: Where the courier finds the agent; only the socket's owner can.
        base: The base's folder here; without it only ``consilia-tiny`` can be used.
        threads: Threads for numerical work; part of what makes results repeat bit for bit.
        answer_seconds: A task that takes longer is answered with ``working``, and goes on.
    """

    site: SiteSettings
    policy: Path
    socket: Path
    base: Path | None
    threads: int
    answer_seconds: float


class _DataTable(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    table: Path
    root: Path | None = None
    site_column: str | None = None
    columns: dict[str, str] = {}
    modality: Literal["both", "image", "text"] = "both"
    accept: tuple[str, ...] = ()


class _SiteFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][\w.-]*$")]
    state: Path
    device: Device = "auto"
    data: _DataTable
    references: dict[Literal["local"], Path] = {}
    proxy: Path | None = None
    """Table of the public paired set."""
    policy: Path = Path("policy.toml")
    socket: Path = Path("run/agent.sock")
    base: Path | None = None
    threads: Annotated[int, Field(ge=1)] = 1
    answer_seconds: Annotated[float, Field(gt=0, le=40)] = 20.0


def load_agent(path: Path) -> AgentSettings:
    """Read a ``site.toml``; relative paths start at the file's folder.

    Raises:
        ConfigError: One line: file, key, and what was expected.
    """
    try:
        content = _SiteFile.model_validate(read_toml(path, "site file"))
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_problem(error, _SiteFile)}") from None
    home, data = path.absolute().parent, content.data
    table = home / data.table
    source = SiteSource(
        name=content.name,
        table=table,
        root=home / data.root if data.root else table.parent,
        site_column=data.site_column,
        columns=data.columns,
        modality=data.modality,
        accept=data.accept,
    )
    references: dict[Model, Path] = {m: home / file for m, file in content.references.items()}
    public = None
    if content.proxy is not None:
        public = SiteSource("proxy", home / content.proxy, (home / content.proxy).parent)
    return AgentSettings(
        site=SiteSettings(
            content.name, source, home / content.state, references, content.device, proxy=public
        ),
        policy=home / content.policy,
        socket=home / content.socket,
        base=home / content.base if content.base else None,
        threads=content.threads,
        answer_seconds=content.answer_seconds,
    )
