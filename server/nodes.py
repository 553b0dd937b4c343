"""Which nodes the SuperLink lets in: those of the roster's active sites, and no other."""

from dataclasses import dataclass
from datetime import UTC, datetime

from server.provisioning.folder import ConsortiumFolder
from shared.flower_calls import Node, SuperLink
from shared.security.node_keys import pem_of


@dataclass(frozen=True)
class NodeChanges:
    """What was changed at the SuperLink.

    Attributes:
        registered: Names of sites whose node was let in.
        unregistered: Numbers of nodes that are let in no more.
    """

    registered: tuple[str, ...] = ()
    unregistered: tuple[int, ...] = ()


def keep_nodes(consortium: ConsortiumFolder, superlink: SuperLink) -> NodeChanges:
    """Let the SuperLink know the nodes of the roster as it is now.

    Nothing is remembered in between: what the SuperLink says it knows is compared with the
    roster, so that a new database, a restart or a command missed make no difference.

    Raises:
        FlowerError: If the SuperLink does not answer, or does not do it.
        IdentityError: If the roster is damaged.
    """
    wanted = node_keys(consortium, datetime.now(UTC))
    known = {node.key: node for node in superlink.nodes() if node.status != "unregistered"}
    gone = [node.number for key, node in known.items() if key not in wanted]
    for number in gone:
        superlink.unregister(number)
    new = [(key, site) for key, site in wanted.items() if key not in known]
    for key, site in new:
        superlink.register(site, key)
    return NodeChanges(tuple(site for _, site in new), tuple(gone))


def node_keys(consortium: ConsortiumFolder, now: datetime) -> dict[bytes, str]:
    """Return the site of every node key that counts at a moment, by the key in PEM."""
    return {
        pem_of(keys.node_key): member.name
        for member in consortium.roster().members
        if member.status == "active"
        for keys in member.keys
        if keys.until is None or keys.until > now
    }


def online_sites(consortium: ConsortiumFolder, superlink: SuperLink) -> dict[str, str]:
    """Return what the SuperLink says of every site's node: ``online``, ``offline``, ``registered``.

    Raises:
        FlowerError: If the SuperLink does not answer.
    """
    names = node_keys(consortium, datetime.now(UTC))
    found: dict[str, str] = {}
    for node in sorted(superlink.nodes(), key=_least_online_first):
        if node.key in names:
            found[names[node.key]] = node.status
    return found


def _least_online_first(node: Node) -> int:
    return ("unregistered", "registered", "offline", "online").index(node.status)
