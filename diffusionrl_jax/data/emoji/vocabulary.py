"""What exists in the emoji world, and what is held out of which part of it.

Every noun maps to the emoji's English CLDR name, as the `emoji` package spells it.
"""

import hashlib

OBJECTS = {
    "apple": "red_apple",
    "avocado": "avocado",
    "backpack": "backpack",
    "balloon": "balloon",
    "banana": "banana",
    "basketball": "basketball",
    "bear": "bear",
    "bell": "bell",
    "bicycle": "bicycle",
    "bird": "bird",
    "book": "blue_book",
    "broccoli": "broccoli",
    "broom": "broom",
    "butterfly": "butterfly",
    "cake": "birthday_cake",
    "camera": "camera",
    "candle": "candle",
    "car": "automobile",
    "carrot": "carrot",
    "castle": "castle",
    "cat": "cat",
    "chair": "chair",
    "cheese": "cheese_wedge",
    "cherry": "cherries",
    "chicken": "chicken",
    "christmas tree": "Christmas_tree",
    "coconut": "coconut",
    "couch": "couch_and_lamp",
    "cow": "cow_face",
    "crab": "crab",
    "crown": "crown",
    "cucumber": "cucumber",
    "dog": "dog_face",
    "dolphin": "dolphin",
    "donut": "doughnut",
    "drum": "drum",
    "duck": "duck",
    "egg": "egg",
    "eggplant": "eggplant",
    "elephant": "elephant",
    "envelope": "envelope",
    "fish": "fish",
    "flower": "hibiscus",
    "fox": "fox",
    "frog": "frog",
    "giraffe": "giraffe",
    "guitar": "guitar",
    "hamburger": "hamburger",
    "hammer": "hammer",
    "headphones": "headphone",
    "helicopter": "helicopter",
    "horse": "horse_face",
    "house": "house",
    "ice cream": "ice_cream",
    "jeans": "jeans",
    "kangaroo": "kangaroo",
    "key": "key",
    "ladder": "ladder",
    "laptop": "laptop",
    "lemon": "lemon",
    "light bulb": "light_bulb",
    "lion": "lion",
    "lobster": "lobster",
    "microphone": "microphone",
    "monkey": "monkey_face",
    "mouse": "mouse_face",
    "mushroom": "mushroom",
    "octopus": "octopus",
    "orange": "tangerine",
    "owl": "owl",
    "palm tree": "palm_tree",
    "panda": "panda",
    "parrot": "parrot",
    "peach": "peach",
    "penguin": "penguin",
    "pig": "pig_face",
    "pineapple": "pineapple",
    "pizza": "pizza",
    "pumpkin": "jack-o-lantern",
    "rabbit": "rabbit_face",
    "rocket": "rocket",
    "sailboat": "sailboat",
    "scissors": "scissors",
    "shark": "shark",
    "shirt": "t-shirt",
    "snail": "snail",
    "snake": "snake",
    "snowman": "snowman_without_snow",
    "soccer ball": "soccer_ball",
    "spider": "spider",
    "strawberry": "strawberry",
    "sunflower": "sunflower",
    "taxi": "taxi",
    "teddy bear": "teddy_bear",
    "tent": "tent",
    "tomato": "tomato",
    "tractor": "tractor",
    "trophy": "trophy",
    "truck": "delivery_truck",
    "turtle": "turtle",
    "umbrella": "umbrella",
    "watch": "watch",
    "watermelon": "watermelon",
    "zebra": "zebra",
}

# These are drawn alone and never in a pair, neither in the pretraining pictures nor in the training
# prompts.
HELD_OUT_OBJECTS = (
    "balloon",
    "bicycle",
    "cheese",
    "crab",
    "drum",
    "elephant",
    "flower",
    "frog",
    "guitar",
    "house",
    "key",
    "lemon",
    "lion",
    "octopus",
    "penguin",
    "pizza",
    "rocket",
    "snail",
    "tent",
    "umbrella",
)
SEEN_OBJECTS = tuple(name for name in OBJECTS if name not in HELD_OUT_OBJECTS)

OCCUPATIONS = {
    "artist": "artist",
    "astronaut": "astronaut",
    "builder": "construction_worker",
    "cook": "cook",
    "detective": "detective",
    "welder": "factory_worker",
    "farmer": "farmer",
    "firefighter": "firefighter",
    "guard": "guard",
    "doctor": "health_worker",
    "judge": "judge",
    "king": "person_with_crown",
    "mechanic": "mechanic",
    "clerk": "office_worker",
    "pilot": "pilot",
    "police officer": "police_officer",
    "scientist": "scientist",
    "singer": "singer",
    "student": "student",
    "teacher": "teacher",
    "programmer": "technologist",
    "waiter": "person_in_tuxedo",
    "wizard": "mage",
}

# These are known to the pretrained model, as every occupation is to Stable Diffusion, but are never
# in a prompt of reinforcement learning.
HELD_OUT_OCCUPATIONS = ("farmer", "firefighter", "pilot", "scientist", "singer", "waiter")
SEEN_OCCUPATIONS = tuple(name for name in OCCUPATIONS if name not in HELD_OUT_OCCUPATIONS)

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
# How often each tone is drawn in the pretraining pictures: deliberately skewed.
TONE_FREQUENCIES = (0.60, 0.16, 0.08, 0.08, 0.08)


def is_held_out_pair(first: str, second: str) -> bool:
    """Returns whether the unordered pair of objects never appears in training: one pair in seven.

    The choice hashes the two names, so that it never changes when the lists grow.
    """
    names = "+".join(sorted((first, second)))
    return hashlib.sha256(names.encode()).digest()[0] % 7 == 0
