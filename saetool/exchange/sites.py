"""Where other tools say that an autoencoder belongs, and which of saetool's sites that is.

Their layers count from 0 and their hooks are TransformerLens names, module paths or bare numbers; saetool's layers
count from 1, and any other site is a module path.
"""

import re
from dataclasses import asdict, dataclass
from typing import Any

from saetool.vision.settings import Tokens

_HOOKS = {
    "hook_mlp_out": ".mlp",
    "hook_attn_out": ".attn",
    "mlp.hook_out": ".mlp",
    "attn.hook_out": ".attn",
}
"""Hooks of a block that are a module's output in timm; the block's own output is the layer."""
_BLOCK = re.compile(r"^(?:.*\.)?(?:blocks|layers|layer|h|resblocks)\.(\d+)(?:\.(.+))?$")
_BACKBONES = {
    "openai/clip-vit-base-patch32": "timm/vit_base_patch32_clip_224.openai",
    "openai/clip-vit-base-patch16": "timm/vit_base_patch16_clip_224.openai",
    "openai/clip-vit-large-patch14": "timm/vit_large_patch14_clip_224.openai",
    "laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K": "timm/vit_base_patch32_clip_224.datacompxl",
    "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K": "timm/vit_base_patch16_clip_224.datacompxl",
    "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K": "timm/vit_large_patch14_clip_224.datacompxl",
    "facebook/dino-vitb16": "timm/vit_base_patch16_224.dino",
    "facebook/dino-vits16": "timm/vit_small_patch16_224.dino",
    "ViT-B-16/openai": "timm/vit_base_patch16_clip_224.openai",
    "ViT-B-32/openai": "timm/vit_base_patch32_clip_224.openai",
    "ViT-L-14/openai": "timm/vit_large_patch14_clip_224.openai",
}
"""Models under the names that other tools give them; block and module paths above are timm's."""


@dataclass(frozen=True)
class Claim:
    """What a file says of its site: the model's name there, the layer (from 1) or module path here, which tokens."""

    model: str | None = None
    layer: int | str | None = None
    tokens: Tokens | None = None
    hook: str | None = None
    """The hook's name as the file has it."""

    def __post_init__(self):
        if not all(value is None or isinstance(value, str) for value in (self.model, self.hook)):
            raise TypeError("a model or a hook is named by something that is no text")

    @property
    def backbone(self) -> str | None:
        """The model's name here, where it is known."""
        name = (self.model or "").removeprefix("open-clip:")
        return name if name.startswith(("timm/", "hf/", "demo/")) else _BACKBONES.get(name)

    def says(self) -> str:
        layer = f"layer {self.layer}" if isinstance(self.layer, int) else self.layer or self.hook or "some layer"
        return f"{layer} of {self.backbone or self.model or 'some model'}"

    def as_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}


def claim_of_hook(model: str | None, hook: str | None, tokens: Tokens | None = None) -> Claim:
    """Return what a TransformerLens hook name, or a module path, says: `blocks.8.hook_mlp_out` is `blocks.8.mlp`.

    The residual stream before block i is layer i, after it layer i + 1. Other hooks are kept by their name only.
    """
    site: int | str | None = None
    if found := _BLOCK.match(hook or ""):
        block, rest = int(found[1]), found[2] or ""
        if rest in ("", "hook_resid_post"):
            site = block + 1
        elif rest == "hook_resid_pre" and block > 0:
            site = block
        elif rest in _HOOKS:
            site = f"blocks.{block}{_HOOKS[rest]}"
        elif "hook" not in rest:
            site = hook
    return Claim(model, site, tokens, hook)
