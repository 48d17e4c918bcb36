"""What a UNet computes and holds, by arithmetic on its config alone.

Operations are those of its matrix products and convolutions. What is held is a model: so many
values for each channel of each pixel in each kind of block, fitted to programs that were compiled
for TPUs (docs/performance.md). Both take no time, and so a program can choose by them as it starts.
"""

import dataclasses
import math
from collections.abc import Mapping

# Values of each channel of a pixel that a residual block keeps for its backward pass, of what it
# reads and of what it writes; and that a layer of a transformer keeps.
KEPT_READ, KEPT_WRITTEN, KEPT_OF_LAYER = 3, 4, 28
# What is alive while a block is differentiated, or computed forward, by what its backward pass asks
# for; and the same of its attention's probabilities where these are held.
DIFFERENTIATED, COMPUTED = 2.5, 0.5
MATRICES = 3
# Values of the last level but one alive in the VAE's decoder, for each pixel of the image.
DECODED = 5
# The Pallas kernel holds no probabilities of so many tokens; see `models/attention.py`.
KERNEL_TOKENS = 1024


@dataclasses.dataclass(frozen=True)
class Block:
    """A residual block, or one layer of a transformer, on one sample.

    Attributes:
      operations: floating-point operations of its forward pass.
      read: values that it reads.
      kept: values that its backward pass asks for.
      tokens, heads: of its self-attention; 0 without.
      parameters: how many it has, but for biases and scales.
    """

    operations: float
    read: int
    kept: int
    tokens: int = 0
    heads: int = 0
    parameters: int = 0

    def probabilities(self, kernel: bool) -> int:
        """Bytes of the float32 probabilities that its self-attention holds."""
        if kernel and self.tokens >= KERNEL_TOKENS:
            return 0
        return 4 * self.heads * self.tokens**2


@dataclasses.dataclass(frozen=True)
class Network:
    """A UNet on one sample with one text.

    Attributes:
      parts: the blocks of each down, middle and up block.
      operations: of all of it, in a forward pass.
      skips: values that the down blocks hand on to the up blocks.
    """

    parts: tuple[tuple[Block, ...], ...]
    operations: float
    skips: int

    @property
    def read(self) -> int:
        """Values that its first block reads."""
        return self.parts[0][0].read

    @property
    def largest_block(self) -> int:
        """Parameters of the block that has most."""
        return max(block.parameters for blocks in self.parts for block in blocks)

    def forward(self, itemsize: int, kernel: bool) -> float:
        """Bytes alive in a forward pass.

        Args:
          itemsize: bytes of a value.
          kernel: whether attention to many tokens is a kernel that holds no probabilities.
        """
        blocks = [block for part in self.parts for block in part]
        return itemsize * self.skips + max(
            COMPUTED * itemsize * block.kept + MATRICES * block.probabilities(kernel)
            for block in blocks
        )

    def backward(self, remat: str, itemsize: int, kernel: bool) -> float:
        """Bytes alive in a forward and backward pass.

        Args:
          remat: as `config.remat`, but not "auto".
          itemsize, kernel: as of `forward`.
        """
        blocks = [block for part in self.parts for block in part]
        one = max(
            DIFFERENTIATED * itemsize * block.kept + MATRICES * block.probabilities(kernel)
            for block in blocks
        )
        if remat == "none":
            held = sum(itemsize * block.kept + block.probabilities(kernel) for block in blocks)
        elif remat == "blocks":
            held = itemsize * sum(block.read for block in blocks) + one
        else:
            inside = max(sum(block.read for block in part) for part in self.parts)
            outside = self.skips + sum(part[0].read for part in self.parts)
            held = itemsize * (outside + inside) + one
        return max(held, one)


# Height and width.
Sides = tuple[int, int]


def _convolution(sides: Sides, read: int, written: int, missed: int = 2) -> float:
    """Operations of a convolution of 3 by 3, without the products with the zeros around.

    Args:
      sides: of what it writes.
      read, written: channels.
      missed: rows of its window that lie outside; 1 where it halves the side.
    """
    height, width = (3 * side - missed for side in sides)
    return 2.0 * height * width * read * written


def _residual(sides: Sides, read: int, written: int) -> Block:
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
    """The layers of a transformer; its projections in and out count to the first."""
    tokens, text_width = text
    # Queries, keys, values and outputs to itself, queries and outputs to the text, 8 + 4 widths in
    # the gated layers behind; then the products with the text's and with each other's.
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
            parameters,
        )
        for index in range(layers)
    ]


def network(config: Mapping, tokens: int, sides: Sides) -> Network:
    """A UNet's blocks.

    Args:
      config: the fields of the UNet's config.json.
      tokens: of a text.
      sides: of a latent.
    """
    widths = tuple(config["block_out_channels"])
    levels, layers = len(widths), config["layers_per_block"]
    heads = _of_each_level(config.get("attention_head_dim", 8), levels)
    transformers = _of_each_level(config.get("transformer_layers_per_block", 1), levels)
    text = (tokens, config["cross_attention_dim"])
    operations = _convolution(sides, config["in_channels"] + config["out_channels"], widths[0])
    parts, skips = [], [(math.prod(sides), widths[0])]

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
            sides = (sides[0] // 2, sides[1] // 2)
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
            sides = (2 * sides[0], 2 * sides[1])
            operations += _convolution(sides, width, width)
    operations += sum(block.operations for blocks in parts for block in blocks)
    return Network(tuple(parts), operations, sum(pixels * width for pixels, width in skips))


def _of_each_level(value, levels: int) -> tuple[int, ...]:
    return (value,) * levels if isinstance(value, int) else tuple(value)


def decoder(config: Mapping, pixels: int, itemsize: int) -> float:
    """Bytes alive while a VAE decodes one image; a model.

    Args:
      config: the fields of the VAE's config.json.
      pixels: of the image.
      itemsize: bytes of a value.
    """
    widths = config["block_out_channels"]
    return DECODED * pixels * widths[min(1, len(widths) - 1)] * itemsize
