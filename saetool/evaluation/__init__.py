"""Is it any good? Held-out numbers, baselines, probes, splicing into the model, interventions on latents."""

from typing import TYPE_CHECKING

from saetool.lazy import face

if TYPE_CHECKING:
    from saetool.evaluation.attribution import class_effects as class_effects
    from saetool.evaluation.interventions import (
        Delta as Delta,
        Scale as Scale,
        Value as Value,
        intervene as intervene,
        splice as splice,
    )
    from saetool.evaluation.matching import stability as stability
    from saetool.evaluation.pareto import (
        sweep_markdown as sweep_markdown,
        sweep_stage as sweep_stage,
        sweep_summary as sweep_summary,
    )
    from saetool.evaluation.settings import EvaluationSettings as EvaluationSettings
    from saetool.evaluation.stage import evaluate as evaluate, evaluation_stage as evaluation_stage

__all__, __getattr__, __dir__ = face(
    __name__,
    {
        "attribution": ("class_effects",),
        "interventions": ("Delta", "Scale", "Value", "intervene", "splice"),
        "matching": ("stability",),
        "pareto": ("sweep_markdown", "sweep_stage", "sweep_summary"),
        "settings": ("EvaluationSettings",),
        "stage": ("evaluate", "evaluation_stage"),
    },
)
