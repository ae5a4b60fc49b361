"""Sealed directories: manifest, digests, lineage, lock, atomic writes, resuming, verification.

Every stage of the pipeline makes one artifact through `run_stage`; everything that reads one starts at `Artifact.open`.
"""

from typing import TYPE_CHECKING

from saetool.lazy import lazy_names

if TYPE_CHECKING:
    from saetool.artifacts.artifact import Artifact, artifact_of
    from saetool.artifacts.manifest import digest_bytes, digest_file, digest_json
    from saetool.artifacts.partial import Partial
    from saetool.artifacts.stage import Stage, run_stage, run_stages
    from saetool.artifacts.verification import verify

__all__ = [
    "Artifact",
    "Partial",
    "Stage",
    "artifact_of",
    "digest_bytes",
    "digest_file",
    "digest_json",
    "run_stage",
    "run_stages",
    "verify",
]

__getattr__ = lazy_names(
    "saetool.artifacts",
    {
        "Artifact": "artifact",
        "Partial": "partial",
        "Stage": "stage",
        "artifact_of": "artifact",
        "digest_bytes": "manifest",
        "digest_file": "manifest",
        "digest_json": "manifest",
        "run_stage": "stage",
        "run_stages": "stage",
        "verify": "verification",
    },
)
