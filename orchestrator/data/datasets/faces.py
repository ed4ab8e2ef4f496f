"""Drawn faces, any number of them: the class is one of four ages, the caption says what is drawn.

They are drawings, not photographs: the style "Personas by Draftbit", CC BY 4.0, by DiceBear
(https://personas.draftbit.com, https://www.dicebear.com). Face number n is a person whose skin,
clothes, mouth, hair and the like are drawn by n alone, seen at age n mod 4. What age changes is
``AGE_OPTIONS``: hair, nose, facial hair, glasses and, for children, the size; all else stays.
"""

import random
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

from orchestrator.data.datasets.svg import drawn, rendered
from orchestrator.data.format.images import to_png
from orchestrator.data.prepare.split import (
    VALIDATION_SHARE,
    FetchRequest,
    PackSummary,
    Sample,
    SplitWriter,
    falls_to_validation,
)
from orchestrator.errors import EnvironmentProblem
from orchestrator.storage.open import open_storage

if TYPE_CHECKING:
    from dicebear import Style

DEFAULT_COUNT = 20_000
STYLE = "personas"
AGES = ("child", "young", "middle_aged", "old")
"""The classes."""

SKINS = ("#eeb4a4", "#e7a391", "#e5a07e", "#d78774", "#b16a5b", "#92594b", "#623d36")
HAIR_COLOURS = {
    "black": "#2a2430",
    "dark brown": "#553428",
    "brown": "#85563a",
    "red": "#c4562b",
    "blond": "#e0b565",
}
OLD_HAIR_COLOURS = {"grey": "#a9adb8", "white": "#e6e7ee"}
CLOTHES = {
    "checkered": "checkered shirt",
    "rounded": "round-necked shirt",
    "small": "T-shirt",
    "squared": "wrap shirt",
}
CLOTHES_COLOURS = {
    "blue": "#456dff",
    "green": "#6dbb58",
    "pink": "#f55d81",
    "purple": "#7555ca",
    "red": "#e24553",
    "turquoise": "#54d7c7",
    "yellow": "#f3b63a",
}
MOUTHS = {
    "bigSmile": "a big smile",
    "frown": "a frown",
    "lips": "red lips",
    "smile": "a smile",
    "smirk": "a smirk",
    "surprise": "an open mouth",
}
EYES = {"open": "", "happy": "happy eyes", "sleep": "closed eyes", "wink": "a wink"}
HAIR = {
    "balding": "thinning {} hair",
    "bobBangs": "bobbed {} hair with a fringe",
    "bobCut": "bobbed {} hair",
    "bunUndercut": "{} hair in a top bun",
    "buzzcut": "very short hair",
    "curly": "curly {} hair",
    "curlyBun": "{} curls tied up",
    "curlyHighTop": "high curly {} hair",
    "extraLong": "very long {} hair",
    "fade": "short {} hair",
    "long": "long {} hair",
    "mohawk": "a {} mohawk",
    "pigtails": "{} pigtails",
    "shortCombover": "combed {} hair",
    "shortComboverChops": "combed {} hair and sideburns",
    "sideShave": "{} hair shaved at the side",
    "straightBun": "{} hair in a bun",
}
HAIRSTYLES = {
    "long": {
        "child": ("pigtails", "bobBangs"),
        "young": ("long", "extraLong", "curlyBun", "sideShave"),
        "middle_aged": ("bobCut", "curly", "straightBun"),
        "old": ("straightBun", "curly", "bobCut"),
    },
    "short": {
        "child": ("fade", "buzzcut"),
        "young": ("curlyHighTop", "mohawk", "bunUndercut", "fade"),
        "middle_aged": ("shortCombover", "shortComboverChops", "buzzcut"),
        "old": ("balding", "balding", "shortComboverChops"),
    },
}
FACIAL_HAIR = {
    "shadow": "stubble",
    "soulPatch": "a soul patch",
    "goatee": "a goatee",
    "pyramid": "a moustache",
    "walrus": "a walrus moustache",
    "beardMustache": "a full beard",
}
FACIAL_HAIRSTYLES = {
    "child": (),
    "young": ("shadow", "soulPatch"),
    "middle_aged": ("goatee", "pyramid", "beardMustache"),
    "old": ("walrus", "beardMustache"),
}
NOSES = {
    "child": "smallRound",
    "young": "smallRound",
    "middle_aged": "mediumRound",
    "old": "wrinkles",
}
WEARS_GLASSES = {"child": 0.1, "young": 0.2, "middle_aged": 0.4, "old": 0.6}
"""Share of the people; who wears them at one age does so at each later one."""
SCALE = {"child": 0.95, "young": 1.2, "middle_aged": 1.2, "old": 1.2}
AGE_OPTIONS = {
    "eyesVariant",
    "facialHairColor",
    "facialHairProbability",
    "facialHairVariant",
    "hairColor",
    "hairVariant",
    "noseVariant",
    "scale",
    "translateY",
}
"""DiceBear's options that age may change."""


@dataclass(frozen=True)
class Face:
    """What is drawn."""

    options: dict[str, object]
    """As DiceBear takes them."""
    caption: str
    """One English sentence without its full stop."""


def face(number: int, age: str) -> Face:
    """Person ``number`` at ``age``, one of AGES; always the same."""
    person = random.Random(f"face {number}")
    skin = person.choice(SKINS)
    clothes, clothes_colour = person.choice([*CLOTHES]), person.choice([*CLOTHES_COLOURS])
    mouth, eyes = person.choice([*MOUTHS]), person.choice([*EYES])
    length = person.choice(("long", "short"))
    colours = person.choice([*HAIR_COLOURS]), person.choice([*OLD_HAIR_COLOURS])
    shown, bearded, glasses = person.random(), person.random() < 0.5, person.random()
    # The same share of each list, whatever its length, so that a person keeps her place.
    hair = _at(HAIRSTYLES[length][age], shown)
    colour = colours[1] if age == "old" else colours[0]
    hexes = HAIR_COLOURS | OLD_HAIR_COLOURS
    beards = FACIAL_HAIRSTYLES[age] if bearded and length == "short" else ()
    beard = _at(beards, shown) if beards else None
    if glasses < WEARS_GLASSES[age]:
        eyes = "glasses"
    options: dict[str, object] = {
        "seed": str(number),
        "skinColor": [skin],
        "clothesVariant": clothes,
        "clothingColor": [CLOTHES_COLOURS[clothes_colour]],
        "mouthVariant": mouth,
        "eyesVariant": eyes,
        "hairVariant": hair,
        "hairColor": [hexes[colour]],
        "noseVariant": NOSES[age],
        "facialHairProbability": 100 if beard else 0,
        "scale": SCALE[age],
        "translateY": 6,
    }
    if beard:
        options |= {"facialHairVariant": beard, "facialHairColor": [hexes[colour]]}
    features = [
        HAIR[hair].format(colour),
        FACIAL_HAIR[beard] if beard else "",
        "glasses" if eyes == "glasses" else EYES[eyes],
        MOUTHS[mouth],
    ]
    *first, last = [feature for feature in features if feature]
    who = {"middle_aged": "a middle-aged person", "old": "an old person", "child": "a child"}
    return Face(
        options,
        f"a drawn face of {who.get(age, 'a young person')} with {', '.join(first)} and {last}, "
        f"in a {clothes_colour} {CLOTHES[clothes]}",
    )


def _at(choices: tuple[str, ...], share: float) -> str:
    return choices[int(share * len(choices))]


def svg(number: int, age: str) -> str:
    """The drawing of ``face(number, age)``."""
    from dicebear import Avatar

    return str(Avatar(_style(), face(number, age).options))


def draw_face(number: int, size: int) -> Sample:
    """Face ``number`` at ``size`` px, at the age that its number says."""
    label = number % len(AGES)
    drawing = svg(number, AGES[label])
    return Sample(
        key=f"{number:07d}",
        images={"image": to_png(rendered(drawing, size))},
        # By the drawing, not its pixels: every packed size has the same faces in the same sets.
        for_validation=falls_to_validation(drawing.encode(), VALIDATION_SHARE),
        image_size=size,
        label=label,
        caption=face(number, AGES[label]).caption,
    )


def pack(request: FetchRequest) -> PackSummary:
    """Draw ``count`` faces, by default 20,000, a tenth held out by a hash of the drawing.

    Raises EnvironmentProblem if the packages of the ``data`` extra are not installed.
    """
    _style()
    count = request.count or DEFAULT_COUNT
    writer = SplitWriter(request.dest_uri, classes=AGES)
    samples = drawn(partial(draw_face, size=request.size), range(count))
    writer.add_all(samples, count, request.progress)
    open_storage(request.dest_uri).put(
        "README.md",
        f"""# {count} drawn faces, {request.size} px

Drawings, not photographs: "Personas by Draftbit" (https://personas.draftbit.com) by Draftbit,
CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/), drawn by DiceBear (dicebear-core and
dicebear-styles, https://www.dicebear.com) with hair colours of our own. The classes are ages,
{", ".join(AGES)}; the captions say what is drawn. A tenth is held out for validation, by a hash
of the drawing. Packed by `orchestrator data fetch faces`.
""".encode(),
    )
    return writer.finish()


@cache
def _style() -> "Style":
    try:
        import dicebear_styles
        import resvg_py  # noqa: F401 - better missed here than in every process that draws
        from dicebear import Style
    except ImportError as error:
        raise EnvironmentProblem(
            f"the package {error.name} is not installed; "
            "get it with `pip install 'orchestrator[data]'`"
        ) from error
    import json
    from importlib.resources import files

    return Style(json.loads(files(dicebear_styles).joinpath(f"{STYLE}.json").read_text("utf-8")))
