"""Cache a vision transformer's activations over images: `python scripts/cache_activations.py IMAGES OUT`."""

import argparse

from saetool.activations import CacheSettings, cache
from saetool.images import ImageSettings
from saetool.program import run_script
from saetool.vision import BackboneSettings


def main() -> None:
    """Read the arguments, cache, print what was stored."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", help="a folder of images, or elpv, digits, mnist, hf/NAME")
    parser.add_argument("out", help="where the store goes; begun work there is resumed")
    parser.add_argument("--backbone", default="demo/vits14", help="timm/NAME, hf/NAME, demo/vits14")
    parser.add_argument("--layers", nargs="+", default=["10"], help="layers from 1, or module paths")
    parser.add_argument("--tokens", default="patches", choices=["patches", "cls", "all", "mean"])
    parser.add_argument("--image-size", type=int, help="pixels of the model's input, where it is not the published one")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--batch-size", type=int, default=32, help="images in a slice")
    parser.add_argument("--limit", type=int, help="N images only, drawn evenly")
    given = parser.parse_args()
    layers = [int(layer) if layer.isdigit() else layer for layer in given.layers]
    backbone = BackboneSettings(name=given.backbone, layers=layers, tokens=given.tokens, image_size=given.image_size)
    images = ImageSettings(source=given.images, limit=given.limit)
    settings = CacheSettings(dtype=given.dtype, batch_size=given.batch_size)
    store = cache(backbone, images, None, given.out, settings)
    sites = ", ".join(f"{site['label']}: {site['n_tokens']} × {site['d']}" for site in store.content["sites"])
    print(f"{given.out}: {store.content['images']} images; tokens × width of each at {sites}")


if __name__ == "__main__":
    run_script(main)
