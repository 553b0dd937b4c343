"""What a site owns and a job may not decide: its name, data, folders and device."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.data.sources import SiteSource
from client.keeping import IN_THE_CLEAR, Keeping
from client.site_key import KeySource
from shared.errors import ConfigError
from shared.results import Model
from shared.toml_files import first_problem, read_toml

Device = Literal["auto", "cpu", "cuda"]

PIXELS: Final = "pixels"
"""Folder of the prepared pictures in the site's own."""


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
        pictures_on_disk: Whether prepared pictures are kept, in the clear, for the next start.
        keeping: How the other private files in ``state`` are kept.
    """

    name: str
    source: SiteSource
    state: Path
    references: Mapping[Model, Path] = field(default_factory=dict)
    device: Device = "cpu"
    held: Path | None = None
    proxy: SiteSource | None = None
    pictures_on_disk: bool = True
    keeping: Keeping = IN_THE_CLEAR

    @property
    def pixels(self) -> Path | None:
        """Folder of the site's prepared pictures; ``None`` if they stay in memory."""
        return self.state / PIXELS if self.pictures_on_disk else None


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
        sealing: Where the key is to be had that the site's state is sealed with; ``None`` if it is
            kept in the clear.
    """

    site: SiteSettings
    policy: Path
    socket: Path
    base: Path | None
    threads: int
    answer_seconds: float
    sealing: KeySource | None = None


class _DataTable(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    table: Path
    root: Path | None = None
    site_column: str | None = None
    columns: dict[str, str] = {}
    modality: Literal["both", "image", "text"] = "both"
    accept: tuple[str, ...] = ()


class _SealingTable(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    key_file: Path | None = None
    passphrase: str | None = None
    credential: Annotated[str, Field(pattern=r"^[\w.-]{1,128}$")] | None = None
    pictures: Literal["memory", "disk"] = "memory"
    """Where prepared pictures are kept; on the disk they are in the clear."""


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
    sealing: _SealingTable | None = None


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
    state, sealing = home / content.state, content.sealing
    return AgentSettings(
        site=SiteSettings(
            content.name,
            source,
            state,
            references,
            content.device,
            proxy=public,
            pictures_on_disk=sealing is None or sealing.pictures == "disk",
        ),
        policy=home / content.policy,
        socket=home / content.socket,
        base=home / content.base if content.base else None,
        threads=content.threads,
        answer_seconds=content.answer_seconds,
        sealing=_key_source(path, state, sealing) if sealing else None,
    )


def _key_source(path: Path, state: Path, table: _SealingTable) -> KeySource:
    """Return where the key is to be had; relative paths start at the site file's folder.

    Raises:
        ConfigError: If that is not said, or the key would lie beside what it opens.
    """
    file = path.absolute().parent / table.key_file if table.key_file else None
    return KeySource.one_of(f"{path}: [sealing]", state, file, table.passphrase, table.credential)
