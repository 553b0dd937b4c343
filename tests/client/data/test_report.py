"""What is printed: exit codes, one JSON object, tables, and never a record's own words."""

import io
import json
import logging
import warnings

import pytest
from rich.console import Console

from client.data.check import check_site
from client.data.describe import describe_site
from client.data.report import DataOptions, print_check, print_describe
from client.data.sources import find_sites
from shared.errors import DataError, InputError

BOTH = [print_check, print_describe]


def printed(function, folder, as_json=False, width=160, **options):
    console = Console(file=io.StringIO(), width=width)
    code = function(folder, DataOptions(**options), console, as_json=as_json)
    text = console.file.getvalue()
    return code, json.loads(text) if as_json else text


def test_good_data(site):
    code, text = printed(print_check, site.write().path)
    assert code == 0
    assert "1 site, 8 rows: ready; 0 errors, 0 warnings" in text
    assert "north" in text
    assert "paired" in text


def test_bad_data_is_a_line_and_a_table(site):
    site.rows[2]["text"] = "  "
    site.rows[3]["patient_id"] = ""
    code, text = printed(print_check, site.write().path)
    assert code == 2
    assert text.startswith("1 site, 8 rows: cannot be used; 1 error, 1 warning\n")
    (line,) = [line for line in text.splitlines() if "text-blank" in line]
    assert line.split()[:4] == ["north", "4", "text", "text-blank"]
    assert "patient-missing" in text


@pytest.mark.parametrize("function", BOTH)
def test_one_json_object_and_nothing_else(site, function):
    site.write()
    code, tree = printed(function, site.path, as_json=True, width=40)
    assert code == 0
    assert tree["ok"] is True
    assert tree["sites"][0]["name"] == "north"
    site.rows[2]["text"] = "  "
    code, tree = printed(function, site.write().path, as_json=True, width=40)
    assert (code, tree["ok"]) == (2, False)
    (problem,) = (tree["sites"] if function is print_check else tree["problems"])[0]["problems"]
    assert problem["where"] == 4
    assert problem["rule"] == "text-blank"
    assert problem["severity"] == "error"


@pytest.mark.parametrize("function", BOTH)
def test_bad_input_is_one_line_and_exit_code_2(site, function, tmp_path):
    with pytest.raises(InputError, match="no such folder"):  # the command prints it
        printed(function, tmp_path / "nothing")
    code, tree = printed(function, tmp_path / "nothing", as_json=True)
    assert (code, tree["ok"]) == (2, False)
    with pytest.raises(InputError, match="no site 'south'"):
        printed(function, site.write().path, only=["south"])
    with pytest.raises(InputError, match="image-empty"):
        printed(function, site.path, accept=("image-empty",))


def test_long_lists_end(site):
    for number in range(100):
        site.rows.append({**site.rows[0], "text": " ", "file_name": "", "patient_id": f"q{number}"})
    _, text = printed(print_check, site.write().path)
    assert "… and 60 more" in text
    _, tree = printed(print_check, site.path, as_json=True)
    assert len(tree["sites"][0]["problems"]) == 100


def test_quick_says_so(site):
    _, text = printed(print_check, site.write().path, quick=True)
    assert "headers only" in text


def test_a_description(site):
    site.rows[1]["text"] = site.rows[2]["text"] = "zebra-report one two"
    site.rows[3]["labels"] = ""
    site.rows[4]["patient_id"] = ""
    (source,) = find_sites(site.write().path)
    found = describe_site(source)
    assert found.splits["train"].pairs == 4
    assert (found.patients, found.without_patient, found.most_of_one_patient) == (8, 1, 1)
    assert (found.texts.texts, found.texts.distinct) == (8, 7)
    assert found.texts.identical_share == 2 / 8
    assert found.texts.words == (3, 3, 3, 3, 3, 3)
    assert found.images.modes == {"L": 8}
    assert found.images.formats == {"PNG": 8}
    assert found.images.widths == (24,) * 6
    assert found.images.repeated == 0
    assert found.labelled == {"train": 3, "val": 2, "test": 2}
    (edema,) = found.findings
    assert edema.positives == {"train": 1, "val": 1, "test": 1}
    assert edema.has_prompts
    assert found.split_rule == "given in column 'split'"
    assert found.origin == "public"
    code, text = printed(print_describe, site.path)
    assert code == 0
    assert "7 distinct; 25% of the records share theirs with another" in text
    assert "CC0" in text


def test_a_derived_split_is_described(site):
    (source,) = find_sites(site.without("split").write().path)
    assert "70/15/15 by a hash of the patient id" in describe_site(source).split_rule


def test_bad_data_is_not_described(site):
    site.rows[0]["text"] = " "
    (source,) = find_sites(site.write().path)
    with pytest.raises(DataError) as caught:
        describe_site(source)
    assert [problem.rule for problem in caught.value.problems] == ["text-blank"]
    code, text = printed(print_describe, site.path)
    assert code == 2
    assert "text-blank" in text


def test_a_site_of_one_modality_is_described(site):
    (source,) = find_sites(site.write().path, image_only=["north"])
    assert describe_site(source).texts is None
    (source,) = find_sites(site.path, text_only=["north"])
    assert describe_site(source).images is None


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("function", BOTH)
def test_no_record_leaks_whatever_is_wrong(site, function, as_json, caplog, capsys):
    """Everything broken at once: no text, file name or patient id in any output."""
    caplog.set_level(logging.DEBUG)
    site.rows[0].update(file_name="../zebrafile0.png", text="zebra-report\x00")
    site.rows[1].update(patient_id="zebrapatient5", labels=";;" + "zebra-report" * 10)
    site.rows[2].update(split="zebrapatient", text="zebra-report" * 20_000)
    site.rows[3].update(file_name="zebrafile-gone.png")
    (site.path / "zebrafile4.png").write_bytes(b"\x89PNG\r\n\x1a\nzebra")
    (site.path / "zebrafile5.png").write_bytes(b"")
    site.rows.append({"split": "train", "text": "", "file_name": "", "labels": "Edema"})
    site.rows.append({**site.rows[6], "patient_id": "zebrapatient0"})
    site.write()
    with (site.path / "metadata.csv").open("ab") as file:
        file.write(b"zebrafile9.png,zebra-report,extra,zebrapatient,train,zebra,zebra\n")
        file.write(b"zebrafile9.png,zebra-r\xf6port,none,zebrapatient,train\n")
    site.write_text('{"zebra-report": {"positive": "zebra"}}', "prompts.json")
    site.write_text('{"origin": "zebra"}', "dataset.json")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        code, output = printed(function, site.path, as_json=as_json)
    assert code == 2
    (source,) = find_sites(site.path)
    assert len({problem.rule for problem in check_site(source).problems}) >= 14
    everything = str(output) + caplog.text + str([str(w.message) for w in warned])
    everything += str(capsys.readouterr())
    assert "zebra" not in everything.lower()
