"""What a plan has to know of a model, before it is opened."""

import dataclasses
from collections.abc import Callable
from typing import Protocol


class Network(Protocol):
    """A denoiser on one sample with one text.

    Attributes:
      operations: floating-point operations of a forward pass.
      read: values that its first block reads.
      largest_block: parameters of the block that has most, of those that are gathered together.
    """

    @property
    def operations(self) -> float: ...

    @property
    def read(self) -> int: ...

    @property
    def largest_block(self) -> int: ...

    def forward(self, itemsize: int, kernel: bool) -> float:
        """Bytes that a forward pass holds."""
        ...

    def backward(self, remat: str, itemsize: int, kernel: bool) -> float:
        """Bytes that a backward pass holds."""
        ...


@dataclasses.dataclass(frozen=True)
class Description:
    """Sizes.

    Attributes:
      denoiser: number of its parameters.
      vae: number of its parameters.
      text_encoder: number of its parameters.
      network: the denoiser's arithmetic.
      latent: numbers in one of them.
      image: numbers in one of them.
      text: numbers that one pass of the denoiser is conditioned on.
      decoded: from the bytes of a number to those that decoding an image takes.
    """

    denoiser: int
    vae: int
    text_encoder: int
    network: Network
    latent: int
    image: int
    text: int
    decoded: Callable[[int], float]
