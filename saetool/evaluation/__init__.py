"""Is it any good? Held-out numbers, baselines, probes, splicing into the model, interventions on latents."""

from typing import TYPE_CHECKING, Any

from saetool.evaluation.settings import EvaluationSettings

if TYPE_CHECKING:
    from saetool.evaluation.attribution import class_effects
    from saetool.evaluation.interventions import Delta, Scale, Value, intervene, splice
    from saetool.evaluation.pareto import sweep_summary
    from saetool.evaluation.stability import stability
    from saetool.evaluation.stage import evaluation_stage

_LAZY = {
    "Delta": "saetool.evaluation.interventions",
    "Scale": "saetool.evaluation.interventions",
    "Value": "saetool.evaluation.interventions",
    "intervene": "saetool.evaluation.interventions",
    "splice": "saetool.evaluation.interventions",
    "class_effects": "saetool.evaluation.attribution",
    "evaluation_stage": "saetool.evaluation.stage",
    "stability": "saetool.evaluation.stability",
    "sweep_summary": "saetool.evaluation.pareto",
}

__all__ = [
    "Delta",
    "EvaluationSettings",
    "Scale",
    "Value",
    "class_effects",
    "evaluation_stage",
    "intervene",
    "splice",
    "stability",
    "sweep_summary",
]


def __getattr__(name: str) -> Any:
    # torch and scikit-learn are imported at first use: `saetool info` and `--help` need neither.
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
