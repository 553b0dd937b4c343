"""Which sites work at once, and with which worker.

Cohorts decide bits, so they depend on the job and on who is asked only. Workers decide none.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from simulations.cohorts import cohorts


@dataclass(frozen=True)
class Crowd:
    """The sites of a run, and which of them work at once.

    Attributes:
        names: In order.
        load: Samples that every site trains on in one step.
        samples: Sites whose samples together are no more than this work at once.
    """

    names: Sequence[str]
    load: Mapping[str, int]
    samples: int

    def cohorts(self, numbers: Sequence[int]) -> list[list[int]]:
        """Split requests into cohorts of sites that are neighbours by name.

        Args:
            numbers: The site of every request.

        Returns:
            Which requests are answered at once, by their place; one by one if a site is asked
            twice.
        """
        if len(set(numbers)) < len(numbers):
            return [[place] for place in range(len(numbers))]
        place = {self.names[number]: place for place, number in enumerate(numbers)}
        found = cohorts(list(place), self.load, self.samples)
        return [[place[name] for name in names] for names in found]


@dataclass
class Workers:
    """Workers, and which of them every site was with last.

    Attributes:
        nodes: Flower's node of every worker.
    """

    nodes: Sequence[int]
    _last: dict[int, int] = field(default_factory=dict)

    def share(self, cohorts: Sequence[Iterable[int]]) -> list[int]:
        """Return the node for every cohort: that of its first site, unless it has its share.

        Args:
            cohorts: Sites, by number.
        """
        most = -(-len(cohorts) // len(self.nodes))
        taken = dict.fromkeys(self.nodes, 0)
        chosen = []
        for sites in cohorts:
            node = self._last.get(next(iter(sites)))
            if node is None or taken[node] >= most:
                node = min(self.nodes, key=lambda one: taken[one])
            taken[node] += 1
            self._last.update(dict.fromkeys(sites, node))
            chosen.append(node)
        return chosen
