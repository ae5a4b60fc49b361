"""What is told of a picture is what a slow computation finds; what the model says changed is what it says changed."""

import io
import math
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from saetool.activations import ActivationStore
from saetool.errors import RequestError, WorkError
from saetool.images.picture import read_picture
from saetool.pipeline import Run
from saetool.serving import session as sessions
from saetool.serving.answers import _names_of, open_answers
from saetool.serving.session import Session, matched_latents

from .conftest import png


def tokens_of(session, content):
    """The model's input and the site's tokens [patches, d], by hand."""
    image = read_picture(content, "by hand").image.convert("RGB")
    pixels = session.backbone.transform(image)[None]
    return pixels, session.backbone.forward_to(pixels, [session.site])[0][0].float()


def at(found, patch):
    start = sum(found["counts"][:patch])
    stop = start + found["counts"][patch]
    return list(zip(found["latents"][start:stop], found["values"][start:stop], strict=True))


@pytest.fixture(scope="module")
def looked(session):
    return session.look(png(3, bright=True), "a.png")


def test_every_patch_has_its_latents_strongest_first(session, looked):
    _, x = tokens_of(session, png(3, bright=True))
    z = session.autoencoder.encode(x)
    assert looked["grid"] == [3, 3]
    assert len(looked["counts"]) == len(z) == 9
    for patch, row in enumerate(z.tolist()):
        wanted = sorted(((latent, value) for latent, value in enumerate(row) if value > 0), key=lambda one: -one[1])
        assert [latent for latent, _ in at(looked, patch)] == [latent for latent, _ in wanted]
        assert [value for _, value in at(looked, patch)] == pytest.approx([value for _, value in wanted], rel=1e-5)


def test_no_patch_tells_more_latents_than_its_strongest(session, looked, monkeypatch):
    monkeypatch.setattr(sessions, "STRONGEST", 2)
    fewer = session.look(png(3, bright=True))
    assert fewer["counts"] == [2] * 9
    assert [at(fewer, patch) for patch in range(9)] == [at(looked, patch)[:2] for patch in range(9)]


def test_unexplained_is_the_picture_s_error_over_its_distance_from_the_store_s_mean(session, run, looked):
    _, x = tokens_of(session, png(3, bright=True))
    rows = ActivationStore(run.store).site(None).rows(0, 40).flatten(0, 1).double()
    with torch.no_grad():
        x_hat = session.autoencoder.decode(session.autoencoder.encode(x))
    wanted = (x - x_hat).double().square().sum() / (x.double() - rows.mean(0)).square().sum()
    assert looked["unexplained"] == pytest.approx(float(wanted), rel=1e-4)


def changed_by_hand(session, content, factors, patches):
    """Class probabilities where x becomes x + Σ (factor − 1) z W_dec on some patches."""
    pixels, x = tokens_of(session, content)
    z, directions = session.autoencoder.encode(x), session.autoencoder.decoder_directions()
    moved = x.clone()
    for patch in patches:
        for latent, factor in factors.items():
            moved[patch] += (factor - 1) * z[patch, latent] * directions[latent]
    with torch.no_grad(), session.backbone.replacing(session.site, lambda tokens: moved[None].to(tokens)):
        return session.answers.of(pixels)


@pytest.mark.parametrize("patches", [None, [2, 5]])
@pytest.mark.parametrize("factor", [0.0, 3.0])
def test_a_changed_latent_changes_what_the_model_says_as_by_hand(session, looked, factor, patches):
    latents = [at(looked, 2)[0][0], at(looked, 5)[1][0]]
    found = session.change(looked["picture"], dict.fromkeys(latents, factor), patches)
    content = png(3, bright=True)
    embedding, likely = changed_by_hand(session, content, dict.fromkeys(latents, factor), patches or range(9))
    before, was = session.answers.of(tokens_of(session, content)[0])
    assert float((likely - was).abs().max()) > 1e-4
    for one in found["classes"]:
        k = session.answers.classes.index(one["name"])
        assert one["before"] == pytest.approx(float(was[0, k]), abs=1e-6)
        assert one["after"] == pytest.approx(float(likely[0, k]), abs=1e-5)
    assert found["cosine"]["after"] == pytest.approx(float(torch.cosine_similarity(before, embedding)), abs=1e-6)
    assert set(found["matched"]).isdisjoint(latents)
    others = session.change(looked["picture"], dict.fromkeys(found["matched"], factor), patches)
    assert others["cosine"]["after"] == pytest.approx(found["cosine"]["others"], abs=1e-9)


def test_a_factor_of_one_changes_nothing(session, looked):
    found = session.change(looked["picture"], {at(looked, 0)[0][0]: 1.0})
    assert found["cosine"]["after"] == pytest.approx(1, abs=1e-7)
    assert all(one["after"] == pytest.approx(one["before"], abs=1e-6) for one in found["classes"])


def test_others_are_those_of_nearest_mass_each_once():
    mass = {1: 5.0, 2: 4.0, 3: 4.6, 4: 1.0, 5: 0.5}
    assert matched_latents(mass, {1: 0.0}) == {3: 0.0}
    assert matched_latents(mass, {1: 0.0, 2: 0.5, 9: 0.0}) == {3: 0.0, 4: 0.5}
    assert matched_latents({1: 5.0}, {1: 0.0}) == {}


def test_mass_is_the_sum_of_values_times_the_length_of_the_direction(session, looked):
    _, x = tokens_of(session, png(3, bright=True))
    z, length = session.autoencoder.encode(x), session.autoencoder.decoder_directions().norm(dim=1)
    wanted = {k: float(z[:, k].sum() * length[k]) for k in range(40) if z[:, k].sum() > 0}
    codes = session._pictures[looked["picture"]].codes
    assert session._mass(codes, None) == pytest.approx(wanted, rel=1e-5)
    wanted = {k: float(z[4, k] * length[k]) for k in range(40) if z[4, k] > 0}
    assert session._mass(codes, [4]) == pytest.approx(wanted, rel=1e-5)


def test_others_are_matched_where_the_change_is(session):
    """A latent of equal strength elsewhere changes nothing on this patch, and would make any change look large."""
    halves = np.concatenate([np.full((30, 60, 3), 230), np.random.default_rng(0).integers(0, 60, (30, 60, 3))])
    file = io.BytesIO()
    Image.fromarray(halves.astype(np.uint8)).save(file, "PNG")
    looked = session.look(file.getvalue())
    for patch in range(9):
        here = [latent for latent, _ in at(looked, patch)]
        for latent in here:
            found = session.change(looked["picture"], {latent: 0.0}, [patch])
            assert set(found["matched"]) <= set(here)
            assert len(found["matched"]) == (len(here) > 1)


@pytest.mark.parametrize(
    ("changes", "patches", "words"),
    [
        ({40: 0.0}, None, "no latent 40"),
        ({-1: 0.0}, None, "no latent -1"),
        ({0: math.nan}, None, "0 \\(off\\) to 100"),
        ({0: math.inf}, None, "0 \\(off\\) to 100"),
        ({0: -1.0}, None, "0 \\(off\\) to 100"),
        ({0: 0.0}, [9], "no token 9"),
        (dict.fromkeys(range(201), 0.0), None, "at most 200 latents"),
    ],
)
def test_what_cannot_be_changed_is_said(session, looked, changes, patches, words):
    with pytest.raises(RequestError, match=words):
        session.change(looked["picture"], changes, patches)


def test_old_pictures_are_forgotten_and_said_to_be(session, looked, monkeypatch):
    monkeypatch.setattr(sessions, "KEPT", 2)
    for seed in (50, 51):
        session.look(png(seed))
    assert len(session._pictures) == 2
    with pytest.raises(RequestError, match="drop it again"):
        session.change(looked["picture"], {0: 0.0})
    session.look(png(3, bright=True))


def test_a_picture_that_is_asked_about_is_not_the_oldest(session, monkeypatch):
    monkeypatch.setattr(sessions, "KEPT", 2)
    asked, other = (session.look(png(seed))["picture"] for seed in (52, 53))
    session.change(asked, {0: 0.0})
    session.look(png(54))
    assert asked in session._pictures
    assert other not in session._pictures


def test_pictures_are_decoded_one_at_a_time(session, monkeypatch):
    decoding, most = [], []

    def decode(*given, **more):
        decoding.append(1)
        most.append(len(decoding))
        time.sleep(0.05)
        decoding.pop()
        return read_picture(*given, **more)

    monkeypatch.setattr(sessions, "read_picture", decode)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(session.look, [png(seed) for seed in range(60, 64)]))
    assert most == [1, 1, 1, 1]


def test_what_is_no_picture_is_refused(session):
    with pytest.raises(WorkError, match=r"^notes\.txt cannot be read as an image \([^)]*\)$"):
        session.look(b"no picture at all", "notes.txt")


def test_a_picture_of_too_many_pixels_is_refused_in_the_page_s_words(session, monkeypatch):
    monkeypatch.setattr(sessions, "MOST_PIXELS", 100)
    with pytest.raises(WorkError, match=r"^a\.png: more pixels than 100, .*\(5400 here\): make it smaller$"):
        session.look(png(3), "a.png")


def test_the_probe_learned_from_training_images_and_is_checked_on_the_others(session, run, looked):
    split = run.make("autoencoder")[0].content["held_out"]
    answers = session.answers
    assert answers.classes == ["bright", "dark"]
    assert answers.words.startswith("a linear probe on 'class', fitted on")
    n = int(answers.words.split("fitted on ")[1].split()[0])
    assert n == round(40 * (1 - split["share"]))
    assert f"of {40 - n} held-out ones" in answers.words
    likely = {one["name"]: one["before"] for one in looked["answer"]["classes"]}
    assert likely["bright"] > 0.9
    assert sum(likely.values()) == pytest.approx(1)


def test_answers_without_images_or_labels_are_the_embedding(session, run):
    store = ActivationStore(run.store)
    found = open_answers(session.backbone, store, {"share": 0.3, "seed": 0}, None, pretrained=False)
    assert found.classes == []
    assert found.words == "the final embedding only: the images are not at hand"
    with pytest.raises(RequestError, match="--label: 'color' is no label with two classes; the store has class"):
        open_answers(session.backbone, store, {"share": 0.3, "seed": 0}, None, "color")


def test_images_that_were_replaced_leave_the_embedding(session, place, tmp_path, capsys):
    shutil.copytree(place, tmp_path / "moved")
    for file in (tmp_path / "moved" / "images").rglob("*.png"):
        file.write_bytes(png(77))
    moved = Run.load(
        str(tmp_path / "moved" / "a.yaml"), [f"run={tmp_path}/moved/run", f"images.source={tmp_path}/moved/images"]
    )
    split = moved.make("autoencoder")[0].content["held_out"]
    found = open_answers(session.backbone, ActivationStore(moved.store), split, moved.source, "class")
    assert found.words.endswith("the images are not those that were cached")
    assert "No probe: image" in capsys.readouterr().err


def test_a_head_whose_classes_have_names_is_asked(run):
    import timm

    from saetool.serving.answers import _own_head
    from saetool.vision import wrap

    store = ActivationStore(run.store)
    path, names = _own_head(wrap(timm.create_model("test_vit", img_size=48), [2], image_size=48), store)
    assert path == "head"
    assert len(names) == 1000
    assert "goldfish" in names[1]
    model = timm.create_model("test_vit", num_classes=2, img_size=48)
    assert _own_head(wrap(model, [2], image_size=48), store) == ("head", ["bright", "dark"])
    model = timm.create_model("test_vit", num_classes=512, img_size=48)  # a projection, as CLIP's
    assert _own_head(wrap(model, [2], image_size=48), store) is None


def test_names_of_a_classifier_stand_in_the_order_of_its_outputs():
    """Numbers as a JSON file has them are texts, of which "10" comes before "2"."""
    config = SimpleNamespace(id2label={str(k): f"class {k}" for k in reversed(range(12))})
    assert _names_of(SimpleNamespace(config=config), 12) == [f"class {k}" for k in range(12)]
    assert _names_of(SimpleNamespace(config=config), 11) is None
    unnamed = SimpleNamespace(id2label={k: f"LABEL_{k}" for k in range(3)})
    assert _names_of(SimpleNamespace(config=unnamed), 3) is None


def test_another_model_than_the_store_s_is_refused(run):
    other = run.config.backbone.model_copy(update={"image_size": 32})
    with pytest.raises(RequestError, match="was trained on"):
        Session.open(run.make("autoencoder")[0], run.store, other, None)


def test_the_same_picture_says_the_same(session):
    first, second = session.look(png(9)), session.look(png(9))
    assert first == second
    assert np.isfinite(first["unexplained"])
