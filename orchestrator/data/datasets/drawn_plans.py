"""Drawn plans: a building's front and its parts, a town from above and its map.

Both are pairs of one geometry, which is a pure function of a number.
"""

import itertools
import random

FRONTS = ("#c9b79c", "#b5651d", "#d8d2c4", "#a3552d", "#8d99ae", "#e0c097")
PART_COLOURS = {
    "wall": "#0000ff",
    "window": "#0055ff",
    "door": "#00aaff",
    "cornice": "#00ffff",
    "sill": "#55ffaa",
    "balcony": "#aaff55",
    "shop": "#aa0000",
}
"""Colours of the label map; the sky is dark blue."""
Box = tuple[str, float, float, float, float]
"""Part, left, top, width and height."""


def draw_front(number: int) -> tuple[str, str]:
    """Draw the front of building ``number`` and the map of its parts."""
    draw = random.Random(f"front {number}")
    boxes = _front_boxes(draw)
    wall, frame = draw.choice(FRONTS), draw.choice(("#f7f3ea", "#4a3728", "#2f3e46"))
    shop, glass = draw.choice(("#7f1d1d", "#1b4332", "#14213d")), "#41566b"
    painted = {
        "wall": wall, "cornice": frame, "sill": frame, "balcony": "#3b3b3b", "shop": shop,
        "door": "#4a2c17",
    }  # fmt: skip
    front, parts = ["<rect width='100' height='100' fill='#bcd7ea'/>"], []
    parts.append("<rect width='100' height='100' fill='#0000aa'/>")
    for part, left, top, width, height in boxes:
        parts.append(_rect(left, top, width, height, PART_COLOURS[part]))
        if part == "window":
            front.append(_rect(left, top, width, height, frame))
            pane = (width - 1.2) / 2
            front.append(_rect(left + 0.4, top + 0.5, pane, height - 1.0, glass))
            front.append(_rect(left + 0.8 + pane, top + 0.5, pane, height - 1.0, glass))
        else:
            front.append(_rect(left, top, width, height, painted[part]))
        if part == "balcony":
            rails = int(width / 1.5)
            front += [
                _rect(left + 1.5 * rail, top, 0.5, height, "#8f8f8f") for rail in range(rails)
            ]
    return _svg(front), _svg(parts)


def _front_boxes(draw: random.Random) -> list[Box]:
    """Lay out a wall of 2 to 5 floors and 2 to 5 columns."""
    floors, columns = draw.randint(2, 5), draw.randint(2, 5)
    margin, top = draw.uniform(3, 12), draw.uniform(6, 22)
    width = 100 - 2 * margin
    height, pitch = (100 - top) / floors, width / columns
    window = draw.uniform(0.4, 0.6) * pitch, draw.uniform(0.5, 0.7) * height
    boxes: list[Box] = [("wall", margin, top, width, 100 - top)]
    boxes.append(("cornice", margin - 2, top, width + 4, 0.12 * height))
    balconies = draw.sample(range(floors - 1), k=draw.randint(0, floors - 1))
    shop = draw.random() < 0.4
    for floor in range(floors - 1):
        for column in range(columns):
            left = margin + (column + 0.5) * pitch - window[0] / 2
            high = top + floor * height + 0.24 * height
            boxes.append(("window", left, high, *window))
            boxes.append(("sill", left - 0.6, high + window[1], window[0] + 1.2, 1.2))
            if floor in balconies:
                low = high + 0.6 * window[1]
                boxes.append(("balcony", left - 1.2, low, window[0] + 2.4, 0.45 * window[1]))
    ground, door = top + (floors - 1) * height, draw.randrange(columns)
    for column in range(columns):
        left = margin + (column + 0.5) * pitch - window[0] / 2
        if column == door:
            boxes.append(("door", left, ground + 0.25 * height, window[0], 0.75 * height))
        elif shop:
            boxes.append(("shop", left - 1.5, ground + 0.2 * height, window[0] + 3, 0.8 * height))
        else:
            boxes.append(("window", left, ground + 0.24 * height, *window))
    return boxes


def draw_town(number: int) -> tuple[str, str]:
    """Draw town ``number`` from above and its map: roads, houses, parks and a river."""
    draw = random.Random(f"town {number}")
    view = ["<rect width='100' height='100' fill='#8a9a6b'/>"]
    plan = ["<rect width='100' height='100' fill='#f2efe9'/>"]
    across = sorted(draw.sample(range(8, 95, 14), k=draw.randint(2, 3)))
    down = sorted(draw.sample(range(8, 95, 14), k=draw.randint(2, 3)))
    tilt = draw.uniform(-25, 25)
    inner_view: list[str] = []
    inner_plan: list[str] = []
    for left, right in _spans(across):
        for top, bottom in _spans(down):
            block = left + 3, top + 3, right - left - 6, bottom - top - 6
            _draw_block(draw, block, inner_view, inner_plan)
    if draw.random() < 0.6:
        low, high, bend = draw.uniform(-20, 120), draw.uniform(-20, 120), draw.uniform(20, 80)
        path = f"M{low:.1f},-40 Q{bend:.1f},50 {high:.1f},140"
        inner_view.append(_line(path, "#3f6478", 9))
        inner_plan.append(_line(path, "#aad3df", 9))
    for place in across:
        inner_view.append(_rect(place - 2, -40, 4, 180, "#77787b"))
        inner_plan.append(_rect(place - 2, -40, 4, 180, "#ffffff"))
    for place in down:
        inner_view.append(_rect(-40, place - 2, 180, 4, "#6e6f72"))
        inner_plan.append(_rect(-40, place - 2, 180, 4, "#fcd6a4"))
    turn = f"<g transform='rotate({tilt:.2f} 50 50)'>"
    return (
        _svg([*view, turn, *inner_view, "</g>"]),
        _svg([*plan, turn, *inner_plan, "</g>"]),
    )


def _spans(places: list[int]) -> list[tuple[int, int]]:
    edges = [-30, *places, 130]
    return list(itertools.pairwise(edges))


def _draw_block(
    draw: random.Random,
    block: tuple[float, float, float, float],
    view: list[str],
    plan: list[str],
) -> None:
    """Fill the block between four roads with a park or with houses and gardens."""
    left, top, width, height = block
    if draw.random() < 0.25:
        view.append(_rect(*block, "#56773f"))
        plan.append(_rect(*block, "#c8facc"))
        for _ in range(int(width * height / 40)):
            x, y = left + draw.random() * width, top + draw.random() * height
            colour = draw.choice(("#2f5d2a", "#3f6f35", "#4a7a3a"))
            view.append(f"<circle cx='{x:.2f}' cy='{y:.2f}' r='1.8' fill='{colour}'/>")
        return
    for column in range(int(width // 9)):
        for row in range(int(height // 9)):
            if draw.random() < 0.2:
                continue
            house = draw.uniform(4.5, 7), draw.uniform(4.5, 7)
            x, y = left + 9 * column + 1, top + 9 * row + 1
            roof = draw.choice(("#b5523b", "#8c8c8c", "#a67c52", "#d9d9d6", "#5f6b73"))
            view.append(_rect(x + 0.7, y + 0.7, *house, "#4e5a3c"))  # its shadow
            view.append(_rect(x, y, *house, roof))
            plan.append(_rect(x, y, *house, "#d9d0c9"))


def _rect(left: float, top: float, width: float, height: float, colour: str) -> str:
    return (
        f"<rect x='{left:.2f}' y='{top:.2f}' width='{width:.2f}' height='{height:.2f}' "
        f"fill='{colour}'/>"
    )


def _line(path: str, colour: str, width: float) -> str:
    return f"<path d='{path}' fill='none' stroke='{colour}' stroke-width='{width}'/>"


def _svg(parts: list[str]) -> str:
    return (
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 100 100'>" + "".join(parts) + "</svg>"
    )
