"""DICOM: refused by rule, decoded to what a person sees, and nothing read but the allow-list."""

import logging
import warnings

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless, RLELossless, generate_uid

from client.data.dicom import TAGS
from client.data.images import read_picture
from client.data.sources import SiteSource
from shared.errors import ConfigError, DataError

RAMP = np.arange(576, dtype=np.uint16).reshape(24, 24)  # 0..575
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def write(path, pixels=RAMP, *, bits=12, **tags):
    """A radiograph that may be used, unless ``tags`` say otherwise (``None`` leaves one out)."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = tags.pop("syntax", ExplicitVRLittleEndian)
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.PatientIdentityRemoved = "YES"
    dataset.Modality = "DX"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored = min(bits, dataset.BitsAllocated)
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    # What the rules demand to be removed, and what must not be read either way.
    dataset.PatientName = "Zebra^Zoe"
    dataset.PatientID = "zebrapatient"
    dataset.PatientBirthDate = "19700101"
    dataset.InstitutionName = "zebra hospital"
    dataset.ImageComments = "zebra-report"
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def refused(path, **options):
    with pytest.raises(DataError) as caught:
        read_picture(path, **options)
    return [problem.rule for problem in caught.value.problems]


def pixels_of(path):
    _, image = read_picture(path)
    return np.asarray(image)


# --- the rules ---


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("value", [None, "NO", ""])
def test_identity_that_was_not_removed(tmp_path, value, quick):
    path = write(tmp_path / "a.dcm", PatientIdentityRemoved=value)
    assert refused(path, quick=quick) == ["dicom-identity-not-removed"]


def test_burned_in_text(tmp_path):
    path = write(tmp_path / "a.dcm", BurnedInAnnotation="YES")
    assert refused(path) == ["dicom-burned-in-text"]


@pytest.mark.parametrize("modality", ["US", "SC", "XC", "ES", None, ""])
def test_captured_pictures_must_say_that_nothing_is_burned_in(tmp_path, modality):
    path = write(tmp_path / "a.dcm", Modality=modality)
    assert refused(path) == ["dicom-secondary-capture"]
    path = write(tmp_path / "b.dcm", Modality=modality, BurnedInAnnotation="NO")
    assert read_picture(path)[0].format == "DICOM"


def test_secondary_capture_of_another_modality(tmp_path):
    path = write(tmp_path / "a.dcm", SOPClassUID=SECONDARY_CAPTURE)
    assert refused(path) == ["dicom-secondary-capture"]


def test_a_radiograph_need_not_speak_of_burned_in_text(tmp_path):
    assert read_picture(write(tmp_path / "a.dcm"))[0].mode == "MONOCHROME2"


def test_all_broken_rules_are_named(tmp_path):
    path = write(tmp_path / "a.dcm", PatientIdentityRemoved="NO", Modality="US")
    assert refused(path) == ["dicom-identity-not-removed", "dicom-secondary-capture"]


def test_a_site_overrides_a_rule_by_name_only(tmp_path):
    path = write(tmp_path / "a.dcm", PatientIdentityRemoved="NO", Modality="US")
    accept = ("dicom-identity-not-removed",)
    assert refused(path, accept=accept) == ["dicom-secondary-capture"]
    SiteSource("a", path, tmp_path, accept=accept)
    with pytest.raises(ConfigError, match="can be overridden"):
        SiteSource("a", path, tmp_path, accept=("image-empty",))


def test_rules_apply_whatever_the_file_is_called(tmp_path):
    path = write(tmp_path / "a.png", PatientIdentityRemoved="NO")
    assert refused(path) == ["dicom-identity-not-removed"]


# --- refused pictures ---


def test_not_dicom_truncated_and_without_a_picture(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"zebra-report" * 40)
    assert refused(tmp_path / "a.dcm") == ["image-unreadable"]
    path = write(tmp_path / "b.dcm")
    path.write_bytes(path.read_bytes()[:-600])
    assert refused(path) == ["image-unreadable"]
    path = write(tmp_path / "c.dcm", Rows=None, Columns=None, PixelData=None)
    assert refused(path) == ["image-format"]


def test_several_frames(tmp_path):
    path = write(tmp_path / "a.dcm", NumberOfFrames=2, PixelData=RAMP.tobytes() * 2)
    assert refused(path) == ["image-animated"]


def test_bomb(tmp_path):
    assert refused(write(tmp_path / "a.dcm", Rows=60_000, Columns=60_000)) == ["image-too-large"]


def test_compression_that_cannot_be_decoded(tmp_path):
    from pydicom.encaps import encapsulate

    data = encapsulate([b"\xff\xd8\xff\xf7" + b"\0" * 64])
    path = write(tmp_path / "a.dcm", syntax=JPEGLSLossless, PixelData=data)
    assert refused(path) == ["dicom-compression"]


# --- what a person sees ---


def test_run_length_compression(tmp_path):
    path = write(tmp_path / "a.dcm")
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.save_as(tmp_path / "b.dcm")
    np.testing.assert_array_equal(pixels_of(tmp_path / "b.dcm"), pixels_of(path))


def test_without_a_window_from_smallest_to_largest(tmp_path):
    np.testing.assert_array_equal(pixels_of(write(tmp_path / "a.dcm")), np.rint(RAMP / 575 * 255))


def test_window_is_applied(tmp_path):
    """Center 300, width 201: grey levels 199.5 .. 399.5."""
    path = write(tmp_path / "a.dcm", WindowCenter=300, WindowWidth=201)
    expected = np.rint(np.clip((RAMP - 199.5) / 200, 0, 1) * 255)
    np.testing.assert_array_equal(pixels_of(path), expected)


def test_the_first_of_several_windows_counts(tmp_path):
    one = write(tmp_path / "a.dcm", WindowCenter=300, WindowWidth=201)
    two = write(tmp_path / "b.dcm", WindowCenter=[300, 40], WindowWidth=[201, 400])
    np.testing.assert_array_equal(pixels_of(one), pixels_of(two))


def test_rescale_comes_before_the_window(tmp_path):
    """Stored 0..575 times 2 minus 1000; a CT window in Hounsfield units."""
    path = write(
        tmp_path / "a.dcm",
        RescaleSlope=2,
        RescaleIntercept=-1000,
        WindowCenter=-500,
        WindowWidth=1001,
    )
    expected = np.rint(np.clip((RAMP * 2.0 - 1000 + 1000.5) / 1000, 0, 1) * 255)
    np.testing.assert_array_equal(pixels_of(path), expected)


def test_monochrome1_is_inverted(tmp_path):
    plain = pixels_of(write(tmp_path / "a.dcm"))
    inverse = pixels_of(write(tmp_path / "b.dcm", PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(inverse, 255 - plain)
    assert inverse[0, 0] == 255


def test_lookup_table_is_applied(tmp_path):
    table = pydicom.Dataset()
    table.LUTDescriptor = [576, 0, 16]
    table.LUTData = (65535 - np.arange(576, dtype=np.uint16) * 100).tobytes()
    table["LUTData"].VR = "OW"
    path = write(tmp_path / "a.dcm", VOILUTSequence=Sequence([table]))
    expected = np.rint((65535 - RAMP.astype(float) * 100) / 65535 * 255)
    np.testing.assert_array_equal(pixels_of(path), expected)


def test_padding_does_not_count(tmp_path):
    padded = RAMP.astype(np.int16)
    padded[0] = -2000
    path = write(tmp_path / "a.dcm", padded, bits=16, PixelPaddingValue=-2000)
    values = pixels_of(path)
    assert values[0].max() == 0
    assert values[1, 0] == 0
    assert values[-1, -1] == 255


def test_8_bit_is_taken_as_it_is(tmp_path):
    grey = (RAMP % 100 + 20).astype(np.uint8)
    np.testing.assert_array_equal(pixels_of(write(tmp_path / "a.dcm", grey, bits=8)), grey)


def test_colours(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    path = write(tmp_path / "a.dcm", colours, bits=8)
    np.testing.assert_array_equal(pixels_of(path), colours)


# --- nothing leaks ---


def test_only_the_allow_list_is_read(tmp_path, monkeypatch):
    seen = []
    original = pydicom.dcmread
    monkeypatch.setattr(
        pydicom, "dcmread", lambda *a, **k: seen.append(original(*a, **k)) or seen[-1]
    )
    read_picture(write(tmp_path / "a.dcm"))
    read_keywords = {element.keyword for element in seen[0]}
    assert read_keywords <= set(TAGS)
    assert "PatientName" not in TAGS
    assert not any(name.startswith("Patient") and name != "PatientIdentityRemoved" for name in TAGS)


def test_no_value_of_a_tag_is_logged_warned_or_raised(tmp_path, caplog, capsys):
    caplog.set_level(logging.DEBUG)
    for number, tags in enumerate(
        [
            {"PatientIdentityRemoved": "ZEBRA"},
            {"BurnedInAnnotation": "YES"},
            {"PhotometricInterpretation": "ZEBRA"},
            {"WindowCenter": "1", "WindowWidth": "0"},
            {"SOPClassUID": "1.2.3.4.77777777777"},
        ]
    ):
        path = write(tmp_path / f"zebrafile{number}.dcm", **tags)
        # A value that does not fit its type: pydicom warns, logs and quotes it when reading.
        path.write_bytes(path.read_bytes().replace(b"4.77777777777", b"4.zebrazebraz"))
        caplog.clear()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                words = str(read_picture(path)[0])
            except DataError as error:
                words = f"{error} {error.problems}"
        words += caplog.text + str([str(w.message) for w in warned]) + str(capsys.readouterr())
        assert "zebra" not in words.lower()
