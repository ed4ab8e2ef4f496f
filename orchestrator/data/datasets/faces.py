"""Drawn faces, any number of them, with one of four ages as the class and a caption.

They are drawings, not photographs: the style "Personas by Draftbit", CC BY 4.0, by DiceBear
(https://personas.draftbit.com, https://www.dicebear.com). Face n is person n at age n mod 4. The
number n alone determines the person's skin, clothes, mouth, hair and so on. Age changes only hair,
nose, facial hair, glasses and, for children, the size.
"""

import random
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

from orchestrator.data.datasets.request import FetchRequest, missing_package, pack_samples
from orchestrator.data.datasets.svg import draw_all, render_svg
from orchestrator.data.format.images import to_png
from orchestrator.data.prepare.split import VALIDATION_SHARE, PackedSample, PackSummary, is_held_out

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
"""Fraction of the people; who wears glasses at one age does so at every later age."""
SCALE = {"child": 0.95, "young": 1.2, "middle_aged": 1.2, "old": 1.2}


@dataclass(frozen=True)
class Face:
    """Description of a face."""

    options: dict[str, object]
    """DiceBear's options."""
    caption: str
    """An English sentence without its full stop."""


def describe_face(number: int, age: str) -> Face:
    """Describe person ``number`` at ``age``, one of AGES; a pure function of both."""
    person = random.Random(f"face {number}")
    skin = person.choice(SKINS)
    clothes, clothes_colour = person.choice([*CLOTHES]), person.choice([*CLOTHES_COLOURS])
    mouth, eyes = person.choice([*MOUTHS]), person.choice([*EYES])
    length = person.choice(("long", "short"))
    colours = person.choice([*HAIR_COLOURS]), person.choice([*OLD_HAIR_COLOURS])
    shown, bearded, glasses = person.random(), person.random() < 0.5, person.random()
    # The same relative position in every list, so that a person's style is consistent over ages.
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


def _at(choices: tuple[str, ...], position: float) -> str:
    return choices[int(position * len(choices))]


def draw_svg(number: int, age: str) -> str:
    """Draw person ``number`` at ``age`` as an SVG."""
    from dicebear import Avatar

    return str(Avatar(_style(), describe_face(number, age).options))


def draw_face(number: int, size: int) -> PackedSample:
    """Render face ``number`` at ``size`` px, at age ``number`` mod 4."""
    label = number % len(AGES)
    drawing = draw_svg(number, AGES[label])
    return PackedSample(
        key=f"{number:07d}",
        images={"image": to_png(render_svg(drawing, size))},
        # A hash of the SVG, not of the pixels: every size has the same faces in the same sets.
        for_validation=is_held_out(drawing.encode(), VALIDATION_SHARE),
        image_size=size,
        label=label,
        caption=describe_face(number, AGES[label]).caption,
    )


def pack(request: FetchRequest) -> PackSummary:
    """Draw ``count`` faces, by default 20,000, a tenth held out by a hash of the drawing.

    Raises EnvironmentProblem if the packages of the ``data`` extra are not installed.
    """
    _style()
    count = request.count or DEFAULT_COUNT
    samples = draw_all(partial(draw_face, size=request.size), range(count))
    readme = f"""# {count} drawn faces, {request.size} px

Drawings, not photographs: "Personas by Draftbit" (https://personas.draftbit.com) by Draftbit,
CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/), drawn by DiceBear (dicebear-core and
dicebear-styles, https://www.dicebear.com) with hair colours of our own. The classes are ages,
{", ".join(AGES)}; the captions say what is drawn. A tenth is held out for validation, by a hash
of the drawing. Packed by `orchestrator data fetch faces`.
"""
    return pack_samples(request, samples, count, classes=AGES, files={"README.md": readme.encode()})


@cache
def _style() -> "Style":
    try:
        import dicebear_styles
        import resvg_py  # noqa: F401 - fail here and not in every process that draws
        from dicebear import Style
    except ImportError as error:
        raise missing_package(error.name) from error
    import json
    from importlib.resources import files

    return Style(json.loads(files(dicebear_styles).joinpath(f"{STYLE}.json").read_text("utf-8")))
