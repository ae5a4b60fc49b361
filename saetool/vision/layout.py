"""Which of a site's tokens is which: how many stand before the patches, and how the patches lie on the picture.

A layout is proven, not guessed: one cell of the picture is made bright after another, and the tokens that answer must
lie as rows and columns of patches do. What a library declares is compared with it; what a caller says is believed.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saetool import seeding

CLASS_TOKEN_NAMES = {"cls_token", "class_token", "class_embedding", "cls_embedding", "cls"}
"""What timm, transformers and open_clip call the parameter of a CLS token."""
MOST_EXTRA_TOKENS = 16
"""Tokens beside the patches that a grid nobody named may leave over: CLS, distillation, registers."""
EXACT_BELOW = 5
"""Rows or columns up to which a cell must be answered by its own token. On finer grids a neighbor may answer: patches
of overlapping convolutions lie half a patch beside the cell."""
BRIGHT, NOISE = 3.0, 0.1
"""Of the cell and of the picture around it, in units of the normalized input."""

Grid = tuple[int, int]


@dataclass(frozen=True)
class TokenLayout:
    """Prefix tokens (CLS, registers, distillation), patches in row-major order, then whatever else there is."""

    prefix_tokens: int
    grid: Grid | None
    """(rows, columns) of patches; None where the tokens form no known grid."""
    has_class_token: bool = False
    suffix_tokens: int = 0
    """Tokens after the patches."""

    @property
    def tokens(self) -> int | None:
        """Tokens in all; None without a grid."""
        return None if self.grid is None else self.prefix_tokens + math.prod(self.grid) + self.suffix_tokens

    @property
    def patches(self) -> slice:
        """Where the patches stand among the tokens; everything without a grid."""
        stop = None if self.grid is None else self.prefix_tokens + math.prod(self.grid)
        return slice(self.prefix_tokens, stop)

    def says(self) -> str:
        grid = "no grid" if self.grid is None else f"a {self.grid[0]}×{self.grid[1]} grid"
        after = f" and {self.suffix_tokens} tokens after it" if self.suffix_tokens else ""
        return f"{self.prefix_tokens} prefix tokens and {grid}{after}"


def has_class_token(model: nn.Module) -> bool:
    """Say whether the model has a parameter that is named like a CLS token."""
    return any(path.rpartition(".")[2] in CLASS_TOKEN_NAMES for path, _ in model.named_parameters())


def prove(
    read: Callable[[Float[Tensor, "1 c h w"]], Float[Tensor, "tokens d"]],
    picture: tuple[int, int, int],
    tokens: int,
    grids: Iterable[Grid],
) -> TokenLayout | None:
    """Return the layout on the first of `grids` that bright cells prove; None where the answers fit none.

    `read` gives the tokens of an image of the size `picture` (channels, height, width).
    """
    for grid in grids:
        places = _places(grid)
        answers = _answers(read, picture, grid, places)
        extra = tokens - math.prod(grid)
        fitting = [prefix for prefix in range(extra + 1) if _fits(answers, places, grid, prefix)]
        if len(fitting) == 1:
            return TokenLayout(fitting[0], grid, suffix_tokens=extra - fitting[0])
    return None


def possible_grids(tokens: int, size: tuple[int, int], hints: Iterable[Grid]) -> list[Grid]:
    """Return grids that fit into so many tokens of a picture of `size`, those that leave least over first.

    They have the picture's shape, and leave few tokens over; `hints` (grids of the model's convolutions) may leave any.
    """
    found = {grid for grid in hints if math.prod(grid) <= tokens}
    for count in range(max(1, tokens - MOST_EXTRA_TOKENS), tokens + 1):
        rows = round(math.sqrt(count * size[0] / size[1]))
        # Patches are squares of the picture, cut off at its end: less than one row too many or too few.
        if rows and count % rows == 0 and abs(rows - count // rows * size[0] / size[1]) < 1:
            found.add((rows, count // rows))
    return sorted((grid for grid in found if math.prod(grid) > 1), key=lambda grid: (-math.prod(grid), grid))


def _places(grid: Grid) -> list[Grid]:
    """Return cells that tell layouts apart: a token too many before the patches pushes the edges over."""
    r, c = grid[0] - 1, grid[1] - 1
    wanted = [(0, 0), (0, c), (r, 0), (r, c), (r // 3, 0), (r // 2, c), (r // 2, c // 3), (2 * r // 3, 2 * c // 3)]
    return list(dict.fromkeys(wanted))


@torch.no_grad()
def _answers(
    read: Callable[[Tensor], Tensor], picture: tuple[int, int, int], grid: Grid, places: Sequence[Grid]
) -> list[int]:
    """Return which token answers each bright cell most: by how much it changes, and changes for this cell alone."""
    channels, height, width = picture
    plain = NOISE * torch.randn(1, *picture, generator=seeding.generator(0, "picture of the probe"))
    color = torch.tensor([BRIGHT, -BRIGHT, BRIGHT])[:channels, None, None]
    before, changes = read(plain).float(), []
    for row, column in places:
        bright = plain.clone()
        rows = slice(row * height // grid[0], max((row + 1) * height // grid[0], row * height // grid[0] + 1))
        columns = slice(column * width // grid[1], max((column + 1) * width // grid[1], column * width // grid[1] + 1))
        bright[0, :, rows, columns] += color
        changes.append((read(bright).float() - before).norm(dim=-1))
    change = torch.stack(changes)
    # Attention carries a change to every token, to CLS and registers above all: those answer all cells alike.
    return (change.square() / change.mean(0).clamp(min=1e-30)).argmax(1).tolist()


def _fits(answers: list[int], places: Sequence[Grid], grid: Grid, prefix: int) -> bool:
    slack = [0 if side < EXACT_BELOW else 1 for side in grid]
    for token, (row, column) in zip(answers, places, strict=True):
        if not 0 <= token - prefix < math.prod(grid):
            return False
        r, c = divmod(token - prefix, grid[1])
        if abs(r - row) > slack[0] or abs(c - column) > slack[1]:
            return False
    return True
