"""Models that are not sparse: a landing page with reconstructions, directions and spectrum; no latent pages needed."""

import numpy as np
import pytest
import torch

from saetool.artifacts import Stage, run_stage
from saetool.report import ReportSettings, check, report_stage
from saetool.report.chunks import unpack

SIDE, ROWS = 4, 3


def chunk(site, name):
    return unpack((site.path / "data" / f"{name}.js").read_bytes())[1:]


@pytest.fixture
def model(tmp_path):
    """A store of 4 × 4 color pixels, a dense model with a decoder [d_in, k], and its evaluation with figures."""
    d_in = 3 * SIDE * SIDE
    generator = torch.Generator().manual_seed(0)
    decoder = torch.randn(d_in, 5, generator=generator) * torch.tensor([1.0, 5, 3, 2, 4])
    originals = torch.rand(ROWS, d_in, generator=generator)
    preprocessing = {"gray": False, "geometry": {"crop": [SIDE, SIDE]}}
    store = run_stage(
        Stage(
            "activations",
            {},
            lambda partial: {
                "images": 9,
                "tokens": 9,
                "backbone": {"name": "pixels", "preprocessing": preprocessing},
                "source": {"source": "digits"},
            },
        ),
        tmp_path / "activations",
    )

    def write(partial):
        partial.write_tensors("model.safetensors", {"decoder.weight": decoder, "encoder.weight": decoder.T})
        content = {"family": "dense", "settings": {"kind": "dense"}, "d_in": d_in, "n_latents": 5}
        return content | {"site": None, "final": {"fvu": 0.2, "l0": 5.0}, "tokens": 100}

    autoencoder = run_stage(Stage("autoencoder", {}, write, (store,)), tmp_path / "autoencoder")

    def evaluate(partial):
        partial.write_tensors("figures.safetensors", {"originals": originals, "filters": decoder.T})
        tables = [{"title": "Held <out>", "note": "a & b", "columns": ["", "FVU"], "rows": [["this", "0.2 (0.1–0.3)"]]}]
        tables.append({"title": "Effect", "note": "", "columns": ["class", "latent"], "rows": [["7", "3"]]})
        pareto = [{"name": "this", "kind": "autoencoder", "l0": 5.0, "fvu": 0.2, "fvu_interval": [0.1, 0.3]}]
        partial.write_json("evaluation.json", {"tables": tables, "pareto": pareto})
        return {}

    evaluation = run_stage(Stage("evaluation", {}, evaluate, (autoencoder,)), tmp_path / "evaluation")
    return store, autoencoder, evaluation, decoder.numpy(), originals.numpy()


def report(model, out, evaluated=True):
    store, autoencoder, evaluation, *_ = model
    stage = report_stage(None, store, autoencoder, evaluation if evaluated else None, None, ReportSettings())
    return run_stage(stage, out)


def test_rows_of_pixels_become_pictures(model, tmp_path):
    arrays, values = chunk(report(model, tmp_path / "report"), "figures")
    *_, originals = model
    pictures = arrays["originals"].reshape(ROWS, SIDE, SIDE, 3)
    wanted = np.rint(255 * originals.reshape(ROWS, 3, SIDE, SIDE)).astype(np.uint8)
    np.testing.assert_array_equal(pictures, wanted.transpose(0, 2, 3, 1))
    assert values["shape"] == [3, SIDE, SIDE]
    assert [kind["name"] for kind in values["kinds"]] == ["originals", "filters"]


def test_directions_are_signed_around_gray(model, tmp_path):
    arrays, _ = chunk(report(model, tmp_path / "report"), "figures")
    decoder = model[3]
    first = decoder[:, 0].reshape(3, SIDE, SIDE).transpose(1, 2, 0).ravel()
    shown = arrays["filters"].reshape(5, -1)[0]
    np.testing.assert_allclose(shown, 127.5 + 127.5 * first / np.abs(first).max(), atol=0.51)


def test_without_an_evaluation_the_decoder_speaks(model, tmp_path):
    arrays, values = chunk(report(model, tmp_path / "report", evaluated=False), "figures")
    decoder = model[3]
    np.testing.assert_allclose(arrays["spectrum"], np.linalg.svd(decoder, compute_uv=False), rtol=1e-5)
    order = np.argsort(-np.linalg.norm(decoder, axis=0))
    largest = decoder[:, order[0]].reshape(3, SIDE, SIDE).transpose(1, 2, 0).ravel()
    np.testing.assert_allclose(
        arrays["filters"].reshape(5, -1)[0], 127.5 + 127.5 * largest / np.abs(largest).max(), atol=0.51
    )
    assert values["kinds"][0]["rows"] == 5


def test_the_page_is_whole_and_escaped(model, tmp_path):
    site = report(model, tmp_path / "report")
    assert check(site.path) == []
    page = (site.path / "index.html").read_text()
    assert "Held &lt;out&gt;" in page
    assert "0.2 (0.1–0.3)" in page
    assert '<td class="number">3</td>' in page, "no link to a latent that has no page"
    assert "latent.html" not in page
    assert sorted(name for name in site.files if name.endswith(".html")) == ["index.html"]
