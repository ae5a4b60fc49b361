"""Where metrics go besides metrics.jsonl: TensorBoard, Weights & Biases. Imported only when asked for."""

from pathlib import Path

from saetool import distributed
from saetool.artifacts import digest_json
from saetool.errors import RequestError
from saetool.training.settings import TrainingSettings


class TensorBoard:
    """Event files in NAME.tensorboard/ beside the artifact."""

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise RequestError(_missing("tensorboard", error, "training.tensorboard=false")) from None
        self.writer = SummaryWriter(str(folder))

    def log(self, numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """One W&B run a model, continued when training resumes."""

    def __init__(self, project: str, name: str, run_id: str, config: dict):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise RequestError(_missing("wandb", error, "training.wandb=null")) from None
        self.run = wandb.init(project=project, name=name, id=run_id, resume="allow", config=config)

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.run.log(numbers, step=step)

    def close(self) -> None:
        self.run.finish()


Tracker = TensorBoard | WeightsAndBiases


def open_trackers(settings: TrainingSettings, out: Path, config: dict) -> list[Tracker]:
    """Return the trackers that the settings ask for, on the main process; raise RequestError when one is missing."""
    trackers: list[Tracker] = []
    if distributed.is_main():
        if settings.tensorboard:
            trackers.append(TensorBoard(out.with_name(out.name + ".tensorboard")))
        if settings.wandb:
            run_id = digest_json({"out": str(out.resolve()), "config": config}).removeprefix("xxh3-128:")
            trackers.append(WeightsAndBiases(settings.wandb, f"{out.parent.name}/{out.name}", run_id, config))
    return trackers


def _missing(package: str, error: ImportError, way_out: str) -> str:
    way_in = "pip install 'saetool[track]'"
    return f"{package} is not installed ({error}): {way_in}, or set {way_out}. metrics.jsonl is always written."
