"""A run that ends badly says so, in one line a fault, with what to change; a good one says nothing."""

import re

import pytest

from saetool.autoencoders.sparse_settings import SELECTING
from saetool.training.concerns import LEAST_FIRINGS, MEMORY, MOST_SILENT, concerns


def number(value, low=None, high=None):
    return {"value": value, "low": low, "high": high}


def model(penalty=None, activation="relu", tokens=10_000_000, family="sparse", **final):
    penalty = penalty or {"kind": "none" if activation in SELECTING else "l1"}
    settings = {"kind": family, "activation": {"kind": activation}, "penalty": penalty}
    ended = {"fvu": 0.1, "l0": 45.0, "dead_share": 0.01} | final
    return {"family": family, "settings": settings, "n_latents": 12_288, "tokens": tokens, "final": ended}


def evaluation(fvu=0.1, l0=45.0, dead=10, training=0.09, pca=0.12, difference=(0.02, 0.01, 0.03)):
    return {
        "held_out": {"fvu": number(fvu), "l0": number(l0), "dead": dead, "n_latents": 12_288},
        "training": {"fvu": number(training)},
        "baselines": [
            {"name": name, "numbers": {"fvu": number(pca)}, "fvu_difference": number(*difference)}
            for name in ("PCA", "PCA, fixed")
        ],
    }


def test_a_good_run_has_nothing_to_say():
    assert concerns(model()) == []
    assert concerns(model(), evaluation()) == []


@pytest.mark.parametrize(
    ("given", "found", "words"),
    [
        (
            model(),
            evaluation(fvu=0.336, training=0.33, pca=0.317, difference=(-0.019, -0.03, -0.01)),
            "worse than PCA's 0.317",
        ),
        (model(), evaluation(pca=0.101, difference=(0.001, -0.002, 0.004)), "not surely better than PCA's 0.101"),
        (model(), evaluation(pca=0.099, difference=(-0.001, -0.002, 0.001)), "no better than PCA's 0.099"),
        (model({"kind": "l1", "target_l0": 45}, l0=60.0), None, "L0 is 60.0, not 45 "),
        (model(), evaluation(dead=int(12_288 * MOST_SILENT) + 1), "20% of the latents never fire.*resample"),
        (model(activation="topk", dead_share=0.5), None, "50% of the latents.*auxk"),
        (model(), evaluation(fvu=0.1, training=0.0999 / MEMORY), "learned by heart"),
        (model(tokens=int(LEAST_FIRINGS * 12_288 / 45) - 1), None, "fire 1,500 times|fire 1,499 times"),
    ],
)
def test_each_fault_has_one_line_that_says_what_to_change(given, found, words):
    (line,) = concerns(given, found)
    assert re.search(words, line)
    assert re.search(r"training\.\w+|autoencoder\.\w+", line)
    assert "\n" not in line


def test_what_to_change_is_a_key_that_the_model_has_and_not_what_it_is_already():
    worse = evaluation(pca=0.099, difference=(-0.001, -0.002, -0.0005))
    (line,) = concerns(model(family="dense"), worse)
    assert "expansion" not in line
    assert "activation" not in line
    topk = model(activation="topk", dead_share=0.5)
    topk["settings"] |= {"dead": {"kind": "auxk"}, "n_latents": 64}
    (line,) = concerns(topk)
    assert "cure" not in line
    assert "autoencoder.n_latents" in line
    (line,) = concerns(topk, worse)
    assert "as TopK" not in line
    assert "or as TopK" in concerns(model(), worse)[0]


def test_where_images_are_learned_by_heart_nothing_advises_more_passes_over_them():
    by_heart = evaluation(fvu=0.1, training=0.05, pca=0.099, difference=(-0.001, -0.002, -0.0005))
    lines = concerns(model(tokens=100_000), by_heart)
    assert ["train on more images" in line for line in lines] == [True, False, True]
    assert "more tokens" not in "".join(lines)


def test_silence_on_fewer_tokens_than_latents_could_fire_on_says_nothing():
    assert concerns(model(rows=1, l0=45.0, dead_share=0.99)) == []
    assert len(concerns(model(rows=5_000, l0=45.0, dead_share=0.99))) == 1
    few = evaluation(dead=12_000)
    few["held_out"]["tokens"] = 20
    assert concerns(model(), few) == []
    (line,) = concerns(model(rows=5_000, dead_share=0.99, split="train"))
    assert "never fire on the training rows" in line


def test_numbers_of_the_evaluation_count_more_than_those_of_the_trainings_end():
    assert concerns(model(dead_share=0.9), evaluation(dead=0)) == []


def test_other_families_and_imported_models_are_not_asked_about_firings():
    assert concerns(model(family="dense", tokens=100, dead_share=0.9)) == []
    assert concerns(model(tokens=100) | {"origin": {}}) == []
    assert concerns({"family": "linear", "n_latents": 8, "tokens": 5, "final": None, "settings": {}}) == []


def test_codes_that_choose_nothing_a_token_stand_beside_fixed_components():
    worse = evaluation(pca=0.099, difference=(-0.001, -0.002, -0.0005))
    worse["baselines"][0] |= {"fvu_difference": number(0.5, 0.4, 0.6)}  # PCA that chooses for each token
    assert "worse than PCA's 0.099 with as many components: " in concerns(model(family="dense"), worse)[0]
    closed = model(family="linear")
    closed["settings"] |= {"solver": "closed_form"}
    wide = model(family="denoising") | {"d_in": 384}
    assert concerns(closed, worse) == concerns(wide, worse) == []


@pytest.mark.parametrize(
    ("activation", "cure"),
    [("relu", "resample"), ("jump_relu", "pre_activation"), ("batch_topk", "auxk"), ("sigmoid", None)],
)
def test_the_cure_is_one_that_the_activation_takes(activation, cure):
    (line,) = concerns(model(activation=activation, dead_share=0.5))
    assert (f"{{kind: {cure}}}" in line) if cure else ("cure" not in line)


def test_a_family_of_ones_own_is_judged_by_its_code():
    worse = evaluation(pca=0.099, difference=(-0.001, -0.002, -0.0005), dead=12_000)
    own = model(family="mixture", activation="relu")
    lines = concerns(own, worse)
    assert "PCA's 0.099 with as many components a token" in lines[0]
    assert "as TopK" not in lines[0]
    assert "98% of the latents never fire" in lines[1]
    worse["held_out"]["l0"] = number(6_000.0)
    assert len(concerns(own, worse)) == 1


def test_worse_than_the_mean_is_said_before_all_else():
    (line,) = concerns(model(fvu=1.18))
    assert "FVU is 1.180 on held-out images: worse than answering every time with the mean" in line


def test_a_code_that_nothing_makes_sparse_is_told():
    (line,) = concerns(model({"kind": "none"}))
    assert "relu has no number of active latents, and the penalty is none" in line
    assert concerns(model({"kind": "none"}) | {"origin": {}}) == concerns(model(activation="topk")) == []


def test_a_penalty_that_rises_until_the_end_is_told_in_place_of_the_target_it_missed():
    penalty = {"kind": "l1", "target_l0": 45, "warmup_steps": 100}
    (line,) = concerns(model(penalty, l0=60.0) | {"steps": 100})
    assert "rose until the 100 steps were over (autoencoder.penalty.warmup_steps 100)" in line
    (line,) = concerns(model(penalty, l0=60.0) | {"steps": 101})
    assert "L0 is 60.0" in line
