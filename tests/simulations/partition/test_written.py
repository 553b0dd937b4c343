"""From tables to tables: pooled, written, read again, refused where that cannot be right."""

import csv
import json

import pytest

from client.data.report import DataOptions
from client.data.sources import find_sites
from shared.config import parse_job
from shared.errors import ConfigError, DataError, RunDirectoryError
from simulations.partition.pool import read_pool
from simulations.partition.sites import partition_sources, tables_to_read, write_run_partition
from simulations.partition.written import find_written, made_by

COLUMNS = ("file_name", "text", "labels", "patient_id", "split", "scanner")


@pytest.fixture
def write_table(tmp_path):
    """Write sites of rows below ``data`` and return that folder."""

    def write(sites, dataset=None, prompts=None):
        folder = tmp_path / "data"
        for name, rows in sites.items():
            site = folder / name
            site.mkdir(parents=True, exist_ok=True)
            with (site / "metadata.csv").open("w", newline="") as file:
                csv.writer(file).writerows([COLUMNS, *rows])
            (site / "dataset.json").write_text(json.dumps((dataset or {}).get(name, {})))
            (site / "prompts.json").write_text(json.dumps((prompts or {}).get(name, {})))
        return folder

    return write


def rows_of(count, start=0, scanner="a"):
    splits = ("train", "train", "train", "val", "test")
    return [
        (
            f"{n}.png",
            f"text, \r of\n{n}",
            "edema" if n % 2 else "none",
            f"p{n}",
            splits[n % 5],
            scanner,
        )
        for n in range(start, start + count)
    ]


def job_of(folder, **partition):
    return parse_job({"name": "x", "data": {"folder": str(folder)}, "partition": partition})


def cells(source):
    with source.table.open(newline="") as file:
        return list(csv.DictReader(file))


def test_written_sites_hold_what_was_pooled_and_find_their_pictures(write_table, tmp_path):
    folder = write_table({"north": rows_of(20), "south": rows_of(20)})
    job = job_of(folder, by="iid", sites=3)
    given = find_sites(folder)
    planned = partition_sources(tmp_path / "run", given, job)
    assert not (tmp_path / "run").exists()
    write_run_partition(tmp_path / "run", given, job)
    found = find_written(tmp_path / "run" / "partition")
    assert [s.table for s in found] == [s.table for s in planned]
    assert [s.name for s in found] == ["site-01", "site-02", "site-03"]
    rows = [row for source in found for row in cells(source)]
    # Both sites have a patient p0: two persons, so both ids and pictures carry the site's name.
    assert {r["patient_id"] for r in rows} == {
        f"{s}/p{n}" for s in ("north", "south") for n in range(20)
    }
    assert {r["file_name"] for r in rows} == {
        f"{s}/{n}.png" for s in ("north", "south") for n in range(20)
    }
    assert {r["text"] for r in rows} == {f"text, \r of\n{n}" for n in range(20)}
    assert all(source.root.resolve() == folder.resolve() for source in found)
    assert {(r["source_site"], r["split"]) for r in rows} == {
        (site, split) for site in ("north", "south") for split in ("train", "val", "test")
    }


def test_one_table_has_one_set_of_patients(write_table):
    folder = write_table({"all": [*rows_of(6, scanner="a"), *rows_of(6, scanner="b")]})
    given = find_sites(folder / "all", site_column="scanner")
    pool = read_pool(given, folder / "all")
    assert len(pool.records) == 12
    assert len(pool.persons) == 6
    assert {r.file_name for r in pool.records} == {f"{n}.png" for n in range(6)}


def test_the_order_of_rows_changes_no_byte(write_table, tmp_path):
    rows = rows_of(30)
    rows += [(f"second-{row[0]}", "follow-up", *row[2:]) for row in rows]
    tables = []
    for turn, ordered in enumerate((rows, rows[::-1])):
        folder = write_table({"north": ordered})
        job = job_of(folder, by="dirichlet", sites=3, noisy_pairs=0.3, missing_text=0.2)
        write_run_partition(tmp_path / f"run{turn}", find_sites(folder), job)
        sites = find_written(tmp_path / f"run{turn}" / "partition")
        tables.append([source.table.read_bytes() for source in sites])
    assert tables[0] == tables[1]
    assert b",yes\r\n" in b"".join(tables[0])


def test_a_resumed_run_uses_what_is_written_and_refuses_what_was_changed(write_table, tmp_path):
    folder = write_table({"north": rows_of(20)})
    job, run, given = job_of(folder, by="iid", sites=2), tmp_path / "run", find_sites(folder)
    write_run_partition(run, given, job)
    before = (run / "partition" / "site-01" / "metadata.csv").read_bytes()
    write_table({"north": rows_of(40)})  # the tables have grown since
    write_run_partition(run, given, job)
    assert partition_sources(run, given, job)[0].table.read_bytes() == before
    with (run / "partition" / "site-01" / "metadata.csv").open("a") as file:
        file.write("x\n")
    with pytest.raises(RunDirectoryError, match="site-01: was changed"):
        partition_sources(run, given, job)
    (run / "partition" / "partition.json").write_text("{")
    with pytest.raises(RunDirectoryError, match="no whole partition"):
        partition_sources(run, given, job)


def test_tables_can_be_read_before_the_run_has_a_folder(write_table, tmp_path):
    folder = write_table({"north": rows_of(20)})
    job = job_of(folder, by="iid", sites=2)
    with tables_to_read(tmp_path / "run", find_sites(folder), job) as tables:
        assert (tables / "site-02" / "metadata.csv").exists()
        assert tables.parent.stat().st_mode & 0o077 == 0
    assert not tables.exists()
    assert not (tmp_path / "run").exists()


def test_a_site_is_as_protected_as_the_most_protected_of_its_records(write_table, tmp_path):
    sides = {"positive": ["seen"], "negative": ["no"]}
    other = {"positive": ["da", "seen"], "negative": ["nein"]}
    folder = write_table(
        {"north": rows_of(20), "south": rows_of(20)},
        {"north": {"origin": "public", "licence": "CC0"}, "south": {}},
        {"north": {"edema": sides}, "south": {"edema": other}},
    )
    write_run_partition(tmp_path / "run", find_sites(folder), job_of(folder, by="iid", sites=2))
    site = tmp_path / "run" / "partition" / "site-01"
    assert json.loads((site / "dataset.json").read_text())["origin"] == "private"
    assert json.loads((site / "prompts.json").read_text()) == {
        "edema": {"positive": ["seen", "da"], "negative": ["no", "nein"]}
    }
    job = job_of(folder, by="sites", noisy_pairs=0.5)
    write_run_partition(tmp_path / "other", find_sites(folder), job)
    site = tmp_path / "other" / "partition" / "north"
    tree = json.loads((site / "dataset.json").read_text())
    assert (tree["origin"], tree["licence"]) == ("public", "CC0")


def test_what_a_site_says_of_itself_can_be_the_column(write_table):
    folder = write_table(
        {"north": rows_of(5, scanner=""), "south": rows_of(5, scanner="")},
        {"north": {"language": "de"}, "south": {"language": "en"}},
    )
    pool = read_pool(find_sites(folder), folder, "language")
    assert {(r.source, r.value) for r in pool.records} == {("north", "de"), ("south", "en")}
    with pytest.raises(ConfigError, match="did you mean 'scanner'"):
        read_pool(find_sites(folder), folder, "scaner")


def test_what_cannot_be_pooled_is_refused(write_table, tmp_path):
    folder = write_table({"north": [*rows_of(3), ("9.png", "t", "", "p0", "test", "a")]})
    with pytest.raises(
        DataError, match="1 problem in its data; the first: one patient in 2 splits"
    ) as caught:
        read_pool(find_sites(folder), folder)
    assert caught.value.problems[0].rule == "patient-in-two-splits"
    both = [("1.png", "t", "", "p0", "train", "a"), ("2.png", "t", "", "p0", "test", "b")]
    folder = write_table({"all": both}) / "all"  # each site alone has nothing wrong
    with pytest.raises(DataError, match="1 patients in several splits, rows 2, 3"):
        read_pool(find_sites(folder, site_column="scanner"), folder)
    folder = write_table({"all": rows_of(5)}) / "all"
    outside = tmp_path / "elsewhere"
    folder.rename(outside)
    folder.symlink_to(outside)
    with pytest.raises(ConfigError, match="link out of"):
        read_pool(find_sites(folder.parent, only=["all"]), folder.parent)
    with pytest.raises(ConfigError, match="leave it out"):
        partition_sources(tmp_path / "run", find_sites(outside), job_of(outside, keep_style=False))


def test_a_partition_says_how_it_was_made(write_table, tmp_path):
    folder = write_table({"north": rows_of(30), "south": rows_of(30, 30)})
    rates = {"missing_image": 0.25, "noisy_pairs": {"site-02": 0.5}, "kinds": {"paired": 1.0}}
    job = job_of(folder, by="iid", sites=2, **rates)
    write_run_partition(tmp_path / "run", find_sites(folder), job)
    assert made_by(tmp_path / "run" / "partition") == (
        "Partition by iid, kinds = { paired = 1.0 }, missing_image = { all = 0.25 }, "
        "noisy_pairs = { site-02 = 0.5 }, sites = 2. Test records are whole."
    )
    assert made_by(folder) == ""


def test_other_folders_are_found_as_ever(write_table):
    folder = write_table({"north": rows_of(5)})
    assert DataOptions(find=find_written).sources(folder) == DataOptions().sources(folder)
