"""All checks in their order; each is a function of what is looked at."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from client.check import agreement, forecast, machine, membership, network
from client.check.finding import Finding, NotCheckedError
from client.check.sealing import judge_sealing
from client.check.subject import Subject
from client.policy_commands import against
from client.provisioning.folder import FOLDER
from client.refusals import place_of
from client.settings import AgentSettings
from client.signed_agent import party_of
from shared.errors import ConsiliaError


@dataclass(frozen=True)
class Check:
    """One line of the preflight.

    Attributes:
        name: Of the line.
        look: Looks, and says what it found.
        network: Whether it needs the way to the gateway.
    """

    name: str
    look: Callable[[Subject], Finding]
    network: bool = False


def _site_file(subject: Subject) -> Finding:
    settings = subject.settings_or_why
    if isinstance(settings, AgentSettings):
        return Finding("", "ok", f"{subject.config}: site {settings.site.name}")
    do = "mend the file; what it may say is in docs/deploy.md"
    return Finding("", "fail", str(settings), "a site file", do)


def _kit(subject: Subject) -> Finding:
    if not (subject.home / FOLDER).is_dir():
        return membership.no_identity(subject.home)
    return membership.judge_kit(subject.identity_or_why, subject.settings_or_why, subject.now)


def _keys(subject: Subject) -> Finding:
    return membership.judge_keys(subject.identity)


def _name(subject: Subject) -> Finding:
    return network.judge_name(subject.contact)


def _port(subject: Subject) -> Finding:
    return network.judge_port(subject.contact)


def _certificate(subject: Subject) -> Finding:
    return network.judge_certificate(subject.contact, subject.kit, subject.now)


def _health(subject: Subject) -> Finding:
    return network.judge_health(subject.contact)


def _clock(subject: Subject) -> Finding:
    return network.judge_clock(subject.contact)


def _versions(_subject: Subject) -> Finding:
    return network.judge_versions()


def _device(subject: Subject) -> Finding:
    settings = subject.settings
    return machine.judge_device(settings.site.device, machine.gpu(), settings.threads)


def _modes(subject: Subject) -> Finding:
    settings = subject.settings
    state, place = settings.site.state, settings.socket.parent
    identity = subject.home / FOLDER
    files = machine.private_files(subject.config, settings.policy, state, place, identity)
    return machine.judge_modes(files, os.geteuid())


def _sealing(subject: Subject) -> Finding:
    return judge_sealing(subject.settings)


def _socket(subject: Subject) -> Finding:
    path = subject.settings.socket
    return machine.judge_socket(path, machine.socket_state(path))


def _agents(subject: Subject) -> Finding:
    settings = subject.settings
    state, socket_is = settings.site.state, machine.socket_state(settings.socket)
    return machine.judge_agents(state, socket_is, held=machine.is_held(state))


def _policy(subject: Subject) -> Finding:
    return agreement.judge_policy(subject.policy_or_why, subject.now.date())


def _job(subject: Subject) -> Finding:
    name = str(subject.job_file) if subject.job_file else None
    return agreement.judge_job(subject.job_or_why, name)


def _base(subject: Subject) -> Finding:
    return agreement.judge_base(subject.base_or_why, subject.job, subject.policy_or_why)


def _encoder(subject: Subject) -> Finding:
    subject.base  # noqa: B018 - without it there is nothing to say
    encoder = subject.encoder_or_why
    if isinstance(encoder, ConsiliaError):
        do = "ask the coordinator whether the job is for this base"
        return Finding("", "fail", str(encoder), "a base that carries the job's adapter", do)
    height, width = encoder.picture_size
    precision = str(encoder.precision).removeprefix("torch.")
    layers = len(encoder.layout.layers)
    found = f"{layers} adapted layers, pictures of {height} x {width}, {precision}"
    return Finding("", "ok", f"{found}, on {encoder.device}")


def _data(subject: Subject) -> Finding:
    records = subject.records
    return agreement.judge_data(records.check, records.seconds)


def _permission(subject: Subject) -> Finding:
    policy, job = subject.policy, subject.job
    if (subject.home / FOLDER).exists():
        subject.kit  # noqa: B018 - who asks stands in it
    objections = against(policy, job, party_of(subject.home), subject.now.date())
    data = subject.records.data
    patients = None if data is None else data.splits["train"].counts().patients
    return agreement.judge_permission(objections, patients, policy.minimum_patients)


def _training(subject: Subject) -> Finding:
    return agreement.judge_training(subject.measured_or_why)


def _time(subject: Subject) -> Finding:
    return forecast.judge_time(subject.measured, forecast.forecast(subject), subject.job)


def _memory(subject: Subject) -> Finding:
    device = machine.gpu() if subject.encoder.device.type == "cuda" else None
    found = forecast.forecast(subject)
    return forecast.judge_memory(found, forecast.memory_here(), device.total if device else None)


def _traffic(subject: Subject) -> Finding:
    return forecast.judge_traffic(forecast.traffic_of(subject), subject.job.rounds)


def _disk(subject: Subject) -> Finding:
    state = subject.settings.site.state
    try:
        needed = forecast.disk_needed(subject, forecast.traffic_of(subject))
    except NotCheckedError:
        needed = None
    return forecast.judge_disk(state, forecast.free_bytes(state), needed)


CHECKS: Final[tuple[Check, ...]] = (
    Check("site file", _site_file),
    Check("kit", _kit),
    Check("keys", _keys),
    Check("gateway's name", _name, network=True),
    Check("outbound port", _port, network=True),
    Check("certificate", _certificate, network=True),
    Check("coordinator", _health, network=True),
    Check("clock", _clock, network=True),
    Check("versions", _versions),
    Check("device", _device),
    Check("file modes", _modes),
    Check("sealing", _sealing),
    Check("socket", _socket),
    Check("agent", _agents),
    Check("policy", _policy),
    Check("job", _job),
    Check("base", _base),
    Check("encoder", _encoder),
    Check("data", _data),
    Check("policy and job", _permission),
    Check("training step", _training),
    Check("forecast: time", _time),
    Check("forecast: memory", _memory),
    Check("forecast: traffic", _traffic),
    Check("disk", _disk),
)
"""In the order in which they are printed; later ones build on earlier ones."""

_OFFLINE: Final = Finding(
    "network",
    "warn",
    "not checked, because of --offline",
    "the way to the gateway",
    "run it again without --offline, where the courier will run",
)


def findings(
    subject: Subject, *, offline: bool = False, begin: Callable[[str], None] = lambda _name: None
) -> Iterator[Finding]:
    """Look at everything, and yield what was found as it is found.

    Args:
        subject: What to look at.
        offline: Leave out what needs the gateway, and say so once.
        begin: Told of every check before it is made.
    """
    said = False
    for check in CHECKS:
        begin(check.name)
        if not (offline and check.network):
            yield outcome(check, subject)
        elif not said:
            said = True
            yield _OFFLINE


def outcome(check: Check, subject: Subject) -> Finding:
    """Return what one check found; whatever goes wrong, it is one line."""
    try:
        return replace(check.look(subject), name=check.name)
    except NotCheckedError as why:
        do = "mend that first"
        return Finding(check.name, "warn", f"not checked: {why}", "", do)
    except ConsiliaError as error:
        return Finding(check.name, "fail", str(error), "see the message", "as it says")
    except Exception as error:  # its text may quote a record
        where = f"{type(error).__name__} at {place_of(error)}"
        return Finding(check.name, "fail", where, "no error of our own", "please report it")
