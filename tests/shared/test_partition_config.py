"""[partition] in a job: what goes together, what is refused, and jobs without it."""

import tomllib

import pytest

from server.job_text import to_toml
from shared.config import JobConfig, parse_job, rate_of
from shared.errors import ConfigError


def job(**partition):
    return parse_job({"name": "x", "partition": partition})


def test_a_job_without_a_partition_keeps_its_digest():
    """The digest must not know of the table, so that runs of before can be resumed."""
    plain = JobConfig(name="x")
    assert not plain.partition.active
    assert job(by="sites").digest() == plain.digest()
    assert job(by="iid", sites=2).digest() != plain.digest()
    assert job(by="iid", sites=2).digest() != job(by="iid", sites=3).digest()


def test_a_rate_is_a_number_or_a_table_and_survives_a_file():
    config = job(noisy_pairs=0.2, missing_text={"all": 0.1, "north": 0.5})
    assert rate_of(config.partition.noisy_pairs, "north") == 0.2
    assert rate_of(config.partition.missing_text, "north") == 0.5
    assert rate_of(config.partition.missing_text, "south") == 0.1
    assert rate_of(config.partition.missing_image, "south") == 0.0
    assert parse_job(tomllib.loads(to_toml(config))) == config


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"by": "dirichlet"}, "needs partition.sites"),
        ({"by": "dirichlt"}, "did you mean 'dirichlet'"),
        ({"by": "iid", "sites": 3, "alpha": 1.0}, "alpha is not used by partition.by = 'iid'"),
        ({"by": "quantity", "sites": 3, "alpha": 1.0}, "alpha is not used"),
        ({"by": "column", "column": "a", "sites": 3}, "sites is not used"),
        ({"by": "column"}, "needs partition.column"),
        ({"by": "dirichlet", "sites": 3, "alpha": 0.0}, "expected at least 0.001"),
        ({"kinds": {"paired": 0.5, "text": 0.4}}, "must sum to 1, not to 0.9"),
        ({"kinds": {"video": 1.0}}, "expected 'paired'"),
        ({"noisy_pairs": 1.5}, "expected at most 1"),
        ({"missing_image": 0.7, "missing_text": {"a": 0.5}}, "of 'a' sum to 1.2"),
        ({"missing_image": {"a": 0.7}, "missing_text": 0.5}, "of 'a' sum to 1.2"),
        ({"noisy": 0.1}, "unknown key 'noisy' in [partition]; did you mean 'noisy_pairs'"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(tree, words):
    with pytest.raises(ConfigError) as caught:
        job(**tree)
    assert words in str(caught.value)


def test_quantity_from_a_dirichlet_takes_its_alpha():
    assert job(by="quantity", sites=3, sizes="dirichlet", alpha=1.0).partition.alpha == 1.0


def test_sites_of_before_cannot_be_named_beside_a_partition():
    tree = {"name": "x", "partition": {"by": "iid", "sites": 2}, "data": {"image_only": ["a"]}}
    with pytest.raises(ConfigError, match=r"data\.image_only names sites as they are"):
        parse_job(tree)


def test_the_site_column_is_the_column_if_none_is_given():
    tree = {"name": "x", "partition": {"by": "column"}, "data": {"folder": "f", "site_column": "s"}}
    assert parse_job(tree).partition.active
