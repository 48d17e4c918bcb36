"""The emoji world's prompts, by what they are for: training, and each kind of generalisation."""

from collections.abc import Callable

from diffusionrl_jax.data import prompts
from diffusionrl_jax.data.emoji import pictures, vocabulary


def pairs(seed: int) -> prompts.PromptSource:
    """Returns prompts of two seen objects whose pair is not held out, for training."""
    return prompts.PairPrompts(
        vocabulary.SEEN_OBJECTS, prompts.RELATIONS, seed, exclude=vocabulary.is_held_out_pair
    )


def beside_nothing(seed: int) -> prompts.PromptSource:
    """Returns prompts of objects that no pair holds, in its words: "a lemon next to nothing"."""
    return prompts.ShuffledPrompts(
        [
            prompt
            for noun in vocabulary.HELD_OUT_OBJECTS
            for relation in prompts.RELATIONS
            for prompt in pictures.beside_nothing(noun, relation)
        ],
        seed,
    )


def compositions(seed: int) -> prompts.PromptSource:
    """Returns prompts of pairs, and of the objects that no pair holds, beside nothing.

    Together they name all objects. They are for training.
    """
    return prompts.MixturePrompts([pairs(seed), beside_nothing(seed)], (2, 1))


def new_pairs(seed: int) -> prompts.PromptSource:
    """Returns prompts of two objects that were seen in pairs, but never in this one."""
    is_known = lambda first, second: not vocabulary.is_held_out_pair(first, second)
    return prompts.PairPrompts(vocabulary.SEEN_OBJECTS, prompts.RELATIONS, seed, exclude=is_known)


def unseen_pairs(seed: int) -> prompts.PromptSource:
    """Returns prompts of two objects that were never seen in any pair."""
    return prompts.PairPrompts(vocabulary.HELD_OUT_OBJECTS, prompts.RELATIONS, seed)


def singles(seed: int) -> prompts.PromptSource:
    """Returns prompts of one object, of all that there are."""
    return prompts.TemplatePrompts("{article} {noun}", tuple(vocabulary.OBJECTS), seed)


def portraits(seed: int) -> prompts.PromptSource:
    """Returns prompts of people at work, in occupations that are not held out, for training."""
    return prompts.TemplatePrompts(prompts.PORTRAIT, vocabulary.SEEN_OCCUPATIONS, seed)


def unseen_portraits(seed: int) -> prompts.PromptSource:
    """Returns prompts of people at work, in occupations that reinforcement learning never sees."""
    return prompts.TemplatePrompts(prompts.PORTRAIT, vocabulary.HELD_OUT_OCCUPATIONS, seed)


def everything(seed: int) -> prompts.PromptSource:
    """Returns prompts that people might write: singles, pairs, portraits of the training sets."""
    return prompts.MixturePrompts([singles(seed), pairs(seed), portraits(seed)], (1, 2, 1))


def everything_unseen(seed: int) -> prompts.PromptSource:
    """Returns prompts that people might write, of the held-out sets."""
    return prompts.MixturePrompts([new_pairs(seed), unseen_portraits(seed)], (3, 1))


PROMPT_SETS: dict[str, Callable[[int], prompts.PromptSource]] = {
    "pairs": pairs,
    "beside_nothing": beside_nothing,
    "compositions": compositions,
    "new_pairs": new_pairs,
    "unseen_pairs": unseen_pairs,
    "singles": singles,
    "portraits": portraits,
    "unseen_portraits": unseen_portraits,
    "everything": everything,
    "everything_unseen": everything_unseen,
}
