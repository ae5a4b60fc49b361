"""Write the web page of an index: `python scripts/build_report.py FEATURES OUT`."""

import argparse
from pathlib import Path

from saetool.activations.thumbnails import StoredThumbnails
from saetool.artifacts import Artifact, run_stage
from saetool.images import open_cached
from saetool.program import run_script
from saetool.report import ReportSettings, report_stage


def main() -> None:
    """Read the arguments, find what the index was made from, write the page, print where it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("features", help="a sealed index, made by index_features.py")
    parser.add_argument("out", help="where the page goes")
    parser.add_argument("--store", help="the store of activations, where it has moved")
    parser.add_argument("--autoencoder", help="the autoencoder, where it has moved")
    parser.add_argument("--evaluation", help="an evaluation of the same autoencoder, to be shown as well")
    parser.add_argument("--images", help="the folder of the images, where it has moved")
    parser.add_argument("--title", help="the heading")
    given = parser.parse_args()
    features = Artifact.open(given.features, "features")
    store = features.find_input("activations", given.store)
    autoencoder = features.find_input("autoencoder", given.autoencoder)
    evaluation = Artifact.open(given.evaluation, "evaluation") if given.evaluation else None
    pictures = store.content["source"] is not None and not StoredThumbnails.are_in(store)
    source = open_cached(store, given.images) if pictures else None
    stage = report_stage(features, store, autoencoder, evaluation, source, ReportSettings(title=given.title))
    print(Path(run_stage(stage, given.out).path, "index.html").resolve().as_uri())


if __name__ == "__main__":
    run_script(main)
