"""Sealed directories: manifest, digests, lineage, lock, atomic writes, resuming, verification.

Every stage of the pipeline makes one artifact through `run_stage`; everything that reads one starts at `Artifact.open`.
"""

from typing import TYPE_CHECKING

from saetool.lazy import face

if TYPE_CHECKING:
    from saetool.artifacts.artifact import Artifact as Artifact, artifact_of as artifact_of
    from saetool.artifacts.manifest import (
        digest_bytes as digest_bytes,
        digest_file as digest_file,
        digest_json as digest_json,
    )
    from saetool.artifacts.partial import Partial as Partial
    from saetool.artifacts.stage import Stage as Stage, run_stage as run_stage, run_stages as run_stages
    from saetool.artifacts.verification import verify as verify

__all__, __getattr__, __dir__ = face(
    __name__,
    {
        "artifact": ("Artifact", "artifact_of"),
        "manifest": ("digest_bytes", "digest_file", "digest_json"),
        "partial": ("Partial",),
        "stage": ("Stage", "run_stage", "run_stages"),
        "verification": ("verify",),
    },
)
