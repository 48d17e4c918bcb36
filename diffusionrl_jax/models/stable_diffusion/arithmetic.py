"""Computes what a UNet computes and holds, by arithmetic on its config alone.

Operations are those of its matrix products and convolutions. What is held is estimated: so many
values for each channel of each pixel in each kind of block, fitted to programs that were compiled
for TPUs (docs/performance.md). Both take no time, so that a program can choose by them as it
starts.
"""

import dataclasses
import math
from collections.abc import Mapping

from diffusionrl_jax.models.attention import takes_splash

# How many values a residual block keeps for its backward pass, for each channel of each pixel that
# it reads and for each that it writes; and how many a layer of a transformer keeps for each.
KEPT_READ, KEPT_WRITTEN, KEPT_OF_LAYER = 3, 4, 28
# What is alive while a block is differentiated, or computed forward, as a multiple of what its
# backward pass asks for; and as a multiple of its attention's probabilities, where these are held.
DIFFERENTIATED, COMPUTED = 2.5, 0.5
MATRICES = 3
LANES = 128  # A TPU fills up the last axis of what it stores to a multiple of this.
# How many values are alive in the VAE's decoder, for each pixel of the image and each channel of
# the decoder's last level but one.
DECODED = 5


@dataclasses.dataclass(frozen=True)
class Block:
    """A residual block, or one layer of a transformer, that runs on one sample.

    Attributes:
      operations: the floating-point operations of its forward pass.
      read: how many values it reads.
      kept: how many values its backward pass asks for.
      tokens, heads: the tokens and the heads of its self-attention; 0 if it has none.
      attentions: how many self-attentions it has, if any, which each write as much as it reads.
      parameters: how many parameters it has, without biases and scales.
      stacked: how many values are stored of it where it is one of several equal blocks, whose
        values lie in one array, and nothing is computed again. 0 means `kept`: the compiler then
        chooses what it stores.
      fills_up: whether the kernel is given tokens that are filled up to whole blocks.
    """

    operations: float
    read: int
    kept: int
    tokens: int = 0
    heads: int = 0
    attentions: int = 1
    parameters: int = 0
    stacked: int = 0
    fills_up: bool = False

    def probabilities(self, kernel: bool) -> int:
        """Returns the bytes of the float32 probabilities that its self-attention holds.

        Args:
          kernel: whether attention that suits it runs as a kernel that holds no probabilities.
        """
        return 0 if self.runs_kernel(kernel) else 4 * self.heads * self.tokens**2

    def runs_kernel(self, kernel: bool) -> bool:
        """Returns whether its self-attention, if it has one, runs as a kernel.

        Args:
          kernel: as in `probabilities`.
        """
        shape = (1, self.tokens, self.heads, 1)
        return kernel and takes_splash(shape, shape, self.fills_up)

    def read_and_attended(self, kernel: bool) -> int:
        """Returns how many values it keeps where all is computed again but the kernel's attention.

        Args:
          kernel: as in `probabilities`.
        """
        if not self.runs_kernel(kernel):
            return self.read
        # The kernel's results are stored a head beside another, each in whole lanes.
        head = self.read // (self.tokens * self.heads)
        stored = -(-head // LANES) * LANES / head
        return int(self.read * (1 + self.attentions * stored))


@dataclasses.dataclass(frozen=True)
class Network:
    """A UNet that runs on one sample with one text.

    Attributes:
      parts: the blocks of each down, middle and up block.
      operations: the floating-point operations of a forward pass of the whole UNet.
      skips: how many values the down blocks hand on to the up blocks.
    """

    parts: tuple[tuple[Block, ...], ...]
    operations: float
    skips: int

    @property
    def read(self) -> int:
        """The number of values that the first block reads."""
        return self.parts[0][0].read

    @property
    def largest_block(self) -> int:
        """The number of parameters of the largest block."""
        return max(block.parameters for blocks in self.parts for block in blocks)

    def forward(self, itemsize: int, kernel: bool) -> float:
        """Returns the bytes that are alive in a forward pass.

        Args:
          itemsize: the bytes of one value.
          kernel: whether attention to many tokens runs as a kernel that holds no probabilities.
        """
        blocks = [block for part in self.parts for block in part]
        return itemsize * self.skips + max(
            COMPUTED * itemsize * block.kept + MATRICES * block.probabilities(kernel)
            for block in blocks
        )

    def backward(self, remat: str, itemsize: int, kernel: bool) -> float:
        """Returns the bytes that are alive in a forward and backward pass.

        Args:
          remat: what is computed again for the backward pass, as `config.remat`, but not "auto".
          itemsize, kernel: as in `forward`.
        """
        blocks = [block for part in self.parts for block in part]
        one = max(
            DIFFERENTIATED * itemsize * block.kept + MATRICES * block.probabilities(kernel)
            for block in blocks
        )
        if remat == "none":
            held = sum(
                itemsize * (block.stacked or block.kept) + block.probabilities(kernel)
                for block in blocks
            )
        elif remat == "blocks":
            held = itemsize * sum(block.read_and_attended(kernel) for block in blocks) + one
        else:
            inside = max(sum(block.read for block in part) for part in self.parts)
            outside = self.skips + sum(part[0].read for part in self.parts)
            held = itemsize * (outside + inside) + one
        return max(held, one)


# A height and a width.
Sides = tuple[int, int]


def _convolution(sides: Sides, read: int, written: int, missed: int = 2) -> float:
    """Returns the operations of a 3 by 3 convolution, without products with the zeros around.

    Args:
      sides: the height and width of what it writes.
      read, written: the numbers of channels that it reads and writes.
      missed: how many rows of its windows, counted down one column, lie outside: 2, or 1 where it
        halves the side.
    """
    height, width = (3 * side - missed for side in sides)
    return 2.0 * height * width * read * written


def _residual(sides: Sides, read: int, written: int) -> Block:
    """Returns the residual block that reads and writes these numbers of channels."""
    pixels = math.prod(sides)
    operations = _convolution(sides, read, written) + _convolution(sides, written, written)
    if read != written:
        operations += 2.0 * pixels * read * written
    kept = pixels * (KEPT_READ * read + KEPT_WRITTEN * written)
    parameters = 9 * written * (read + written) + (read * written if read != written else 0)
    return Block(operations, pixels * read, kept, parameters=parameters)


def _transformer(
    pixels: int, width: int, heads: int, layers: int, text: tuple[int, int]
) -> list[Block]:
    """Returns the layers of a transformer. Its projections in and out count to the first one.

    Args:
      pixels: how many pixels, which are its tokens, it reads.
      width: the number of channels.
      heads: the number of heads of its attention.
      layers: the number of its layers.
      text: the number of a text's tokens, and the width of each.
    """
    tokens, text_width = text
    # Self-attention has queries, keys, values and outputs, cross-attention queries and outputs, and
    # the gated layers behind have 8 + 4 widths. Then come the keys and values of the text, and the
    # products of attention with the pixels' and with the text's.
    of_layer = 2.0 * pixels * width**2 * (4 + 2 + 12)
    of_layer += 2.0 * tokens * text_width * width * 2 + 4.0 * pixels * width * (pixels + tokens)
    projections = 2.0 * pixels * width**2 * 2
    parameters = width**2 * (4 + 2 + 12) + text_width * width * 2
    return [
        Block(
            of_layer + (projections if index == 0 else 0),
            pixels * width,
            KEPT_OF_LAYER * pixels * width,
            pixels,
            heads,
            parameters=parameters,
        )
        for index in range(layers)
    ]


def network(config: Mapping, tokens: int, sides: Sides) -> Network:
    """Returns the blocks of a UNet, with their operations.

    Args:
      config: the fields of the UNet's config.json.
      tokens: the number of tokens of a text.
      sides: the height and width of a latent.
    """
    widths = tuple(config["block_out_channels"])
    levels, layers = len(widths), config["layers_per_block"]
    heads = _of_each_level(config.get("attention_head_dim", 8), levels)
    transformers = _of_each_level(config.get("transformer_layers_per_block", 1), levels)
    text = (tokens, config["cross_attention_dim"])
    operations = _convolution(sides, config["in_channels"] + config["out_channels"], widths[0])
    parts, skips, halved_from = [], [(math.prod(sides), widths[0])], []

    def part(level: int, reads: list[int], attends: bool) -> None:
        blocks = []
        for index, read in enumerate(reads):
            blocks.append(_residual(sides, read, widths[level]))
            # The middle block has two residual blocks, and one transformer between them.
            if attends and not (is_middle and index):
                blocks += _transformer(
                    math.prod(sides), widths[level], heads[level], transformers[level], text
                )
        parts.append(tuple(blocks))

    is_middle, width = False, widths[0]
    for level, kind in enumerate(config["down_block_types"]):
        part(level, [width] + [widths[level]] * (layers - 1), "CrossAttn" in kind)
        width = widths[level]
        skips += [(math.prod(sides), width)] * layers
        if level < levels - 1:
            halved_from.append(sides)
            sides = (-(-sides[0] // 2), -(-sides[1] // 2))
            operations += _convolution(sides, width, width, missed=1)
            skips.append((math.prod(sides), width))
    is_middle = True
    part(levels - 1, [width, width], True)
    is_middle = False
    handed_on = list(skips)
    for index, kind in enumerate(config["up_block_types"]):
        level = levels - 1 - index
        reads = []
        for _ in range(layers + 1):
            reads.append(width + handed_on.pop()[1])
            width = widths[level]
        part(level, reads, "CrossAttn" in kind)
        if level:
            sides = halved_from.pop()
            operations += _convolution(sides, width, width)
    operations += sum(block.operations for blocks in parts for block in blocks)
    return Network(tuple(parts), operations, sum(pixels * width for pixels, width in skips))


def _of_each_level(value, levels: int) -> tuple[int, ...]:
    return (value,) * levels if isinstance(value, int) else tuple(value)


def decoder(config: Mapping, pixels: int, itemsize: int) -> float:
    """Returns an estimate of the bytes that are alive while a VAE decodes one image.

    Args:
      config: the fields of the VAE's config.json.
      pixels: the number of the image's pixels.
      itemsize: the bytes of one value.
    """
    widths = config["block_out_channels"]
    return DECODED * pixels * widths[min(1, len(widths) - 1)] * itemsize
