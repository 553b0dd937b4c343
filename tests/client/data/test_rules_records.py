"""Rules about tables, rows, texts, labels, patients, splits: each broken alone, named alone."""

import json

import pytest

from client.data.check import check_site
from client.data.rules.catalogue import RULES
from client.data.sources import SiteSource, find_sites
from shared.errors import DataError


def problem_of(check, rule):
    (problem,) = [problem for problem in check.problems if problem.rule == rule]
    return problem


def test_a_good_site_has_no_problem(site):
    check = site.write().check()
    assert check.problems == ()
    assert check.ok
    assert check.kind == "paired"
    assert check.counts["train"].pairs == 4
    assert check.counts["test"].patients == 2
    assert check.findings == ("edema",)


def test_names_of_rules_are_unique_and_every_rule_says_what_it_expects():
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names)
    assert all(rule.expects for rule in RULES)


# --- the table ---


def test_table_that_is_not_csv(site):
    site.write_text('file_name,text\nzebrafile0.png,"zebra-report never closed\n')
    problem = problem_of(site.check(), "table-unreadable")
    assert problem.where == 2
    assert "quotation mark" in problem.message


def test_table_that_is_not_json_lines(site):
    lines = [json.dumps(row) for row in site.rows]
    lines[3] = "zebra-report"
    site.write_text("\n".join(lines), "metadata.jsonl")
    assert problem_of(site.check(), "table-unreadable").where == 4


def test_table_that_is_not_parquet(site):
    site.write_text("no parquet", "metadata.parquet")
    assert "table-unreadable" in site.rules()


def test_table_that_is_gone(site):
    (source,) = find_sites(site.write().path)
    source.table.unlink()
    assert [problem.rule for problem in check_site(source).errors] == ["table-unreadable"]


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_table_in_utf16(site, name):
    site.write_text("file_name,text\na.png,b\n".encode("utf-16"), name)
    assert "table-encoding" in site.rules()


def test_cells_that_are_not_utf8_are_named_by_row(site):
    site.write()
    path = site.path / "metadata.csv"
    path.write_bytes(path.read_bytes().replace(b"number 2", b"r\xf6ntgen"))
    problem = problem_of(site.check(), "table-encoding")
    assert (problem.where, problem.column) == (4, "text")


def test_a_mark_of_utf8_at_the_start_is_no_part_of_the_header(site):
    site.write()
    path = site.path / "metadata.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert site.rules() == []


@pytest.mark.parametrize("separator", [";", "\t"])
def test_table_with_another_separator(site, separator):
    site.write_text(f"file_name{separator}text\na.png{separator}b\n")
    assert "table-header" in site.rules()


def test_table_without_a_header_is_not_quoted(site):
    site.write_text("zebrafile0.png,zebra-report,zebrapatient0\nzebrafile1.png,b,c\n")
    check = site.check()
    assert problem_of(check, "table-header").where == 1
    assert not any("zebra" in str(problem) for problem in check.problems)


def test_second_table_in_the_folder(site):
    site.write().write_text("", "metadata.jsonl")
    assert site.rules() == ["table-second"]


def test_missing_columns_name_the_nearest_and_what_was_found(site):
    site.write_text("filename,report\na.png,b\n")
    message = problem_of(site.check(), "column-missing").message
    assert "did you mean 'filename'" in message
    assert "'report'" in message


def test_mapped_column_that_is_not_there(site):
    problem = problem_of(site.write().check(columns={"labels": "label"}), "column-missing")
    assert problem.column == "label"
    assert "did you mean 'labels'" in problem.message


def test_column_that_is_there_twice(site):
    site.write()
    path = site.path / "metadata.csv"
    path.write_text(path.read_text().replace("labels", "text", 1))
    assert "column-duplicate" in site.rules()


def test_key_that_is_there_twice_in_json(site):
    site.write_text('{"text": "a", "text": "b"}\n', "metadata.jsonl")
    assert "column-duplicate" in site.rules()


def test_missing_text_column_is_said(site):
    for row in site.rows:
        row["txt"] = row.pop("text")
    check = site.write().check()
    problem = problem_of(check, "column-absent")
    assert (problem.column, problem.severity) == ("text", "warning")
    assert "did you mean 'txt'" in problem.message
    assert check.kind == "image"


def test_missing_image_column_is_said(site):
    assert "column-absent" in site.without("file_name").write().rules()


def test_column_with_almost_our_name(site):
    for row in site.rows:
        row["patientID"] = row.pop("patient_id")
    assert problem_of(site.write().check(), "column-unread").column == "patientID"


@pytest.mark.parametrize("line", ["a.png,b,none,p", "a.png,b,none,p,train,more"])
def test_row_with_too_few_or_too_many_cells(site, line):
    site.write()
    path = site.path / "metadata.csv"
    path.write_text(path.read_text() + line + "\n")
    assert problem_of(site.check(), "row-length").where == 10


@pytest.mark.parametrize("value", [{"a": 1}, [], [1], {}])
def test_cell_of_another_type(site, value):
    site.rows[2]["labels"] = value
    site.write_text("\n".join(json.dumps(row) for row in site.rows), "metadata.jsonl")
    problem = problem_of(site.check(), "cell-type")
    assert (problem.where, problem.column) == (3, "labels")


def test_row_without_a_site(site):
    for row in site.rows:
        row["site"] = "north"
    site.rows[3]["site"] = " "
    site.write()
    with pytest.raises(DataError, match="first is row 5") as caught:
        find_sites(site.path, site_column="site")
    assert [problem.rule for problem in caught.value.problems] == ["site-name"]
    table = site.path / "metadata.csv"
    source = SiteSource("north", table, site.path, site_column="site")
    assert problem_of(check_site(source), "site-name").where == 5


@pytest.mark.parametrize("text", ["", "file_name,text\n"])
def test_table_without_rows(site, text):
    assert "no-rows" in site.write_text(text).rules()


def test_row_with_neither_image_nor_text(site):
    site.rows[1].update(file_name="", text="")
    assert problem_of(site.write().check(), "row-empty").where == 3


def test_rows_of_the_other_modality_are_left_out_and_counted(site):
    site.rows[1]["file_name"] = ""
    check = site.write().check(image_only=["north"])
    problem = problem_of(check, "row-ignored")
    assert (problem.where, problem.severity) == (3, "warning")
    assert check.kind == "image"
    assert check.counts["train"].images == 3
    assert check.counts["train"].texts == 0


@pytest.mark.parametrize("column", ["text", "patient_id"])
def test_placeholders_of_programs(site, column):
    site.rows[1][column] = "NaN"
    problem = problem_of(site.write().check(), "placeholder")
    assert (problem.where, problem.column) == (3, column)


def test_numbers_are_those_of_a_spreadsheet(site):
    """A blank line counts, and a text over several lines is one row."""
    site.rows[0]["text"] = "zebra-report\nof three\nlines"
    site.rows[3]["text"] = "  "
    site.write()
    path = site.path / "metadata.csv"
    head, rest = path.read_text().split("\n", 1)
    path.write_text(f"{head}\n\n{rest}")
    assert problem_of(site.check(), "text-blank").where == 6


# --- texts and labels ---


def test_text_of_blanks(site):
    site.rows[4]["text"] = " \t "
    problem = problem_of(site.write().check(), "text-blank")
    assert (problem.where, problem.column) == (6, "text")


def test_text_of_a_megabyte(site):
    site.rows[0]["text"] = "x" * 2**20
    check = site.write().check()
    assert [problem.rule for problem in check.problems] == ["text-too-long"]
    assert len(problem_of(check, "text-too-long").message) < 100


@pytest.mark.parametrize("text", ["zebra-report\x00", "zebra-report \x1b[31m", "\x08"])
def test_text_with_control_characters(site, text):
    site.rows[0]["text"] = text
    assert site.write().rules() == ["text-control-characters"]


@pytest.mark.parametrize("text", ["línea\nzwei\tdrei", "صورة الصدر", "🫁 lung", "胸部"])
def test_any_language_is_a_text(site, text):
    site.rows[0]["text"] = text
    assert site.write().rules() == []


def test_texts_that_are_all_the_same(site):
    for row in site.rows[:4]:
        row["text"] = "zebra-report"
    assert site.write().rules() == ["texts-identical"]


@pytest.mark.parametrize("labels", ["edema;;mass", "none;edema", "x" * 65, "ede\x07ma"])
def test_labels_that_are_no_names(site, labels):
    site.rows[1]["labels"] = labels
    problem = problem_of(site.write().check(), "labels-malformed")
    assert (problem.where, problem.column) == (3, "labels")


def test_labels_spelled_in_two_ways(site):
    site.rows[3]["labels"] = "Edema"
    assert "labels-spelling" in site.write().rules()


def test_findings_without_prompts(site):
    site.rows[1]["labels"] = "edema; mass"
    check = site.write().check()
    assert check.findings == ("edema", "mass")
    assert "1 of 2 findings" in problem_of(check, "finding-without-prompts").message


@pytest.mark.parametrize(
    "prompts",
    [
        '{"edema": {"positive": ["a"]}}',
        '{"edema": {"positive": ["a"], "negative": []}}',
        '{"edema": {"positive": "a", "negative": ["b"]}}',
        '{"edema": {"positive": [1], "negative": ["b"]}}',
        "[]",
        "{",
        b"\xff\xfe",
    ],
)
def test_prompts_that_are_malformed(site, prompts):
    site.write().write_text(prompts, "prompts.json")
    assert "prompts-malformed" in site.rules()


@pytest.mark.parametrize("dataset", ['{"origin": "secret"}', "[]", "{", '{"licence": 1}'])
def test_dataset_that_is_malformed(site, dataset):
    site.write().write_text(dataset, "dataset.json")
    assert site.rules() == ["dataset-malformed"]


# --- patients and splits ---


def test_row_without_a_patient(site):
    site.rows[2]["patient_id"] = ""
    problem = problem_of(site.write().check(), "patient-missing")
    assert (problem.where, problem.severity) == (4, "warning")


def test_patient_in_two_splits_is_named_by_rows_only(site):
    site.rows[5]["patient_id"] = site.rows[0]["patient_id"]
    site.rows[6]["patient_id"] = site.rows[0]["patient_id"]
    check = site.write().check()
    problem = problem_of(check, "patient-in-two-splits")
    assert problem.where == 2
    assert "in 3 splits (train: row 2; val: row 7; test: row 8)" in problem.message
    assert not any("zebra" in str(problem) for problem in check.problems)


@pytest.mark.parametrize("split", ["", "holdout"])
def test_split_that_is_unknown(site, split):
    site.rows[1]["split"] = split
    problem = problem_of(site.write().check(), "split-unknown")
    assert (problem.where, problem.column) == (3, "split")


def test_other_words_for_the_splits(site):
    for row in site.rows:
        row["split"] = {"train": "Training", "val": " validation", "test": "TEST"}[row["split"]]
    assert site.write().rules() == []


def test_split_that_is_derived_is_said(site):
    assert "split-derived" in site.without("split").write().rules()


@pytest.mark.parametrize(("gone", "word"), [("v", "validation"), ("e", "test")])
def test_split_that_is_empty(site, gone, word):
    site.rows = [row for row in site.rows if not row["split"].startswith(gone.replace("e", "te"))]
    assert word in problem_of(site.write().check(), "split-empty").message


def test_no_training_records(site):
    site.rows = site.rows[4:]
    check = site.write().check()
    assert [problem.rule for problem in check.problems] == ["no-training-records"]
    assert check.kind is None


def test_one_training_record_of_a_modality(site):
    for row in site.rows[1:4]:
        row["text"] = ""
    problems = site.write().check().problems
    assert ("one-training-record", "text") in [(p.rule, p.column) for p in problems]


def test_only_one_training_pair(site):
    site.rows[1]["text"] = site.rows[2]["file_name"] = site.rows[3]["file_name"] = ""
    problem = problem_of(site.write().check(), "one-training-pair")
    assert problem.where == 2


def test_all_problems_are_collected_errors_first(site):
    site.rows[0]["text"] = "  "
    site.rows[1]["split"] = "holdout"
    site.rows[2]["patient_id"] = ""
    site.rows[3]["labels"] = "edema;;edema"
    check = site.write().check()
    assert [problem.rule for problem in check.problems] == [
        "text-blank",
        "split-unknown",
        "labels-malformed",
        "patient-missing",
    ]
    assert len(check.errors) == 3
    assert len(check.warnings) == 1
