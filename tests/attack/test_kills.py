"""Killed at any point of any stage, a run is what it was or what it becomes, and the same command ends the same."""

import os
from pathlib import Path

import pytest

from saetool.artifacts import Artifact, verify

POINTS = 5
"""Points of a stage that are tried, evenly spaced over all of them: before and after its durable calls."""

STAGES = {
    "cache": "activations",
    "train": "autoencoder",
    "index": "features",
    "evaluate": "evaluation",
    "report": "report",
}
"""Commands and what they make."""

pytestmark = pytest.mark.slow


def spread(points: int) -> list[int]:
    """Return numbers below `points`, evenly spaced, the first and the last among them."""
    return sorted({round(i * (points - 1) / (POINTS - 1)) for i in range(POINTS)})


def require_whole(run: Path, kind: str, allowed: set[str]) -> None:
    """Fail unless the artifact, where it stands, is one of those allowed, and intact."""
    if (run / kind).exists():
        assert Artifact.open(run / kind).id in allowed
        assert verify(run / kind) == []


@pytest.mark.parametrize("command", STAGES)
def test_killed_at_points_all_over_a_stage(server, place, drop_from, ids, counts, command):
    kind = STAGES[command]
    here = place("first")
    drop_from(here / "run", command)
    points = server.points(here, command, "config.yaml")
    assert Artifact.open(here / "run" / kind).id == ids[kind]
    for die in spread(points):
        here = place()
        drop_from(here / "run", command)
        before = set(os.listdir(here / "run"))
        assert server(here, command, "config.yaml", die=die).code == -9
        require_whole(here / "run", kind, {ids[kind]})
        assert server(here, command, "config.yaml").require_words().code == 0
        require_whole(here / "run", kind, {ids[kind]})
        assert set(os.listdir(here / "run")) == before | {kind}
        counts[f"killed in {command} ({points} points)"] += 1


@pytest.mark.parametrize("command", STAGES)
def test_killed_while_one_artifact_takes_the_place_of_another(server, place, ids, counts, command):
    """The last points are those of sealing and of the swap."""
    kind = STAGES[command]
    changed = {
        "cache": "cache.shard_mb=0.02",
        "train": "training.lr=2e-3",
        "index": "index.top=3",
        "evaluate": "evaluation.bootstrap=11",
        "report": "report.title=other",
    }[command]
    here = place("first")
    points = server.points(here, command, "config.yaml", changed, "--force")
    new = Artifact.open(here / "run" / kind).id
    assert new != ids[kind]
    for die in range(points - 6, points):
        here = place()
        before = set(os.listdir(here / "run"))
        assert server(here, command, "config.yaml", changed, "--force", die=die).code == -9
        require_whole(here / "run", kind, {new, ids[kind]})
        assert server(here, command, "config.yaml", changed, "--force").require_words().code == 0
        require_whole(here / "run", kind, {new})
        assert set(os.listdir(here / "run")) == before
        counts[f"killed in {command} --force"] += 1
