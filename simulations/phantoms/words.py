"""The words of each reporting style, and the local conventions that contradict the usual ones.

A template may use ``{side}``, ``{zone}``, ``{size}`` (small, moderate, large), ``{degree}`` (mild,
moderate, severe) and ``{adverb}`` (mildly, ...). The usual words of all styles agree with each
other on what they mean. A *convention* is what only one institution means by its words: "pe" for
pleural effusion here and pulmonary edema there, grade 1 as the worst grade, "opacity" for an
atelectasis. That is why one shared model cannot serve everybody.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

Words = tuple[str, str, str]
Templates = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Vocabulary:
    """How findings are put into words.

    Attributes:
        say: Templates for each finding.
        negations: The negative statement about a finding, where one is used.
        sides: Words for right and left.
        zones: Words for upper, mid and lower.
        cuts: Severities above which the second and the third word apply.
        sizes: Words for size.
        degrees: Words for intensity.
        adverbs: The same as adverbs.
    """

    say: Templates
    negations: Mapping[str, str]
    sides: tuple[str, str] = ("right", "left")
    zones: Words = ("upper", "mid", "lower")
    cuts: tuple[float, float] = (1 / 3, 2 / 3)
    sizes: Words = ("small", "moderate", "large")
    degrees: Words = ("mild", "moderate", "severe")
    adverbs: Words = ("mildly", "moderately", "severely")


@dataclass(frozen=True)
class Style:
    """A register of reports.

    Attributes:
        usual: What its words usually mean.
        local: The institution's own convention; the same as ``usual`` if it has none.
        normals: What is said of a film without findings.
        separator: Between statements.
        negation_rate: Probability of each possible negation.
        omission_rate: Probability that a finding is missed; higher for small ones.
        chronic_silence: Probability that a chronic finding goes without saying, by convention.
    """

    usual: Vocabulary
    local: Vocabulary
    normals: tuple[str, ...]
    separator: str = ". "
    negation_rate: float = 0.35
    omission_rate: float = 0.05
    chronic_silence: float = 0.0


@dataclass(frozen=True)
class Changes:
    """What a local convention changes in a vocabulary; None leaves a part as it is."""

    say: Templates = field(default_factory=dict)
    negations: Mapping[str, str] = field(default_factory=dict)
    cuts: tuple[float, float] | None = None
    sizes: Words | None = None
    degrees: Words | None = None

    def applied_to(self, usual: Vocabulary) -> Vocabulary:
        """The vocabulary under this convention."""
        return replace(
            usual,
            say={**usual.say, **self.say},
            negations={**usual.negations, **self.negations},
            cuts=self.cuts or usual.cuts,
            sizes=self.sizes or usual.sizes,
            degrees=self.degrees or usual.degrees,
        )


_STANDARD = Vocabulary(
    say={
        "effusion": (
            "{size} {side} pleural effusion",
            "there is a {size} {side} pleural effusion",
        ),
        "pneumothorax": (
            "{size} {side} pneumothorax",
            "there is a {size} pneumothorax on the {side}",
        ),
        "consolidation": (
            "{side} {zone} zone consolidation",
            "consolidation in the {side} {zone} lung",
        ),
        "atelectasis": (
            "linear atelectasis in the {side} {zone} zone",
            "{side} {zone} plate atelectasis",
        ),
        "cardiomegaly": ("{degree} cardiomegaly", "the heart is {adverb} enlarged"),
        "nodule": ("{side} {zone} zone nodule", "nodular opacity in the {side} {zone} lung"),
        "edema": ("{degree} pulmonary edema", "{degree} vascular congestion"),
        "pacemaker": ("left chest pacemaker", "cardiac pacemaker in place"),
        "catheter": ("{side} central venous catheter", "{side} jugular central line"),
        "fracture": ("{side} rib fracture", "fractured rib on the {side}"),
        "hernia": ("hiatal hernia", "retrocardiac hiatal hernia"),
        "cavity": ("{side} {zone} cavitary lesion", "cavity in the {side} {zone} zone"),
    },
    negations={
        "effusion": "no pleural effusion",
        "pneumothorax": "no pneumothorax",
        "consolidation": "no focal consolidation",
        "cardiomegaly": "heart size is normal",
        "edema": "no pulmonary edema",
        "nodule": "no nodule",
    },
)

_UNIVERSITY = replace(
    _STANDARD,
    say={
        "effusion": (
            "{side} sided pleural effusion, {size} in volume",
            "blunting of the {side} costophrenic angle consistent with {size} effusion",
        ),
        "pneumothorax": (
            "{size} {side} apical pneumothorax with visible pleural line",
            "pleural line on the {side} in keeping with {size} pneumothorax",
        ),
        "consolidation": (
            "airspace opacity in the {side} {zone} zone",
            "{side} {zone} zone airspace disease suspicious for pneumonia",
        ),
        "atelectasis": (
            "subsegmental volume loss in the {side} {zone} zone",
            "band of discoid collapse, {side} {zone}",
        ),
        "cardiomegaly": (
            "cardiothoracic ratio {adverb} increased",
            "{degree} enlargement of the cardiac silhouette",
        ),
        "nodule": (
            "well circumscribed nodule projecting over the {side} {zone} zone",
            "{side} {zone} coin lesion",
        ),
        "edema": (
            "{degree} interstitial edema",
            "perihilar haze reflecting {degree} fluid overload",
        ),
        "pacemaker": (
            "cardiac conduction device with intact lead",
            "left sided pulse generator",
        ),
        "catheter": (
            "{side} central venous catheter terminates over the svc",
            "{side} internal jugular line in situ",
        ),
        "fracture": ("displaced {side} rib fracture", "{side} rib fracture with callus"),
        "hernia": (
            "retrocardiac air fluid level compatible with hiatus hernia",
            "large hiatus hernia",
        ),
        "cavity": (
            "thick walled cavity in the {side} {zone} zone",
            "{side} {zone} cavitating mass",
        ),
    },
)

_UNIVERSITY_LOCAL = Changes(
    say={"nodule": ("focal opacity in the {side} {zone} zone",)}, cuts=(0.45, 0.8)
)

_GERMAN = Vocabulary(
    say={
        "effusion": ("{size} pleuraerguss {side}", "{side} {size} erguss"),
        "pneumothorax": ("{size} pneumothorax {side}", "pneu {side}, {size} mantel"),
        "consolidation": (
            "infiltrat {side} im {zone}",
            "pneumonische verschattung {side} {zone}",
        ),
        "atelectasis": ("plattenatelektase {side} {zone}", "dystelektase im {zone} {side}"),
        "cardiomegaly": ("{degree} kardiomegalie", "{degree} herzverbreiterung"),
        "nodule": ("rundherd {side} im {zone}", "herdschatten {side} {zone}"),
        "edema": ("{degree} stauung", "{degree} pulmonalvenoese stauung"),
        "pacemaker": ("herzschrittmacher links", "schrittmacheraggregat"),
        "catheter": ("zvk {side}", "zentraler venenkatheter {side}"),
        "fracture": ("rippenfraktur {side}", "frakturierte rippe {side}"),
        "hernia": ("hiatushernie", "axiale hernie"),
        "cavity": ("kaverne {side} im {zone}", "einschmelzung {side} {zone}"),
    },
    negations={
        "effusion": "kein erguss",
        "pneumothorax": "kein pneumothorax",
        "consolidation": "kein infiltrat",
        "cardiomegaly": "herz normal gross",
        "edema": "keine stauung",
    },
    sides=("rechts", "links"),
    zones=("oberfeld", "mittelfeld", "unterfeld"),
    sizes=("kleiner", "maessiger", "grosser"),
    degrees=("leichte", "maessige", "schwere"),
)
_GERMAN_LOCAL = Changes(
    say={
        "atelectasis": ("verschattung {side} {zone}",),
        "consolidation": ("herd {side} im {zone}",),
    }
)

_INTENSIVE = Vocabulary(
    say={
        "effusion": ("{size} {side} eff",),
        "pneumothorax": ("{size} {side} ptx",),
        "consolidation": ("{side} {zone} cons", "{side} {zone} pna"),
        "atelectasis": ("{side} {zone} atel",),
        "cardiomegaly": ("cm",),
        "nodule": ("{side} {zone} nod",),
        "edema": ("{degree} edema",),
        "pacemaker": ("ppm",),
        "catheter": ("{side} ij ok", "{side} cvc"),
        "fracture": ("{side} rib fx",),
        "hernia": ("hh",),
        "cavity": ("{side} {zone} cav",),
    },
    negations={"effusion": "no eff", "pneumothorax": "no ptx", "edema": "no edema"},
    sides=("r", "l"),
    zones=("uz", "mz", "lz"),
    sizes=("sm", "mod", "lg"),
    degrees=("mild", "mod", "sev"),
)
_INTENSIVE_LOCAL = Changes(
    say={
        "effusion": ("{size} {side} pe",),
        "atelectasis": ("{side} {zone} atx",),
        "edema": ("{degree} chf",),
    },
    negations={"effusion": "no pe"},
    cuts=(0.5, 0.85),
)

_CLINIC = replace(
    _STANDARD,
    say={
        "effusion": ("{size} fluid on the {side}",),
        "pneumothorax": ("{side} lung down, {size} air",),
        "consolidation": ("{side} {zone} opacity", "pneumonia {side} {zone}"),
        "atelectasis": ("{side} {zone} streak",),
        "cardiomegaly": ("big heart",),
        "nodule": ("spot {side} {zone}",),
        "edema": ("wet lungs",),
        "pacemaker": ("pacer",),
        "catheter": ("line {side}",),
        "fracture": ("broken rib {side}",),
        "hernia": ("stomach behind heart",),
        "cavity": ("hole {side} {zone}",),
    },
    negations={"effusion": "no fluid", "pneumothorax": "lungs up", "cardiomegaly": "heart ok"},
    zones=("top", "middle", "bottom"),
    sizes=("little", "some", "much"),
)
_CLINIC_LOCAL = Changes(
    say={
        "effusion": ("{size} fluid at the {side} base",),
        "consolidation": ("{side} {zone} infiltrate", "pneumonia {side} {zone}"),
        "atelectasis": ("{side} {zone} opacity",),
    },
    cuts=(0.25, 0.55),
)

_ARCHIVE = replace(
    _STANDARD,
    say={
        "effusion": ("{size} hydrothorax, {side}", "{side} pleural fluid, {size}"),
        "pneumothorax": ("{size} pneumothorax, {side}",),
        "consolidation": (
            "pneumonic infiltration, {side} {zone} zone",
            "{side} {zone} lobe pneumonia",
        ),
        "atelectasis": ("platelike collapse, {side} {zone}",),
        "cardiomegaly": ("heart {adverb} enlarged",),
        "nodule": ("nodular shadow, {side} {zone}",),
        "edema": ("{degree} congestive change",),
        "pacemaker": ("pacing device noted", "cardiac pacemaker"),
        "catheter": ("central venous catheter, {side}",),
        "fracture": ("rib fracture, {side}", "healing {side} rib fracture"),
        "hernia": ("hiatal hernia",),
        "cavity": ("cavitation, {side} {zone}", "cavity in the {side} {zone} zone"),
    },
    sizes=("slight", "moderate", "massive"),
)
_ARCHIVE_LOCAL = Changes(say={"nodule": ("rounded opacity, {side} {zone}",)}, cuts=(0.4, 0.75))

_GRADES = replace(
    _STANDARD,
    say={
        "effusion": ("effusion {side} {size}",),
        "pneumothorax": ("ptx {side} {size}",),
        "consolidation": ("opacity {side} {zone}",),
        "atelectasis": ("collapse {side} {zone}",),
        "cardiomegaly": ("cardiomegaly {degree}",),
        "nodule": ("mass {side} {zone}",),
        "edema": ("edema {degree}",),
        "pacemaker": ("device",),
        "catheter": ("line {side}",),
        "fracture": ("fx {side}",),
        "hernia": ("hernia",),
        "cavity": ("cavity {side} {zone}",),
    },
    negations={"effusion": "effusion none", "pneumothorax": "ptx none", "edema": "edema none"},
    sizes=("grade 1", "grade 2", "grade 3"),
    degrees=("grade 1", "grade 2", "grade 3"),
)
_GRADES_LOCAL = Changes(
    say={"edema": ("pe {degree}",)},
    negations={"edema": "pe none"},
    sizes=("grade 3", "grade 2", "grade 1"),
    degrees=("grade 3", "grade 2", "grade 1"),
)

# What every English-speaking institution usually calls the findings that the public corpus never
# shows: pooling can teach a rare finding only where it has a common name. An institution's own
# jargon for them ("ppm", "stomach behind heart") is part of its local convention.
_COMMON_NAMES: Templates = {
    "pacemaker": ("cardiac pacemaker", "pacemaker in place"),
    "catheter": ("{side} central venous catheter",),
    "fracture": ("{side} rib fracture",),
    "hernia": ("hiatal hernia",),
    "cavity": ("{side} {zone} cavity",),
}


def _commonly(vocabulary: Vocabulary) -> Vocabulary:
    return replace(vocabulary, say={**vocabulary.say, **_COMMON_NAMES})


STYLES: Mapping[str, Style] = {
    "std": Style(
        _commonly(_STANDARD),
        _STANDARD,
        ("no acute cardiopulmonary abnormality", "normal chest radiograph", "lungs are clear"),
    ),
    "univ": Style(
        _commonly(_UNIVERSITY),
        _UNIVERSITY_LOCAL.applied_to(_UNIVERSITY),
        ("no acute cardiopulmonary process", "no acute finding"),
        negation_rate=0.45,
    ),
    "german": Style(
        _GERMAN,
        _GERMAN_LOCAL.applied_to(_GERMAN),
        ("altersentsprechender befund", "kein akuter befund"),
        negation_rate=0.3,
        omission_rate=0.08,
    ),
    "icu": Style(
        _commonly(_INTENSIVE),
        _INTENSIVE_LOCAL.applied_to(_INTENSIVE),
        ("nad", "stable"),
        separator=", ",
        negation_rate=0.3,
        omission_rate=0.12,
    ),
    "clinic": Style(
        _commonly(_CLINIC),
        _CLINIC_LOCAL.applied_to(_CLINIC),
        ("chest ok", "no acute finding"),
        negation_rate=0.2,
        omission_rate=0.15,
        chronic_silence=0.5,
    ),
    "archive": Style(
        _commonly(_ARCHIVE),
        _ARCHIVE_LOCAL.applied_to(_ARCHIVE),
        ("normal chest", "no active disease"),
        separator="; ",
        negation_rate=0.3,
    ),
    "grades": Style(
        _commonly(_GRADES),
        _GRADES_LOCAL.applied_to(_GRADES),
        ("negative",),
        separator=" / ",
        negation_rate=0.4,
    ),
}
