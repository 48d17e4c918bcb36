"""What a plan has to know of a model before the model is opened."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol


class Network(Protocol):
    """The arithmetic of a denoiser that runs on one sample with one text.

    Attributes:
      operations: the floating-point operations of a forward pass.
      read: how many values the first block reads.
      largest_block: the number of parameters of the largest block that is gathered as a whole.
    """

    @property
    def operations(self) -> float: ...

    @property
    def read(self) -> int: ...

    @property
    def largest_block(self) -> int: ...

    def forward(self, itemsize: int, kernel: bool) -> float:
        """Returns how many bytes a forward pass holds.

        Args:
          itemsize: the bytes of one value.
          kernel: whether attention to many tokens runs as a kernel that holds no probabilities.
        """
        ...

    def backward(self, remat: str, itemsize: int, kernel: bool) -> float:
        """Returns how many bytes a forward and backward pass holds.

        Args:
          remat: what is computed again for the backward pass, as `config.remat`.
          itemsize, kernel: as in `forward`.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Description:
    """The sizes of a model.

    Attributes:
      denoiser: the number of the denoiser's parameters.
      vae: the number of the VAE's parameters.
      text_encoder: the number of all text encoders' parameters.
      largest_encoder: how many of these are gathered together, at most, where blocks are.
      network: the denoiser's arithmetic.
      latent: how many numbers one latent has.
      image: how many numbers one image has.
      text: how many numbers one pass of the denoiser is conditioned on.
      decoded: takes the bytes of one number, and returns the bytes that are held while one image is
        decoded.
      denoiser_shapes: returns the shapes of the denoiser's parameters, where that takes no time;
        None elsewhere.
    """

    denoiser: int
    vae: int
    text_encoder: int
    largest_encoder: int
    network: Network
    latent: int
    image: int
    text: int
    decoded: Callable[[int], float]
    denoiser_shapes: Callable[[], Mapping[str, Any]] | None = None
