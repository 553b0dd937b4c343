"""Who a coordinator is to its sites: the consortium in its folder, if there is one."""

from pathlib import Path

from server.provisioning.folder import ConsortiumFolder, ConsortiumPaths
from server.signed_post import CoordinatorIdentity


def coordinator_identity(home: Path) -> CoordinatorIdentity | None:
    """Return what a coordinator signs with, and whose signatures count.

    Without a consortium requests go out unsigned; sites that joined one refuse those.

    Args:
        home: The coordinator's folder.

    Raises:
        IdentityError: If there is a consortium and it cannot be used; nothing goes out then.
    """
    if not ConsortiumPaths.of(home).folder.exists():
        return None
    folder = ConsortiumFolder.open(home)
    folder.roster()
    return CoordinatorIdentity(folder.key, folder.signing_keys, folder.consortium.number)
