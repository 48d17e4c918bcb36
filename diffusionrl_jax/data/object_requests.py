"""Prompts that ask for objects, by number, colour and place, and what they ask for.

They are the six tasks of GenEval (Ghosh et al., 2310.11513), on prompts of our own: a judge that
finds objects can tell whether a picture has what was asked for.
"""

import dataclasses
import re
from collections.abc import Callable

import numpy as np

from diffusionrl_jax.data.prompts import article
from diffusionrl_jax.mistakes import UserError

BEGIN = "a photo of "
# Things that most detectors know, and that are not kinds of each other.
REGULAR = """
airplane apple backpack banana bear bed bicycle bird boat book bottle bowl cake car cat chair clock
cow cup dog donut elephant fork giraffe guitar hat horse kite laptop microwave motorcycle oven phone
piano pizza refrigerator sink skateboard snowboard spoon suitcase surfboard table television toaster
toilet train truck umbrella vase zebra
""".split()
# As one and as several.
PLURALS = {noun: f"{noun}s" for noun in REGULAR} | {
    "bench": "benches",
    "bus": "buses",
    "couch": "couches",
    "knife": "knives",
    "parking meter": "parking meters",
    "potted plant": "potted plants",
    "sandwich": "sandwiches",
    "sheep": "sheep",
    "stop sign": "stop signs",
    "traffic light": "traffic lights",
    "wine glass": "wine glasses",
}
NOUNS = tuple(PLURALS)
SINGULARS = {plural: noun for noun, plural in PLURALS.items()}
COLOURS = tuple("red orange yellow green blue purple pink brown black white".split())
NUMBERS = {"two": 2, "three": 3, "four": 4}
RELATIONS = ("left of", "right of", "above", "below")


@dataclasses.dataclass(frozen=True)
class Thing:
    """One kind of object that is asked for.

    Attributes:
      noun: one of `NOUNS`.
      colour: one of `COLOURS`, or "" for any.
      count: how many there are to be; 1 means at least one.
    """

    noun: str
    colour: str = ""
    count: int = 1

    def __str__(self) -> str:
        if self.count > 1:
            (number,) = (word for word, count in NUMBERS.items() if count == self.count)
            return f"{number} {PLURALS[self.noun]}"
        named = f"{self.colour} {self.noun}".strip()
        return f"{article(named)} {named}"


@dataclasses.dataclass(frozen=True)
class Request:
    """What a prompt asks for.

    Attributes:
      things: one or two of them.
      relation: where the first is to be from the second, one of `RELATIONS`; or "" for anywhere.
    """

    things: tuple[Thing, ...]
    relation: str = ""

    def __str__(self) -> str:
        return BEGIN + f" {self.relation or 'and'} ".join(map(str, self.things))


def read_request(prompt: str) -> Request:
    """Returns what a prompt asks for: `str` of the result is the prompt.

    Raises:
      UserError: it is not written as `make_requests` writes it.
    """
    match = _GRAMMAR.fullmatch(prompt)
    if match is None:
        raise UserError(
            f"The prompt {prompt!r} is not one that asks for objects: use those of "
            "suite:object_requests."
        )
    if match["number"]:
        thing = Thing(SINGULARS[match["plural"]], count=NUMBERS[match["number"]])
        return Request((thing,))
    things = (Thing(match["first"], match["first_colour"] or ""),)
    if match["second"]:
        things += (Thing(match["second"], match["second_colour"] or ""),)
    relation = match["relation"] or "and"
    return Request(things, "" if relation == "and" else relation)


def _one_of(words) -> str:
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


def _thing(name: str) -> str:
    return rf"an? (?:(?P<{name}_colour>{_one_of(COLOURS)}) )?(?P<{name}>{_one_of(NOUNS)})"


_GRAMMAR = re.compile(
    rf"{BEGIN}(?:(?P<number>{_one_of(NUMBERS)}) (?P<plural>{_one_of(SINGULARS)})"
    rf"|{_thing('first')}(?: (?P<relation>and|{_one_of(RELATIONS)}) {_thing('second')})?)"
)


def _two(generator: np.random.Generator, words: tuple[str, ...]) -> list[str]:
    return generator.choice(words, 2, replace=False).tolist()


def _single(generator: np.random.Generator) -> Request:
    return Request((Thing(str(generator.choice(NOUNS))),))


def _two_objects(generator: np.random.Generator) -> Request:
    first, second = _two(generator, NOUNS)
    return Request((Thing(first), Thing(second)))


def _counting(generator: np.random.Generator) -> Request:
    count = int(generator.choice(list(NUMBERS.values())))
    return Request((Thing(str(generator.choice(NOUNS)), count=count),))


def _colours(generator: np.random.Generator) -> Request:
    return Request((Thing(str(generator.choice(NOUNS)), str(generator.choice(COLOURS))),))


def _position(generator: np.random.Generator) -> Request:
    return Request(_two_objects(generator).things, str(generator.choice(RELATIONS)))


def _binding(generator: np.random.Generator) -> Request:
    nouns, colours = _two(generator, NOUNS), _two(generator, COLOURS)
    return Request(tuple(map(Thing, nouns, colours)))


TASKS: dict[str, Callable[[np.random.Generator], Request]] = {
    "single object": _single,
    "two objects": _two_objects,
    "counting": _counting,
    "colours": _colours,
    "position": _position,
    "attribute binding": _binding,
}


def make_requests(each: int, seed: int) -> dict[str, str]:
    """Makes different prompts of each of the `TASKS`.

    Args:
      each: how many of each task, 1 to the number of `NOUNS`, of which a single object is one.
      seed: the seed of the choice. The first prompts of a larger `each` are those of a smaller one.

    Returns:
      The task of each prompt, by the prompt.

    Raises:
      UserError: `each` is out of range.
    """
    if not 1 <= each <= len(NOUNS):
        raise UserError(f"each={each} must be from 1 to {len(NOUNS)}.")
    found = {}
    for number, (task, make) in enumerate(TASKS.items()):
        generator = np.random.default_rng((seed, number))
        prompts: dict[str, str] = {}
        while len(prompts) < each:
            prompts[str(make(generator))] = task
        found |= prompts
    return found
