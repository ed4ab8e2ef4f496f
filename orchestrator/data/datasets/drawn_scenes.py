"""Drawn streets: the same scene by day and by night, in summer and in winter, and what it hides.

Scene n is a pure function of n: hills, houses, trees and one balloon, each at a depth between 0
(near) and 1 (the horizon). Every view of it is an SVG of the same geometry, so that two views are a
pair to the pixel. They stand for photographs, which no package ships.
"""

import random
from dataclasses import dataclass
from functools import cached_property

HORIZON = 56.0
"""Height of the horizon in the view box of 100 x 100, from the top."""
BASELINE = 14.0
"""How far a thing at depth 0 moves between the left and the right view."""

WALLS = ("#d9a066", "#c8553d", "#e8d4a2", "#9fb4c7", "#b5838d", "#f2efe9")
ROOFS = ("#8a3b2e", "#5b5f97", "#6b4f3a", "#3d5a6c")
CROWNS = ("#2f7d32", "#4c9a2a", "#6aa84f", "#1f6f50")
BALLOONS = ("#e63946", "#ff9f1c", "#f72585", "#7209b7")


@dataclass(frozen=True)
class Look:
    """Colours of a view."""

    sky: str
    disc: str
    hills: tuple[str, str]
    ground: str
    path: str
    window: str
    shade: str = "#000000"
    """What is mixed into the colours of walls, roofs and trees."""
    mixed: float = 0.0
    """How much of ``shade``, in [0, 1]."""
    snow: bool = False


DAY = Look("#a7d3f2", "#ffd84d", ("#8fb98b", "#76a66f"), "#8cc26b", "#d8c49a", "#5c7f99")
NIGHT = Look(
    "#141b3c", "#f4f1de", ("#1d2a3a", "#182430"), "#1b3327", "#3a3a46", "#ffd166", "#0b1030", 0.62
)
WINTER = Look(
    "#d5dde6", "#fbf3d0", ("#e4eaf0", "#d9e1e9"), "#f4f7fa", "#d3d8de", "#5c7f99", "#ffffff", 0.18,
    snow=True,
)  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """A house, a tree or the balloon."""

    kind: str
    left: float
    """Centre, in the view box."""
    depth: float
    size: float
    """Height before the distance makes it smaller."""
    colours: tuple[str, str]
    is_conifer: bool = False

    @property
    def scale(self) -> float:
        """How much smaller it looks than at depth 0."""
        return 1.0 - 0.72 * self.depth

    @property
    def foot(self) -> float:
        """Height in the view box at which it stands; the balloon hangs from there."""
        return 98.0 - (98.0 - HORIZON) * self.depth


@dataclass(frozen=True)
class Scene:
    """Scene ``number``."""

    number: int

    @cached_property
    def things(self) -> tuple[Thing, ...]:
        """Houses, trees and the balloon, the farthest first."""
        draw = random.Random(f"scene {self.number}")
        found = [
            Thing(
                "house", draw.uniform(5, 95), draw.uniform(0.25, 0.8), draw.uniform(34, 50),
                (draw.choice(WALLS), draw.choice(ROOFS)),
            )
            for _ in range(draw.randint(2, 4))
        ]  # fmt: skip
        found += [
            Thing(
                "tree", draw.uniform(2, 98), draw.uniform(0.05, 0.9), draw.uniform(30, 48),
                (draw.choice(CROWNS), "#6b4a2f"), draw.random() < 0.4,
            )
            for _ in range(draw.randint(3, 7))
        ]  # fmt: skip
        colour = draw.choice(BALLOONS)
        place = draw.uniform(12, 88), draw.uniform(0.1, 0.6), draw.uniform(46, 80)
        found.append(Thing("balloon", *place, (colour, "#6b4a2f")))
        return tuple(sorted(found, key=lambda thing: -thing.depth))

    @cached_property
    def hills(self) -> tuple[tuple[float, float], ...]:
        """Centre and height of each hill."""
        draw = random.Random(f"hills {self.number}")
        return tuple((draw.uniform(0, 100), draw.uniform(6, 20)) for _ in range(4))

    @cached_property
    def disc(self) -> tuple[float, float]:
        """Place of the sun or the moon."""
        draw = random.Random(f"sky {self.number}")
        return draw.uniform(8, 92), draw.uniform(8, 26)


def draw_view(scene: Scene, look: Look, shift: float = 0.0) -> str:
    """Draw a scene as an SVG; ``shift`` moves the eye: near things by that much to the left."""
    sun_left, sun_top = scene.disc
    parts = [
        f'<rect width="100" height="100" fill="{look.sky}"/>',
        f'<circle cx="{sun_left:.2f}" cy="{sun_top:.2f}" r="6" fill="{look.disc}"/>',
    ]
    for number, (centre, height) in enumerate(scene.hills):
        parts.append(
            f'<ellipse cx="{centre:.2f}" cy="{HORIZON}" rx="38" ry="{height:.2f}" '
            f'fill="{look.hills[number % 2]}"/>'
        )
    parts += [
        f'<rect y="{HORIZON}" width="100" height="{100 - HORIZON}" fill="{look.ground}"/>',
        f'<polygon points="49,{HORIZON} 51,{HORIZON} {70 - shift:.2f},100 {30 - shift:.2f},100" '
        f'fill="{look.path}"/>',
    ]
    parts += [_draw_thing(thing, look, shift) for thing in scene.things]
    return _svg(parts)


def draw_depth(scene: Scene) -> str:
    """Draw the depth of a scene: white is near, black is as far as the sky."""
    strips = 22
    height = (100 - HORIZON) / strips
    parts = ['<rect width="100" height="100" fill="#000000"/>']
    for strip in range(strips):
        top = HORIZON + strip * height
        depth = 1 - (top + height - HORIZON) / (100 - HORIZON)
        # Down to the bottom, so that no black shines through where two strips meet.
        parts.append(
            f'<rect y="{top:.2f}" width="100" height="{100 - top:.2f}" fill="{_grey(depth)}"/>'
        )
    for thing in scene.things:
        grey = _grey(thing.depth)
        flat = Look(grey, grey, (grey, grey), grey, grey, grey, grey, 1.0)
        parts.append(_draw_thing(thing, flat, 0.0))
    return _svg(parts)


def draw_attention(scene: Scene) -> str:
    """Draw where the eye goes: a white spot on the balloon, a fainter one on the nearest house."""
    spots = []
    (balloon,) = (thing for thing in scene.things if thing.kind == "balloon")
    radius = 9 * balloon.scale
    centre = _balloon_centre(balloon)
    spots.append((balloon.left, centre, 2.2 * radius, 1.0))
    house = [thing for thing in scene.things if thing.kind == "house"][-1]
    height = house.size * house.scale
    spots.append((house.left, house.foot - height / 2, 0.6 * height, 0.4))
    parts = [
        '<defs><radialGradient id="spot"><stop offset="0" stop-color="#ffffff"/>'
        '<stop offset="1" stop-color="#ffffff" stop-opacity="0"/></radialGradient></defs>',
        '<rect width="100" height="100" fill="#000000"/>',
    ]
    for left, top, reach, weight in spots:
        parts.append(
            f'<circle cx="{left:.2f}" cy="{top:.2f}" r="{reach:.2f}" fill="url(#spot)" '
            f'opacity="{weight}"/>'
        )
    return _svg(parts)


def _draw_thing(thing: Thing, look: Look, shift: float) -> str:
    left = thing.left - shift * (1 - thing.depth)
    draw = {"house": _draw_house, "tree": _draw_tree, "balloon": _draw_balloon}[thing.kind]
    return draw(thing, look, left)


def _draw_house(thing: Thing, look: Look, left: float) -> str:
    wall, roof = (_mix(colour, look) for colour in thing.colours)
    height = 0.62 * thing.size * thing.scale
    width, top = 1.25 * height, thing.foot - height
    edge = left - width / 2
    parts = [
        f'<rect x="{edge:.2f}" y="{top:.2f}" width="{width:.2f}" height="{height:.2f}" '
        f'fill="{wall}"/>',
        f'<polygon points="{edge - 0.1 * width:.2f},{top:.2f} {left:.2f},{top - 0.6 * height:.2f} '
        f'{edge + 1.1 * width:.2f},{top:.2f}" fill="{"#ffffff" if look.snow else roof}"/>',
        f'<rect x="{left - 0.09 * width:.2f}" y="{thing.foot - 0.5 * height:.2f}" '
        f'width="{0.18 * width:.2f}" height="{0.5 * height:.2f}" fill="{roof}"/>',
    ]
    for place in (0.1, 0.68):
        parts.append(
            f'<rect x="{edge + place * width:.2f}" y="{top + 0.22 * height:.2f}" '
            f'width="{0.22 * width:.2f}" height="{0.3 * height:.2f}" fill="{look.window}"/>'
        )
    return "".join(parts)


def _draw_tree(thing: Thing, look: Look, left: float) -> str:
    crown, trunk = (_mix(colour, look) for colour in thing.colours)
    height = thing.size * thing.scale
    top, width = thing.foot - height, 0.55 * height
    parts = [
        f'<rect x="{left - 0.05 * height:.2f}" y="{thing.foot - 0.4 * height:.2f}" '
        f'width="{0.1 * height:.2f}" height="{0.4 * height:.2f}" fill="{trunk}"/>'
    ]
    if thing.is_conifer:
        base = thing.foot - 0.25 * height
        tips = [(top, width, base, crown)]
        if look.snow:
            tips.append((top, 0.5 * width, top + 0.4 * height, "#ffffff"))
        for tip, wide, low, colour in tips:
            parts.append(
                f'<polygon points="{left:.2f},{tip:.2f} {left - wide / 2:.2f},{low:.2f} '
                f'{left + wide / 2:.2f},{low:.2f}" fill="{colour}"/>'
            )
    elif look.snow:  # leaves have fallen
        for lean in (-0.3, 0.0, 0.3):
            parts.append(
                f'<line x1="{left:.2f}" y1="{thing.foot - 0.35 * height:.2f}" '
                f'x2="{left + lean * height:.2f}" y2="{top + abs(lean) * 0.5 * height:.2f}" '
                f'stroke="{trunk}" stroke-width="{0.05 * height:.2f}"/>'
            )
    else:
        parts.append(
            f'<ellipse cx="{left:.2f}" cy="{top + 0.36 * height:.2f}" rx="{width / 2:.2f}" '
            f'ry="{0.36 * height:.2f}" fill="{crown}"/>'
        )
    return "".join(parts)


def _balloon_centre(thing: Thing) -> float:
    return thing.foot - thing.size * thing.scale


def _draw_balloon(thing: Thing, look: Look, left: float) -> str:
    colour, basket = (_mix(each, look) for each in thing.colours)
    radius, centre = 9 * thing.scale, _balloon_centre(thing)
    return (
        f'<circle cx="{left:.2f}" cy="{centre:.2f}" r="{radius:.2f}" fill="{colour}"/>'
        f'<polygon points="{left - 0.6 * radius:.2f},{centre + 0.8 * radius:.2f} '
        f"{left + 0.6 * radius:.2f},{centre + 0.8 * radius:.2f} "
        f'{left:.2f},{centre + 1.7 * radius:.2f}" fill="{colour}"/>'
        f'<rect x="{left - 0.2 * radius:.2f}" y="{centre + 1.6 * radius:.2f}" '
        f'width="{0.4 * radius:.2f}" height="{0.4 * radius:.2f}" fill="{basket}"/>'
    )


def _mix(colour: str, look: Look) -> str:
    channels = zip(_channels(colour), _channels(look.shade), strict=True)
    return "#" + "".join(
        f"{round(own + (shade - own) * look.mixed):02x}" for own, shade in channels
    )


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _grey(depth: float) -> str:
    return "#" + 3 * f"{round(255 * (1 - depth)):02x}"


def _svg(parts: list[str]) -> str:
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100">' + "".join(parts) + "</svg>"
    )
