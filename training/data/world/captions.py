"""Captions with several phrasings and synonyms. Like human captions, they omit some attributes."""

import random
from collections.abc import Callable

from .clips import SWIMS, Actor, Clip
from .motion import DIRECTIONS

Words = tuple[str, ...]
COLOUR_WORDS: dict[str, Words] = {
    "red": ("red", "red", "scarlet"),
    "green": ("green",),
    "blue": ("blue",),
    "yellow": ("yellow",),
    "orange": ("orange",),
    "purple": ("purple", "purple", "violet"),
    "cyan": ("cyan", "turquoise"),
    "pink": ("pink",),
}
NOUNS: dict[str, Words] = {
    "car": ("car", "car", "automobile"),
    "train": ("train", "steam train", "locomotive"),
    "sailing boat": ("sailing boat", "sailboat", "boat"),
    "balloon": ("balloon", "hot air balloon"),
    "plane": ("plane", "airplane", "propeller plane"),
    "rocket": ("rocket", "rocket", "spaceship"),
    "fish": ("fish", "fish", "tropical fish"),
    "bird": ("bird", "bird", "songbird"),
    "butterfly": ("butterfly",),
    "helicopter": ("helicopter", "helicopter", "chopper"),
    "submarine": ("submarine",),
}
VERBS: dict[str, Words] = {
    "car": ("driving", "moving", "going"),
    "train": ("rolling", "moving", "going"),
    "sailing boat": ("sailing", "moving", "going"),
    "balloon": ("floating", "drifting", "moving"),
    "fish": ("swimming", "moving", "going"),
    "submarine": ("cruising", "moving", "going"),
}
FLYING: Words = ("flying", "moving", "going")
WAYS: dict[str, Words] = {
    "right": ("to the right", "right", "from left to right"),
    "left": ("to the left", "left", "from right to left"),
    "up": ("upwards", "up", "straight up"),
    "down": ("downwards", "down", "straight down"),
    "circling": ("in a circle", "in circles", "round and round"),
    "nearer": ("towards the camera", "nearer", "closer"),
}
SHORT: dict[str, Words] = {  # short forms of a motion, without a verb of movement
    "up": ("rising", "climbing"),
    "down": ("sinking", "descending"),
    "circling": ("circling",),
    "nearer": ("approaching",),
    "still": ("at rest", "standing still", "not moving"),
}
SPEED_WORDS: dict[str, Words] = {
    "slow": ("slowly", "at low speed"),
    "normal": ("",),
    "fast": ("fast", "quickly", "at high speed"),
}
CAMERA_WORDS: dict[str, Words] = {
    "following": ("followed by the camera", "the camera follows", "tracking shot"),
    "resting": ("seen by a fixed camera", "passing by", "static shot"),
}
PLACES: dict[str, Words] = {
    "city": ("in a city at night", "on a city street at night", "in front of city lights"),
    "sea": ("over the sea", "above the ocean", "at sea"),
    "reef": ("under water", "at a coral reef", "at the bottom of the sea"),
    "desert": ("in the desert", "among sand dunes", "in a sandy desert"),
    "forest": ("in the forest", "in front of fir trees", "in the woods"),
    "snow": ("in the snow", "in a snowy landscape", "in winter"),
    "clouds": ("in the clouds", "among white clouds", "high in the sky"),
    "meadow": ("in a meadow at sunset", "at sunset", "in the evening sun"),
    "stars": ("among the stars", "in outer space", "in space"),
}
AFLOAT: Words = ("on the sea", "on the ocean", "on the waves")
SIZE_WORDS: dict[str, Words] = {"small": ("small", "little"), "medium": ("",), "big": ("big", "large")}
OPENINGS: Words = ("", "", "", "", "a video of", "a picture of", "a short clip of")
# shares of the captions that mention an attribute
COLOUR_SHARE, PLACE_SHARE, MOTION_SHARE, SPEED_SHARE, CAMERA_SHARE, SIZE_SHARE = 0.88, 0.86, 0.82, 0.85, 0.5, 0.3


def caption(clip: Clip, rng: random.Random | None = None, *, moves: bool = True) -> str:
    """The caption with all attributes or, with `rng`, a random wording. moves: whether it may mention the motion."""
    return wording(clip, rng, moves=moves)[0]


def wording(clip: Clip, rng: random.Random | None = None, *, moves: bool = True) -> tuple[str, dict[str, str]]:
    """A caption, and the attributes that it mentions."""
    pick: Callable[[Words], str] = rng.choice if rng else lambda phrases: phrases[0]
    mentions: Callable[[float], bool] = (lambda share: rng.random() < share) if rng else lambda _: True
    actor, values = clip.actor, {"shape": clip.actor.kind}
    size = pick(SIZE_WORDS[clip.size]) if mentions(SIZE_SHARE) else ""
    values |= {"size": clip.size} if size else {}
    colour = pick(COLOUR_WORDS[actor.colour]) if mentions(COLOUR_SHARE) else ""
    values |= {"colour": actor.colour} if colour else {}
    place = pick(_places(clip)) if mentions(PLACE_SHARE) else ""
    values |= {"background": clip.ground} if place else {}
    motion, speed, camera = "", "", ""
    if moves and mentions(MOTION_SHARE):
        motion, values["motion"] = _motion(actor, pick), clip.motion
        if clip.motion != "still" and mentions(SPEED_SHARE):
            speed, values["speed"] = pick(SPEED_WORDS[clip.speed]), clip.speed
        if clip.motion in DIRECTIONS and mentions(CAMERA_SHARE):
            camera, values["camera"] = pick(CAMERA_WORDS[clip.camera]), clip.camera
    values["second"] = clip.second.colour if clip.second else "none"
    subject = _join(size, colour, pick(NOUNS[actor.kind]))
    text = _arrange(pick, subject, _join(motion, speed), place, camera)
    other = f"{pick(('with', 'and'))} {_a(clip.second.colour)} {clip.second.kind}" if clip.second else ""
    return _list(text, other), values


def _places(clip: Clip) -> Words:
    return AFLOAT if (clip.actor.kind, clip.ground) in SWIMS else PLACES[clip.ground]


def _motion(actor: Actor, pick: Callable[[Words], str]) -> str:
    motion = actor.path.motion
    if motion == "still":
        return pick(SHORT["still"])
    long = f"{pick(VERBS.get(actor.kind, FLYING))} {pick(WAYS[motion])}"
    return pick((long, long, pick(SHORT[motion]))) if motion in SHORT else long


def _arrange(pick: Callable[[Words], str], subject: str, motion: str, place: str, camera: str) -> str:
    """Join the parts that are not empty in one of four orders."""
    order = pick(("plain", "plain", "place first", "list", "motion last"))
    opening = pick(OPENINGS)
    if order == "place first" and place and not opening:
        return _list(place, _join(_a(subject), motion), camera)
    if order == "list":
        return _list(subject, motion, place, camera)
    if order == "motion last":
        return _list(_join(opening, _a(subject), place, motion), camera)
    return _list(_join(opening, _a(subject), motion, place), camera)


def _a(subject: str) -> str:
    return f"{'an' if subject[0] in 'aeiou' else 'a'} {subject}"


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _list(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def vocabulary() -> list[str]:
    """Every word that a caption can contain, and the comma."""
    tables = (COLOUR_WORDS, NOUNS, VERBS, WAYS, SHORT, SPEED_WORDS, CAMERA_WORDS, PLACES, SIZE_WORDS)
    phrases = [phrase for table in tables for synonyms in table.values() for phrase in synonyms]
    phrases += [*FLYING, *AFLOAT, *OPENINGS, *NOUNS, *COLOUR_WORDS, "a an with and ,"]
    return sorted({word for phrase in phrases for word in phrase.split()})
