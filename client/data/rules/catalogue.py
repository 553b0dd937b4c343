"""The catalogue: every rule, with its severity, what it expects and the function that checks it."""

from typing import Final

from client.data.entries import LONGEST_FINDING
from client.data.images import LARGEST_BYTES, LARGEST_PIXELS, SMALLEST_SIDE
from client.data.rules import records, splits, tables
from client.data.rules.rule import Rule, found_while_reading


def _reading(name: str, expects: str) -> Rule:
    return Rule(name, "error", expects, found_while_reading(name))


_MIB = LARGEST_BYTES // 2**20

RULES: Final[tuple[Rule, ...]] = (
    _reading("table-unreadable", "the table opens and is valid CSV, JSON Lines or Parquet"),
    Rule("table-encoding", "error", "the table is UTF-8", tables.has_utf8_cells),
    Rule(
        "table-header", "error", "row 1 holds column names, separated by commas", tables.has_header
    ),
    Rule("table-second", "warning", "one table in a folder", tables.is_only_table),
    Rule(
        "column-missing",
        "error",
        "mapped columns exist, and an image or a text column does",
        tables.has_needed_columns,
    ),
    _reading("column-duplicate", "a column is there once"),
    Rule("column-absent", "warning", "both an image and a text column", tables.has_both_modalities),
    Rule(
        "column-unread",
        "warning",
        "no column whose name is almost one of ours",
        tables.reads_near_columns,
    ),
    _reading("row-length", "as many cells as columns"),
    _reading("cell-type", "text, numbers, null or lists of words; no bytes, no objects"),
    Rule(
        "site-name",
        "error",
        "every row of a table with a site column names its site",
        tables.names_its_site,
    ),
    Rule("no-rows", "error", "at least one row", tables.has_rows),
    Rule("row-empty", "error", "an image or a text in every row", tables.has_content),
    Rule(
        "row-ignored",
        "warning",
        "no row with only the modality that a run leaves out",
        tables.has_wanted_content,
    ),
    Rule(
        "placeholder",
        "warning",
        "no `nan`, `NULL`, `n/a` where a cell should be empty",
        tables.has_no_placeholders,
    ),
    _reading("image-path", "a path inside the site's folder: relative, no `..`, no link out of it"),
    _reading("image-missing", "the file is there and is a regular file"),
    _reading("image-empty", "the file has more than 0 bytes"),
    _reading("image-format", "PNG, JPEG, DICOM with a picture, TIFF, WebP, BMP or GIF, by content"),
    _reading("image-unreadable", "the file is whole: not truncated, not damaged"),
    _reading("image-animated", "one frame"),
    _reading(
        "image-too-large",
        f"at most {LARGEST_PIXELS // 10**6} million pixels and {_MIB} MiB, known before decoding",
    ),
    _reading("image-too-small", f"at least {SMALLEST_SIDE} pixels in each direction"),
    Rule(
        "image-blank",
        "warning",
        "more than one value among the pixels",
        records.picture_shows_something,
    ),
    Rule("image-duplicate", "warning", "every picture in one row", records.pictures_differ),
    Rule(
        "image-in-two-splits",
        "error",
        "the same picture in one split only",
        records.pictures_stay_in_split,
    ),
    _reading("dicom-identity-not-removed", "PatientIdentityRemoved is `YES`"),
    _reading("dicom-burned-in-text", "BurnedInAnnotation is not `YES`"),
    _reading(
        "dicom-secondary-capture",
        "BurnedInAnnotation is `NO` if modality is US, IVUS, SC, XC, ES or empty, or the "
        "class is secondary capture",
    ),
    _reading("dicom-compression", "a transfer syntax that can be decoded"),
    Rule(
        "text-blank", "error", "a text, or an empty cell; not blanks", records.text_says_something
    ),
    Rule(
        "text-too-long",
        "error",
        f"at most {records.LONGEST_TEXT} characters",
        records.text_is_short_enough,
    ),
    Rule(
        "text-control-characters",
        "error",
        "no control characters but tabs and line breaks",
        records.text_has_no_control_characters,
    ),
    Rule("texts-identical", "warning", "more than one training text", records.texts_differ),
    Rule(
        "labels-malformed",
        "error",
        f"names of up to {LONGEST_FINDING} characters between `;`, or `none` alone",
        records.labels_are_names,
    ),
    Rule(
        "labels-spelling", "warning", "one spelling per finding", records.labels_are_spelled_alike
    ),
    Rule(
        "finding-without-prompts",
        "warning",
        "prompts for every finding",
        records.findings_have_prompts,
    ),
    Rule("patient-missing", "warning", "a patient id in every row", splits.patient_is_given),
    Rule(
        "patient-in-two-splits",
        "error",
        "a patient in one split only",
        splits.patient_is_in_one_split,
    ),
    Rule(
        "split-unknown",
        "error",
        "`train`, `val` or `test` in every row of a split column",
        splits.split_is_known,
    ),
    Rule(
        "split-derived",
        "warning",
        "a split column; else patients are split by a hash",
        splits.split_is_given,
    ),
    Rule("split-empty", "warning", "validation and test records", splits.splits_are_filled),
    Rule("no-training-records", "error", "training records", splits.has_training_records),
    Rule(
        "one-training-record",
        "error",
        "no or at least 2 training records of each modality",
        splits.towers_have_enough,
    ),
    Rule("one-training-pair", "error", "no or at least 2 training pairs", splits.pairs_are_enough),
    _reading("prompts-malformed", "`prompts.json` maps findings to positive and negative texts"),
    _reading("dataset-malformed", "`dataset.json` has origin `phantom`, `public` or `private`"),
)
"""Every rule, in the order in which it is reported; docs/data.md lists the same names."""
