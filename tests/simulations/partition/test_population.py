"""Phantoms as a population: complete where they are pooled, in one style only if asked."""

import pytest

from client.data.check import check_site
from client.data.sources import SiteSource, find_sites
from shared.config import parse_job
from shared.errors import ConfigError
from simulations.partition.population import population_sites, write_population
from simulations.partition.sites import partition_sources, write_run_partition


def job_of(count=2, **partition):
    return parse_job({"name": "x", "data": {"phantom_sites": count}, "partition": partition})


def test_pooled_phantoms_are_complete_and_others_keep_their_kinds():
    pooled = population_sites(job_of(8, by="iid", sites=2))
    assert {site.kind for site in pooled} == {"paired"}
    assert len({site.style for site in pooled}) == 7
    kept = population_sites(job_of(8, by="sites", noisy_pairs=0.1))
    assert {site.kind for site in kept} == {"paired", "image", "text", "unpaired"}
    plain = population_sites(job_of(8, by="iid", sites=2, keep_style=False))
    assert {(site.style, site.convention_rate) for site in plain} == {("std", 0.0)}


@pytest.mark.parametrize(
    ("partition", "names"),
    [
        ({"by": "column", "column": "style"}, ["german", "univ"]),
        ({"by": "column", "column": "source_site"}, ["klinikum", "university"]),
        ({"by": "sites", "noisy_pairs": 0.2}, ["klinikum", "university"]),
        ({"by": "iid", "sites": 2}, ["site-01", "site-02"]),
    ],
)
def test_sites_are_known_before_phantoms_are_written(tmp_path, partition, names):
    job = job_of(**partition)
    folders = [tmp_path / "data" / name for name in ("university", "klinikum")]
    given = [SiteSource(folder.name, folder / "metadata.csv", folder) for folder in folders]
    assert [s.name for s in partition_sources(tmp_path, given, job)] == names
    with pytest.raises(ConfigError, match="expected style or source_site"):
        partition_sources(tmp_path, given, job_of(by="column", column="scanner"))


def test_a_written_population_is_dealt_out_to_sites_without_problems(tmp_path):
    job = job_of(1, by="iid", sites=2, kinds={"paired": 0.5, "unpaired": 0.5})
    write_population(tmp_path / "data", job)
    given = find_sites(tmp_path / "data")
    expected = [source.table for source in partition_sources(tmp_path, given, job)]
    write_run_partition(tmp_path, given, job)
    sources = partition_sources(tmp_path, given, job)
    assert [source.table for source in sources] == expected
    checks = [check_site(source, quick=True) for source in sources]
    assert [check.errors for check in checks] == [(), ()]
    assert sorted(check.kind for check in checks) == ["paired", "unpaired"]
