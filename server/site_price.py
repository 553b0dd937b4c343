"""The price of noise for whole sites, as it is told before a run begins."""

import math
from collections.abc import Iterator, Mapping

from server.aggregation import AGGREGATORS
from server.site_noise import SiteNoise, in_words
from shared.adapter import AdapterLayout, Tower
from shared.config import JobConfig
from shared.privacy.accountant import site_level_price


def site_price(
    job: JobConfig, layout: AdapterLayout, training: Mapping[Tower, int]
) -> Iterator[str]:
    """Yield what a job's noise for whole sites promises and costs; nothing for other jobs.

    Args:
        job: The job.
        layout: Which layers carry an adapter.
        training: How many sites train each tower; the one with the fewest has the most noise.
    """
    if not job.privacy.for_sites:
        return
    noise, delta = SiteNoise.of(job, layout), job.privacy.delta
    rule = AGGREGATORS[job.aggregate.rule](job.aggregate)
    numbers = max(layout.entries(rule.trains(number)) for number in (1, 2))
    sites = min((number for number in training.values() if number), default=1)
    price = site_level_price(sites, noise.multiplier, job.rounds, delta, numbers)
    yield (
        f"Noise for whole sites: {noise.multiplier:.3g} times the clipping norm on their sum, "
        f"epsilon {price.epsilon:.3g} at delta {delta:g} over {job.rounds} rounds; with {sites} "
        f"sites to a tower {in_words(price)}"
    )
    if price.noise_to_signal > 1:
        enough = math.ceil(noise.multiplier * math.sqrt(numbers))
        yield (
            "Warning: the noise outweighs what all sites together can say in a round, so expect "
            f"the adapter to learn little or nothing; it takes {enough} sites to a tower for noise "
            "as long as their longest step, or fewer rounds, a larger epsilon, a smaller lora.rank"
        )
