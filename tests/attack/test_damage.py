"""Every kind of damage to every kind of file, met by every use: the right result, or one message that names it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from saetool.artifacts import Artifact, verify

pytestmark = pytest.mark.slow

STAGES = {"train": "autoencoder", "index": "features", "evaluate": "evaluation", "report": "report"}
USES = {
    "activations": ["train", "index", "evaluate", "report"],
    "autoencoder": ["index", "evaluate", "report"],
    "features": ["evaluate", "report"],
    "evaluation": ["report"],
}
"""By what is damaged, the commands that are made from it."""


def flip(place: float) -> Callable[[bytes], bytes]:
    """Return what flips one bit, at a share of the file's length."""

    def change(data: bytes) -> bytes:
        at = min(int(place * len(data)), len(data) - 1)
        return data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]

    return change


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "first bytes": flip(0.0),
    "middle": flip(0.5),
    "cut": lambda data: data[: len(data) // 2],
}
MORE = {
    **DAMAGES,
    "last byte": flip(1.0),
    "zeros": lambda data: bytes(len(data)),
    "schema": lambda data: data.replace(b'"schema": 1', b'"schema": 9'),
}


def files_of(artifact: Path) -> list[str]:
    """Return the artifact's files, of numbered ones the last."""
    names = sorted(p.relative_to(artifact).as_posix() for p in artifact.rglob("*") if p.is_file())
    return [name for name in names if not name.endswith(("00000.safetensors", "00001.safetensors"))]


@pytest.mark.parametrize("damaged", USES)
def test_damage_is_named_by_every_use_that_meets_it(server, place, rewrite, ids, counts, damaged):
    here = place()
    for name in files_of(here / "run" / damaged):
        file = here / "run" / damaged / name
        whole = file.read_bytes()
        for damage, change in DAMAGES.items():
            rewrite(file, change(whole))
            assert verify(here / "run" / damaged), (name, damage)
            for command in USES[damaged]:
                made, aside = here / "run" / STAGES[command], here / "aside"
                made.rename(aside)
                ended = server(here, command, "config.yaml").require_words()
                if ended.code == 0:  # it did not need the file
                    assert Artifact.open(made).id == ids[STAGES[command]], (name, damage, command)
                    counts[f"damage to {damaged}: not needed"] += 1
                else:
                    assert name.rpartition("/")[2] in ended.said, (name, damage, command, ended)
                    assert "--force" in ended.said
                    counts[f"damage to {damaged}: named"] += 1
                shutil.rmtree(made, ignore_errors=True)
                shutil.rmtree(made.with_name(made.name + ".partial"), ignore_errors=True)
                aside.rename(made)
            rewrite(file, whole)
        assert verify(here / "run" / damaged) == []


@pytest.mark.parametrize("command", ["cache", *STAGES])
@pytest.mark.parametrize("name", ["manifest.json", "biggest"])
def test_force_makes_anew_what_is_damaged(server, place, rewrite, ids, counts, command, name):
    kind = STAGES.get(command, "activations")
    for damage, change in (DAMAGES if name == "biggest" else MORE).items():
        here = place()
        files = sorted((here / "run" / kind).rglob("*.*"), key=lambda path: path.stat().st_size)
        file = files[-1] if name == "biggest" else here / "run" / kind / name
        rewrite(file, change(file.read_bytes()))
        ended = server(here, command, "config.yaml", "--force").require_words()
        if damage == "zeros" and name == "manifest.json":  # nothing says that it was ours
            assert ended.code == 2
            assert "Move" in ended.said
        else:
            assert ended.code == 0, (damage, ended)
            assert Artifact.open(here / "run" / kind).id == ids[kind]
            assert verify(here / "run" / kind) == []
        counts[f"damage to {kind}: made anew with --force"] += 1


@pytest.mark.parametrize("share", [0.4, 0.8])
@pytest.mark.parametrize("command", ["cache", *STAGES])
def test_damage_to_unfinished_work(server, place, rewrite, drop_from, ids, counts, command, share):
    """Whatever is damaged in NAME.partial: it ends the same, or says what it was and does with --force."""
    kind = STAGES.get(command, "activations")
    here = place("counted")
    drop_from(here / "run", command)
    points = server.points(here, command, "config.yaml")
    half = place("half")
    drop_from(half / "run", command)
    assert server(half, command, "config.yaml", die=int(points * share)).code == -9
    partial = f"run/{kind}.partial"
    names = sorted(path.relative_to(half) for path in (half / partial).rglob("*") if path.is_file())
    names = names[:: -(-len(names) // 7)]
    for i, name in enumerate(names):
        damage = list(DAMAGES)[i % len(DAMAGES)]
        shutil.rmtree(half.with_name("tried"), ignore_errors=True)
        tried = Path(shutil.copytree(half, half.with_name("tried")))
        if not (tried / name).stat().st_size:
            continue
        rewrite(tried / name, DAMAGES[damage]((tried / name).read_bytes()))
        ended = server(tried, command, "config.yaml").require_words()
        if ended.code:
            assert str(name.name) in ended.said, (name, damage, ended)
            assert "--force" in ended.said, (name, damage, ended)
            ended = server(tried, command, "config.yaml", "--force").require_words()
        assert ended.code == 0, (name, damage, ended)
        assert Artifact.open(tried / "run" / kind).id == ids[kind], (name, damage)
        assert verify(tried / "run" / kind) == [], (name, damage)
        counts[f"damage to unfinished {kind}"] += 1
