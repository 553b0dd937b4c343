"""What secure aggregation costs: sites, parameters, drop-outs, in seconds and bytes.

Every site is carried out for real, one after the other on one thread; its seconds are those of
all five stages, the coordinator's those of taking in and unmasking. In the rows' second half as
many sites disappear as may, all after they shared their secrets and before their vectors arrive,
which costs the coordinator most. The transfers themselves are not in it, only their bytes: four
exchanges more than without, of which only the vector is large, and that is sent anyway.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.schema import Arm, Gate, Row
from benchmarks.session import Session, standard_parser
from benchmarks.timing import Contender, arm_of, at_most, ratio_of
from shared.security.secagg.coordinator import CoordinatorSum
from shared.security.secagg.session import Participant, least_threshold
from shared.security.secagg.session import Session as SecureSession
from shared.security.secagg.site import SiteSum
from shared.security.signing import SigningKey

SITES: Final = (10, 20, 50)
ENTRIES: Final[dict[str, int]] = {"0.5 M": 491_520, "4.4 M": 4_423_680}
"""LoRA on CLIP ViT-B/16: rank 8 on query and value; rank 16 on attention and MLP."""
ROUND: Final = 60.0
"""Seconds of training in a round."""
MOST_SHARE: Final = 0.10
_NOTHING: Final = "0" * 64

Result = TypeVar("Result")
Answers = dict[str, bytes]
"""Messages by site."""


@dataclass
class Clock:
    """Seconds that somebody worked, on the wall and of a processor."""

    wall: float = 0.0
    cpu: float = 0.0

    def time(self, work: Callable[[], Result]) -> Result:
        """Do some work, and add its time."""
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu
        return result


@dataclass
class Cost:
    """What one session took.

    Attributes:
        sites: Every site's time, all stages.
        server: The coordinator's time.
        up: Bytes that every site sent.
        down: Bytes that every site was sent.
        wrong: Entries of the sum that are not what they should be.
    """

    sites: dict[str, Clock]
    server: Clock = field(default_factory=Clock)
    up: Counter[str] = field(default_factory=Counter)
    down: Counter[str] = field(default_factory=Counter)
    wrong: int = 0

    def together(self, of: Callable[[Clock], float]) -> float:
        """Return the time of the slowest site and of the coordinator, one after the other."""
        return max(of(site) for site in self.sites.values()) + of(self.server)


def agreed(sites: int, entries: int) -> tuple[SecureSession, dict[str, SigningKey]]:
    """Return a session, and the sites' long-term keys."""
    keys = {f"site-{number:02d}": SigningKey.new() for number in range(sites)}
    return SecureSession(
        consortium="benchmark",
        run="benchmark",
        round=1,
        attempt=1,
        base=_NOTHING,
        job=_NOTHING,
        adapter=_NOTHING,
        form=_NOTHING,
        entries=entries,
        scale=1.0,
        clip_norm=16.0,
        total_weight=sites,
        threshold=least_threshold(sites),
        participants=tuple(Participant(name=n, key=key.public) for n, key in keys.items()),
    ), keys


def carry_out(sites: int, entries: int, drops: int) -> Cost:
    """Carry one session out.

    Args:
        sites: How many take part.
        entries: Length of their vectors.
        drops: How many disappear before their vectors arrive.
    """
    session, keys = agreed(sites, entries)
    cost = Cost({name: Clock() for name in keys})
    parts = {n: cost.sites[n].time(partial(SiteSum, session, n, k)) for n, k in keys.items()}
    server = cost.server.time(partial(CoordinatorSum, session))
    expected = np.zeros(entries, np.uint32)
    generator = np.random.default_rng(0)

    def vector() -> NDArray[np.uint32]:
        made = generator.integers(0, 2**32, entries, dtype=np.uint32)
        np.add(expected, made, out=expected)
        return made

    def stage(questions: dict[str, bytes], answer: Callable[[str], Callable[[], bytes]]) -> Answers:
        """Ask all; what ``answer`` does before it returns is no work of the site's."""
        for name, question in questions.items():
            said = cost.sites[name].time(answer(name))
            cost.server.time(partial(server.take, name, said))
            cost.down[name] += len(question)
            cost.up[name] += len(said)
        return cost.server.time(server.close)

    asked = stage(dict.fromkeys(keys, b""), lambda n: parts[n].advertise)
    asked = stage(asked, lambda n: partial(parts[n].share, asked[n]))
    for name in list(keys)[:drops]:
        del asked[name], cost.sites[name]
    asked = stage(asked, lambda n: partial(parts[n].mask, asked[n], vector()))
    asked = stage(asked, lambda n: partial(parts[n].agree, asked[n]))
    stage(asked, lambda n: partial(parts[n].reveal, asked[n]))
    cost.wrong = int(np.count_nonzero(server.result().total != expected))
    return cost


def measure(session: Session, sites: int, words: str) -> None:
    """Measure one number of sites and of parameters, without drop-outs and with most."""
    entries, most = ENTRIES[words], sites - least_threshold(sites)
    session.say(f"{sites} sites, {words} parameters")
    found: dict[int, list[Cost]] = {0: [], most: []}
    for _ in range(session.repeats):
        session.watch.probe()
        for drops, costs in found.items():
            costs.append(carry_out(sites, entries, drops))
    wrong = sum(cost.wrong for costs in found.values() for cost in costs)
    every, worst = [cost for costs in found.values() for cost in costs], found[most]
    arms = [_arm("a site, all stages", [clock for c in every for clock in c.sites.values()])]
    for drops, costs in found.items():
        arms.append(_arm(f"coordinator, {drops} drop out", [cost.server for cost in costs]))
    shares = [cost.together(lambda clock: clock.wall) / ROUND for cost in worst]
    busy = median(cost.together(lambda clock: clock.cpu) for cost in worst) / ROUND
    session.add(
        Row(
            name=f"{sites} sites x {words} parameters",
            gates=[Gate(name="wrong entries of the sum", value=wrong, limit=0, passed=not wrong)],
            arms=arms,
            ratios=[
                ratio_of(
                    f"slowest site + coordinator with {most} drop-outs / {ROUND:.0f} s of training",
                    shares,
                    at_most(MOST_SHARE),
                    cpu=busy,
                )
            ],
            numbers={
                "bytes up per site": median(each for cost in every for each in cost.up.values()),
                "bytes down per site": median(
                    each for cost in every for each in cost.down.values()
                ),
                "bytes up beside the vector": median(
                    each - 4 * entries for cost in found[0] for each in cost.up.values()
                ),
            },
        )
    )


def _arm(name: str, clocks: list[Clock]) -> Arm:
    walls, busy = [clock.wall for clock in clocks], [clock.cpu for clock in clocks]
    return arm_of(Contender(name, lambda: None, 1), walls, busy)


def main() -> int:
    """Run the benchmark."""
    parser = standard_parser(__doc__)
    parser.add_argument("--sites", type=int, nargs="+", default=SITES, help="numbers of sites")
    sizes = "numbers of parameters (default: all)"
    parser.add_argument("--parameters", nargs="+", choices=ENTRIES, default=[*ENTRIES], help=sizes)
    options = parser.parse_args()
    session = Session("secagg", "Secure aggregation", options.repeats)
    for words in options.parameters:
        for sites in options.sites:
            measure(session, sites, words)
    return session.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
