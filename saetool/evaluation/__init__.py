"""Is it any good? Held-out numbers, baselines, probes, splicing into the model, interventions on latents."""

from typing import TYPE_CHECKING

from saetool.lazy import lazy_names

if TYPE_CHECKING:
    from saetool.evaluation.attribution import class_effects
    from saetool.evaluation.interventions import Delta, Scale, Value, intervene, splice
    from saetool.evaluation.matching import stability
    from saetool.evaluation.pareto import sweep_markdown, sweep_stage, sweep_summary
    from saetool.evaluation.settings import EvaluationSettings
    from saetool.evaluation.stage import evaluate, evaluation_stage

_HOMES = {
    "Delta": "interventions",
    "EvaluationSettings": "settings",
    "Scale": "interventions",
    "Value": "interventions",
    "class_effects": "attribution",
    "evaluate": "stage",
    "evaluation_stage": "stage",
    "intervene": "interventions",
    "splice": "interventions",
    "stability": "matching",
    "sweep_markdown": "pareto",
    "sweep_stage": "pareto",
    "sweep_summary": "pareto",
}

__all__ = [
    "Delta",
    "EvaluationSettings",
    "Scale",
    "Value",
    "class_effects",
    "evaluate",
    "evaluation_stage",
    "intervene",
    "splice",
    "stability",
    "sweep_markdown",
    "sweep_stage",
    "sweep_summary",
]

__getattr__ = lazy_names(__name__, _HOMES)
