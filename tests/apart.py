"""What groups that share a prefix are compared with: the same samples, each drawn by itself."""

import dataclasses

from diffusionrl_jax.learning.experience import Experience


@dataclasses.dataclass(frozen=True, eq=False)
class Apart(Experience):
    """Draws each sample by itself, at the steps of another experience, whose groups branch."""

    branching: Experience | None = None

    def trained_steps(self, step, batch):
        assert self.branching is not None
        return self.branching.trained_steps(step, batch)


def apart(algorithm):
    """The same algorithm, but for groups that are drawn and trained on as one."""
    branching = algorithm.experience
    sampling = dataclasses.replace(branching.sampling, branches=0)
    experience = Apart(**vars(branching) | {"sampling": sampling}, branching=branching)
    return dataclasses.replace(algorithm, experience=experience)
