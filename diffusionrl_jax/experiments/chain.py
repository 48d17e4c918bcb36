"""Makes the chain that a config describes, of the model that it names."""

from diffusionrl_jax.data.config_type import Config
from diffusionrl_jax.diffusion.process import Process, make_process
from diffusionrl_jax.models.text_to_image import TextToImage


def make_chain(config: Config, model: TextToImage) -> Process:
    """Returns the chain by which a model is sampled and trained.

    Raises:
      UserError: as `make_process`.
    """
    sampler = config.sampler
    return make_process(
        model.scheduler_config,
        sampler.steps,
        noise=sampler.noise,
        eta=sampler.eta,
        order=sampler.order,
        training_times=config.training_times,
    )
