"""Secure aggregation among simulated sites: the protocol itself, every site with keys of its own.

What a consortium's keys and roster do in a deployment is done here in memory, for one process:
a session does not outlive it, and neither need the keys.
"""

import secrets
from collections.abc import Sequence

from client.policy import SitePolicy
from client.secure_sum import SecureSums
from client.settings import SiteSettings
from client.summed_once import SummedOnce
from server.secure_session import Members
from shared.security.secagg.session import LEAST_SITES, Demands
from shared.security.signing import SigningKey


class SimulatedConsortium:
    """The keys of simulated sites, each of which knows all the others'.

    Args:
        sites: Their names.
    """

    def __init__(self, sites: Sequence[str]) -> None:
        self._number = secrets.token_hex(16)
        self._keys = {site: SigningKey.new() for site in sites}

    @property
    def members(self) -> Members:
        """Who may take part, as the coordinator knows it."""
        public = {site: key.public for site, key in self._keys.items()}
        return Members(self._number, public.get)

    def sums(self, site: SiteSettings, policy: SitePolicy) -> SecureSums:
        """Return what a site does in secure sums.

        Args:
            site: The site.
            policy: Its own.

        Raises:
            StorageError: If what it summed before cannot be read.
        """
        key = self._keys[site.name]
        demands = Demands(
            site=site.name,
            key=key.public,
            consortium=self._number,
            roster={name: (each.public,) for name, each in self._keys.items()},
            least_sites=max(LEAST_SITES, policy.minimum_cohort),
            least_summed=policy.minimum_summed,
            curious_sites=policy.curious_sites,
        )
        return SecureSums(key, lambda: demands, SummedOnce(site.state / "summed.json"))
