"""Bad input to the command: one line, exit code 2, no traceback, nothing half-written."""

import csv
import errno
import json
import random
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from shared.errors import ConsiliaError
from simulations import machine
from simulations import simulate as simulation

SECRETS = ("zebra-report", "zebrafile", "zebrapatient", "Zebra^Zoe")
"""What only the records hold; no message may quote it."""


class ReachedError(ConsiliaError):
    """The input was taken, and the federation would begin."""


@pytest.fixture
def simulate(command, monkeypatch, tmp_path, clip_folder):
    """``consilia simulate`` up to the federation, with ``runs`` in the test's folder."""

    def reached(*_):
        raise ReachedError("the federation begins")

    monkeypatch.setattr(simulation.BaselinesProcess, "__enter__", reached)
    monkeypatch.setattr(simulation, "write_phantoms", lambda *_: None)

    def run(*arguments):
        base = ("--set", f"model.base={clip_folder}", "--set", "lora.rank=2")
        given = () if "--resume" in arguments or "--no-base" in arguments else base
        rest = [each for each in arguments if each != "--no-base"]
        return command("simulate", *given, *rest, "--out", tmp_path / "runs")

    return run


@pytest.fixture
def refuses(simulate, tmp_path):
    """Run, and demand one line that holds all of the words, and that nothing was written."""

    def check(*arguments, says, table=False):
        ended = simulate(*arguments)
        assert ended.code == 2, ended.err
        assert ended.line.startswith("consilia: error: ")
        for words in says:
            assert words in ended.line
        assert table or ended.err.count("\n") == 1, ended.err
        assert ended.out == ""
        assert "Traceback" not in ended.err
        assert not any(secret in ended.err for secret in SECRETS)
        assert not (tmp_path / "runs").exists()
        return ended

    return check


# --- the job file ---

JOBS = {
    "syntax": ("name = \n", ["not valid TOML", "line 1"]),
    "not utf-8": (b'name = "caf\xe9"\n', ["byte 12", "UTF-8"]),
    "nested without end": ("a = " + "[" * 5000, ["not valid TOML"]),
    "empty": ("", ["name is missing"]),
    "unknown key": ("rouns = 3\n", ["unknown key 'rouns' at the top level", "'rounds'"]),
    "unknown table": ("[agregate]\n", ["unknown key 'agregate'", "'aggregate'"]),
    "unknown key in a table": (
        "[train]\nlearning_rat = 1\n",
        ["'learning_rat' in [train]", "'learning_rate'"],
    ),
    "no such rule": (
        "[aggregate]\nrule = 'fedprox'\n",
        [
            "aggregate.rule = 'fedprox'",
            "'fedavg', 'ffa', 'altfold', 'flexlora', 'fedex', 'flora', ",
        ],
    ),
    "no such method": (
        "[personalize]\nmethod = 'duett'\n",
        ["personalize.method = 'duett'", "did you mean 'duet'?"],
    ),
    "no such baseline": (
        "[evaluate]\nbaselines = ['lokal']\n",
        ["evaluate.baselines.0 = 'lokal'", "did you mean 'local'?"],
    ),
    "privacy without an amount": (
        "[privacy]\ndifferential_privacy = true\n",
        ["privacy.epsilon: differential privacy needs an amount"],
    ),
    "privacy without negatives": (
        "[privacy]\ndifferential_privacy = true\nepsilon = 8.0\n",
        ["proxy.folder: with differential privacy", "proxy.phantoms"],
    ),
    "whole sites and patients at once": (
        "[privacy]\ndifferential_privacy = true\nepsilon = 8.0\nmode = 'site-level'\n",
        ["privacy.unit", "one must not be claimed for the other", "unit = 'site'"],
    ),
    "text for a number": ("rounds = 'ten'\n", ["rounds = 'ten'", "a whole number"]),
    "number in quotation marks": ("rounds = '3'\n", ["rounds = '3'", "a whole number"]),
    "true for a number": ("rounds = true\n", ["rounds = true", "a whole number"]),
    "half a round": ("rounds = 2.5\n", ["rounds = 2.5", "a whole number"]),
    "date": ("seed = 2020-01-01\n", ["seed", "a whole number"]),
    "too small": ("rounds = 0\n", ["rounds = 0", "at least 1"]),
    "too large": ("[train]\nlearning_rate = 2\n", ["train.learning_rate = 2", "at most 1"]),
    "endless": ("[aggregate]\nclip_norm = inf\n", ["clip_norm = inf", "a finite number"]),
    "no number": ("[lora]\nalpha = nan\n", ["lora.alpha = nan", "a finite number"]),
    "number for a table": ("data = 3\n", ["data = 3", "expected a table"]),
    "list of tables": ("[[data]]\nfolder = 'x'\n", ["data", "expected a table"]),
    "text for a list": ("[data]\nsites = 'a'\n", ["data.sites = 'a'", "expected a list"]),
    "no folder": ("[data]\nfolder = ''\n", ["data.folder = ''", "at least 1 character"]),
    "both": ("[train]\nsteps = 1\nepochs = 1\n", ["[train]", "either steps or epochs"]),
    "quorum over cohort": (
        "[aggregate]\ncohort = 1\nquorum = 3\n",
        ["quorum = 3", "never be met by cohort = 1"],
    ),
    "folding what must not be": (
        "[aggregate]\nrule = 'fedavg'\nfold_every = 2\n",
        ["aggregate.fold_every", "must not be folded"],
    ),
}


@pytest.mark.parametrize("case", JOBS)
def test_jobs(refuses, tmp_path, case):
    text, says = JOBS[case]
    job = tmp_path / "job.toml"
    if isinstance(text, str):
        named = 'name = "bad"\n' if case not in ("empty", "syntax") else ""
        text = (named + text).encode()
    job.write_bytes(text)
    refuses(job, "--no-base", says=[f"{job}: ", *says])


def test_job_names(refuses, tmp_path):
    (tmp_path / "job.toml").write_text('name = "../elsewhere"\n')
    refuses(tmp_path / "job.toml", "--no-base", says=["name = '../elsewhere'", "letters, digits"])


def test_job_that_is_no_file(refuses, tmp_path):
    refuses(tmp_path, says=[f"{tmp_path}: is a folder", "job file"])
    refuses(tmp_path / "none.toml", says=["none.toml: no such job file"])


# --- the command line ---

OPTIONS = {
    ("--set", "rounds"): ["--set rounds", "KEY=VALUE"],
    ("--set", "=3"): ["--set =3", "KEY=VALUE"],
    ("--set", "rounds.x=1"): ["command line", "rounds is a key, not a table"],
    ("--set", "a..b=1"): ["command line", "unknown key 'a'"],
    ("--set", "train=5"): ["command line", "train = 5", "expected a table"],
    ("--set", "name=\udcff"): ["not valid Unicode"],
    ("--set", "train.steps="): ["command line", "train.steps = ''", "a whole number"],
    ("--set", "evaluate.baselines=["): ["evaluate.baselines = '['", "expected a list"],
    ("--set", "agregate.rule=ffa"): ["command line", "'agregate'", "'aggregate'"],
    ("--set", "aggregate.rule=ffaa"): ["command line", "did you mean 'ffa'?"],
    ("--set", "aggregate.quorum=9"): ["aggregate.quorum = 9", "only 8 sites"],
    ("--set", "lora.targets=['atention']"): ["lora.targets", "'atention'", "did you mean"],
    ("--set", "lora.rank=64"): ["lora.rank = 64", "smallest adapted layer", "at most 24"],
    ("--set", "personalize.rank=64"): ["personalize.rank = 64", "at most 24"],
    ("--set", "aggregate={combine='multi-krum', hostile=3}"): [
        "'multi-krum' needs 9 sites to withstand hostile = 3, and there are only 8",
        "lower hostile, or use 'geometric-median'",
    ],
    ("--set", "aggregate={combine='trimmed-mean', hostile=2, cohort=4}"): [
        "aggregate.cohort = 4 is too few",
        "raise cohort or lower hostile",
    ],
    ("--set", "lora.layers=top"): ["lora.layers = 'top'", "'top:N'"],
    ("--set", "model.max_tokens=1000"): ["model.max_tokens = 1000", "up to 16 tokens"],
    ("--set", "data.sites=['universty']"): ["data.sites", "did you mean 'university'?"],
    ("--image-only", "nowhere"): ["data.image_only", "no site 'nowhere'"],
    ("--site-column", "site"): ["data.site_column", "--data FOLDER"],
    ("--column", "text=report"): ["data.columns", "--data FOLDER"],
    ("--column", "text"): ["--column text", "OURS=THEIRS"],
    ("--rounds", "0"): ["--rounds", "x>=1", "--help"],
    ("--sites", "many"): ["--sites", "'many'", "--help"],
    ("--sites", "100000"): ["100000", "at most 10000"],
    ("--engine", "ray"): ["'ray'", "'local' or 'flower'"],
    ("--device", "tpu"): ["'tpu'", "'auto', 'cpu' or 'cuda'"],
    ("--bogus",): ["--bogus", "--help"],
    ("--resume", "nothing"): ["--resume nothing", "no such run"],
    ("--resume", ""): ["no such run"],
}


@pytest.mark.parametrize("arguments", OPTIONS, ids=" ".join)
def test_options(refuses, arguments):
    refuses(*arguments, says=OPTIONS[arguments])


def test_an_engine_or_a_device_that_is_not_there(refuses, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    refuses("--engine", "flower", says=["needs Ray", "--engine local"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refuses("--device", "cuda", says=["no CUDA device", "'cpu'"])


def test_a_folder_for_runs_that_cannot_be_one(simulate, command, tmp_path):
    (tmp_path / "file").touch()
    for out, words in ((tmp_path / "file", "is a file"), (tmp_path / "file" / "x", "choose")):
        ended = command("simulate", "--out", out)
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert words in ended.err


def test_a_folder_for_runs_that_is_read_only(simulate, refuses, monkeypatch):
    def denied(path, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:  # root may write everywhere
        patch.setattr("pathlib.Path.mkdir", denied)
        refuses(says=["the run directory cannot be made (Permission denied)", "another --out"])


def test_other_commands(command, tmp_path):
    (tmp_path / "file").touch()
    for arguments, words in (
        (["simulat"], "simulate"),
        (["data", "chek"], "check"),
        (["runs", "what"], "'list' or 'show RUN'"),
        (["runs", "list", "--out", tmp_path], "no runs here"),
        (["runs", "show", "x", "--out", tmp_path], "no runs here"),
        (["report", tmp_path], "results.json"),
        (["export", tmp_path, "--to", tmp_path / "new"], "is not a run"),
        (["export", tmp_path, "--to", tmp_path / "file"], "does not exist or is empty"),
        (["data", "check", tmp_path / "none"], "no such folder or table"),
        (["data", "describe", tmp_path], "no metadata.csv"),
        (["data", "phantoms", "--out", tmp_path], "does not exist or is empty"),
        (["data", "phantoms", "--out", tmp_path / "new", "--scenario", "x"], "'conflict'"),
    ):
        ended = command(*arguments)
        assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
        assert ended.err.startswith("consilia: error: ")
        assert words in ended.err
        assert ended.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_history_that_is_no_database(refuses, simulate, command, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "history.sqlite").write_text("rubbish" * 1000)
    for ended in (simulate(), command("runs", "list", "--out", tmp_path / "runs")):
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert "history.sqlite: is damaged, or no database" in ended.err
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["history.sqlite"]


def test_what_should_not_happen_is_one_line_without_the_errors_text(command, monkeypatch):
    def broken(_):
        raise ValueError("zebra-report")

    monkeypatch.setattr(simulation, "simulate_command", broken)
    ended = command("simulate")
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "ValueError at test_bad_input.py:" in ended.err
    assert "zebra" not in ended.err


# --- the base ---


def test_bases(refuses, clip_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def base(folder, *says):
        refuses("--no-base", "--set", f"model.base={folder}", says=says)

    base("''", "model.base = ''", "at least 1 character")
    base("nowhere", "model.base = 'nowhere'", "no such folder")
    base(tmp_path, f"{tmp_path}: no config.json")
    pickled = shutil.copytree(clip_folder, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    base(pickled, "pickled Python", "safe_serialization=True")
    other = shutil.copytree(clip_folder, tmp_path / "bert")
    (other / "config.json").write_text('{"model_type": "bert"}')
    base(other, "model_type 'bert'", "clip")
    cut = shutil.copytree(clip_folder, tmp_path / "cut")
    weights = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    base(cut, f"{cut}: weights cannot be loaded")
    (cut / "config.json").write_text("{")
    base(cut, f"{cut}: config.json cannot be used")
    sha = "0" * 64
    refuses("--set", f"model.sha256={sha}", says=[str(clip_folder), "the base has sha256", sha])


# --- the data ---


def picture(seed, mode="L"):
    """Noise of 24 x 24 pixels."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(seed).integers(0, 256, (24, 24, bands), dtype=np.uint8)
    return Image.frombytes(mode, (24, 24), values.tobytes())


def write_site(folder, change=lambda rows: None, columns=None):
    """A paired site of eight records; ``change`` may damage its rows before they are written."""
    folder.mkdir(parents=True)
    rows = []
    for number, split in enumerate(["train"] * 4 + ["val"] * 2 + ["test"] * 2):
        name = f"zebrafile{number}.png"
        picture(number).save(folder / name)
        rows.append(
            {
                "file_name": name,
                "text": f"zebra-report number {number}",
                "labels": "edema" if number % 2 else "none",
                "patient_id": f"zebrapatient{number}",
                "split": split,
            }
        )
    change(rows)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns or list(rows[0]), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture
def data(tmp_path):
    """A folder with one good site; tests add bad ones."""
    write_site(tmp_path / "data" / "good")
    return tmp_path / "data"


def dicom(path, **tags):
    """A radiograph that may be used, apart from ``tags``."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.Modality, dataset.PhotometricInterpretation = "DX", "MONOCHROME2"
    dataset.Rows = dataset.Columns = 24
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelData = picture(99).tobytes()
    dataset.PatientName, dataset.PatientIdentityRemoved = "Zebra^Zoe", "YES"
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)


def bomb(path):
    """A PNG of 16 gigapixels in a few bytes."""
    header = struct.pack(">IIBBBBB", 130_000, 130_000, 8, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, inside in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")):
        checksum = struct.pack(">I", zlib.crc32(kind + inside))
        content += struct.pack(">I", len(inside)) + kind + inside + checksum
    path.write_bytes(content)


def truncated(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-1000])


def animated(path):
    picture(1).save(path, save_all=True, append_images=[picture(2)])


PICTURES = {
    "image-missing": lambda path: path.unlink(),
    "image-empty": lambda path: path.write_bytes(b""),
    "image-format": lambda path: path.write_bytes(b"no picture at all"),
    "image-unreadable": truncated,
    "image-animated": animated,
    "image-too-large": bomb,
    "image-too-small": lambda path: picture(1).resize((8, 8)).save(path),
    "dicom-identity-not-removed": lambda path: dicom(path, PatientIdentityRemoved="NO"),
    "dicom-burned-in-text": lambda path: dicom(path, BurnedInAnnotation="YES"),
    "dicom-secondary-capture": lambda path: dicom(path, Modality="SC"),
}


@pytest.mark.parametrize("rule", PICTURES)
def test_pictures(refuses, data, rule):
    PICTURES[rule](write_site(data / "bad") / "zebrafile2.png")
    ended = refuses("--data", data, says=["site 'bad'", "row 4", "file_name", rule], table=True)
    assert rule in ended.err.split("\n", 1)[1]


@pytest.mark.parametrize("kind", ["16-bit", "CMYK", "DICOM"])
def test_pictures_that_are_converted(simulate, data, kind):
    path = write_site(data / "deep") / "zebrafile2.png"
    deep = np.random.default_rng(0).integers(0, 65536, (24, 24)).astype(np.uint16)
    save = {
        "16-bit": lambda: Image.fromarray(deep).save(path),
        "CMYK": lambda: picture(0, "CMYK").save(path, format="JPEG"),
        "DICOM": lambda: dicom(path),
    }
    save[kind]()
    ended = simulate("--data", data)
    assert "the federation begins" in ended.err


def _one_pair(rows):
    rows[1]["text"] = ""
    rows[2]["file_name"] = rows[3]["file_name"] = ""


def _no_training_records(rows):
    for row in rows:
        row["split"] = "test"


def _same_patient(rows):
    rows[6]["patient_id"] = rows[0]["patient_id"]


def _text(text):
    def change(rows):
        rows[2]["text"] = text

    return change


ROWS = {
    "text-blank": _text("   "),
    "text-too-long": _text("zebra-report " * 80_000),
    "text-control-characters": _text("".join(map(chr, random.Random(0).sample(range(1, 256), 99)))),
    "patient-in-two-splits": _same_patient,
    "no-training-records": _no_training_records,
    "one-training-pair": _one_pair,
    "split-unknown": lambda rows: rows[2].update(split="zebra"),
    "labels-malformed": lambda rows: rows[2].update(labels="none;edema"),
    "row-empty": lambda rows: rows[2].update(file_name="", text=""),
    "image-path": lambda rows: rows[2].update(file_name="../good/zebrafile2.png"),
}


@pytest.mark.parametrize("rule", ROWS)
def test_rows(refuses, data, rule):
    write_site(data / "bad", ROWS[rule])
    ended = refuses("--data", data, says=["site 'bad'", rule], table=True)
    assert rule in ended.err.split("\n", 1)[1]


def test_a_site_without_pairs_is_no_bad_input(simulate, data):
    def unpaired(rows):
        for number, row in enumerate(rows):
            row["file_name" if number % 2 else "text"] = ""

    write_site(data / "unpaired", unpaired)
    assert "the federation begins" in simulate("--data", data).err


def test_tables(refuses, data, tmp_path):
    bad = write_site(data / "bad", columns=["labels", "split"])
    refuses("--data", data, says=["site 'bad'", "column-missing", "'file_name'"], table=True)
    for content, rule in (
        ("", "table"),
        ("file_name,text\n", "no-rows"),
        ('file_name,text\n"never closed', "table-unreadable"),
        ("file_name;text\na;b\n", "table-header"),
        (b"\xff\xfef\0i\0", "table-encoding"),
    ):
        (bad / "metadata.csv").write_bytes(
            content.encode() if isinstance(content, str) else content
        )
        refuses("--data", data, says=["site 'bad'", rule], table=True)
    (bad / "metadata.csv").unlink()
    refuses("--data", data, says=[f"{bad}: pictures but no metadata.csv"])
    (tmp_path / "table.parquet").write_bytes(b"PAR1 zebra-report")
    refuses("--data", tmp_path / "table.parquet", says=["table-unreadable"], table=True)


def test_folders(refuses, data, tmp_path):
    (tmp_path / "empty").mkdir()
    refuses("--data", tmp_path / "empty", says=[f"{tmp_path / 'empty'}: no metadata.csv"])
    refuses("--data", tmp_path / "none", says=["none: no such folder or table"])
    (tmp_path / "notes.txt").write_text("zebra-report")
    refuses("--data", tmp_path / "notes.txt", says=["notes.txt", ".csv, .jsonl or .parquet"])
    refuses("--data", data, "--sites", "3", says=["--sites", "data of your own"])
    refuses("--data", data, "--set", "data.sites=['god']", says=["data.sites", "mean 'good'?"])
    site = data / "good"
    refuses("--data", site, "--site-column", "hospital", says=["no column 'hospital'"])
    refuses("--data", site, "--site-column", "Split_", says=["did you mean 'split'?"])
    refuses("--data", site, "--column", "txt=text", says=["'txt'", "did you mean 'text'?"])
    refuses("--data", site, "--column", "text=txet", says=["column-missing"], table=True)


def test_problems_of_all_sites_are_shown_at_once_and_say_whose_they_are(refuses, data):
    write_site(data / "blank", ROWS["text-blank"])
    write_site(data / "twice", ROWS["patient-in-two-splits"])
    ended = refuses("--data", data, says=["2 sites have problems", "site 'blank'"], table=True)
    table = ended.err.split("\n", 1)[1]
    assert "blank: " in table
    assert "twice: " in table


def test_data_check_shows_the_same(command, data):
    PICTURES["dicom-burned-in-text"](write_site(data / "bad") / "zebrafile2.png")
    ended = command("data", "check", data)
    assert (ended.code, ended.err) == (2, "")
    assert "dicom-burned-in-text" in ended.out
    tree = json.loads(command("data", "check", data, "--json").out)
    assert tree["ok"] is False


# --- the run directory ---


@pytest.fixture
def begun(simulate, tmp_path):
    """A run directory whose federation was about to begin."""
    assert simulate("--sites", "2").code == 1
    (run,) = (path for path in (tmp_path / "runs").iterdir() if path.is_dir())
    return run


def test_the_next_run_has_another_name_also_after_a_folder_was_removed(simulate, begun, tmp_path):
    assert simulate("--sites", "2").code == 1
    assert begun.with_name(f"{begun.name}-2").is_dir()


def _format(run):
    tree = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**tree, "format": 99}))


def _job(run):
    text = (run / "job.toml").read_text()
    (run / "job.toml").write_text(text.replace("rounds = 10", "rounds = 11"))


RUNS = {
    "another version": (_format, ["format 99", "expected 1", "version of consilia"]),
    "damaged manifest": (lambda r: (r / "manifest.json").write_text("{"), ["damaged"]),
    "manifest of something else": (
        lambda r: (r / "manifest.json").write_text('{"format": 1}'),
        ["damaged, or not that of a run"],
    ),
    "no manifest": (lambda r: (r / "manifest.json").unlink(), ["is not a run"]),
    "edited job": (_job, ["job.toml", "changed after the run began"]),
    "broken job": (lambda r: (r / "job.toml").write_text("rounds ="), ["job file cannot be read"]),
    "no job": (lambda r: (r / "job.toml").unlink(), ["no such job file"]),
}


@pytest.mark.parametrize("case", RUNS)
def test_run_directories(simulate, begun, case):
    damage, says = RUNS[case]
    damage(begun)
    before = sorted(begun.rglob("*"))
    ended = simulate("--resume", begun)
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
    assert str(begun) in ended.err
    assert all(words in ended.err for words in says), ended.err
    assert sorted(begun.rglob("*")) == before


def test_a_resumed_run_keeps_its_job(simulate, begun, tmp_path):
    job = tmp_path / "job.toml"
    job.write_text('name = "other"\n')
    for arguments, words in (
        ([job], "the job file"),
        (["--sites", "3"], "--sites"),
        (["--rounds", "3"], "rounds"),
        (["--set", "train.steps=1"], "train.steps"),
    ):
        ended = simulate("--resume", begun.name, *arguments)
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert f"leave out {words}" in ended.err


def test_two_processes_on_one_run(simulate, begun):
    with simulation.RunStore.open(begun):
        ended = simulate("--resume", begun)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "another process works on this run" in ended.err
    assert "the federation begins" in simulate("--resume", begun).err


def test_a_base_that_changed(simulate, begun, clip_folder):
    weights = clip_folder / "model.safetensors"
    original = weights.read_bytes()
    machine._encoder.cache_clear()  # the command begins with an empty one
    try:
        weights.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
        ended = simulate("--resume", begun)
    finally:
        weights.write_bytes(original)
        machine._encoder.cache_clear()
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert f"{clip_folder}: the base has sha256 " in ended.err
    assert "put that base back, or start a new run" in ended.err
