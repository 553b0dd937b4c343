"""Which DICOM files may be used at all; DICOM PS3.15 Annex E.

De-identification by the Basic Profile does not clean the pixels: names burned into the
picture survive it. So a file must say that its identity was removed, must not say that it
has burned-in text, and, if it is of a sort that often has (ultrasound, secondary capture,
photographs, endoscopy), must say that it has none.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

_CAPTURED = {"US", "IVUS", "SC", "XC", "ES", ""}
_SECONDARY_CAPTURE_CLASS = "1.2.840.10008.5.1.4.1.1.7"


@dataclass(frozen=True)
class DicomTags:
    """The only tags that the rules read, in upper case; an absent tag is empty.

    Attributes:
        identity_removed: (0012,0062) PatientIdentityRemoved.
        burned_in: (0028,0301) BurnedInAnnotation.
        modality: (0008,0060) Modality.
        sop_class: (0008,0016) SOPClassUID.
    """

    identity_removed: str
    burned_in: str
    modality: str
    sop_class: str


@dataclass(frozen=True)
class DicomRule:
    """One rule: when it is broken, and what the file should say."""

    broken: Callable[[DicomTags], bool]
    message: str


def _identity_not_removed(tags: DicomTags) -> bool:
    return tags.identity_removed != "YES"


def _burned_in_text(tags: DicomTags) -> bool:
    return tags.burned_in == "YES"


def _secondary_capture(tags: DicomTags) -> bool:
    is_class = tags.sop_class == _SECONDARY_CAPTURE_CLASS or tags.sop_class.startswith(
        _SECONDARY_CAPTURE_CLASS + "."
    )
    return (tags.modality in _CAPTURED or is_class) and tags.burned_in not in {"NO", "YES"}


DICOM_RULES: Final[Mapping[str, DicomRule]] = {
    "dicom-identity-not-removed": DicomRule(
        _identity_not_removed,
        "(0012,0062) PatientIdentityRemoved is not YES; de-identify the file first",
    ),
    "dicom-burned-in-text": DicomRule(
        _burned_in_text,
        "(0028,0301) BurnedInAnnotation is YES; clean the pixels or leave the image out",
    ),
    "dicom-secondary-capture": DicomRule(
        _secondary_capture,
        "ultrasound, secondary capture, photograph, endoscopy or of no modality, and (0028,0301) "
        "BurnedInAnnotation is not NO; look at the picture and say so",
    ),
}
"""All rules of this file, by name; a site's own policy may override one by its name."""

OVERRIDABLE: Final = tuple(DICOM_RULES)


def broken_rules(tags: DicomTags, accept: tuple[str, ...] = ()) -> list[str]:
    """Return the names of the rules that a file breaks and the site does not accept."""
    return [name for name, rule in DICOM_RULES.items() if rule.broken(tags) and name not in accept]
