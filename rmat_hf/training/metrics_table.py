"""The metrics of a finetuning run as a table for the screen."""

from rmat_hf.training.finetuning import FinetuningResult


def describe_metrics(result: FinetuningResult) -> str:
    """Return a table of the metrics: one row per model and part, one column per metric.

    Args:
        result (`FinetuningResult`): Of a run, with its baselines.
    """
    models = {"R-MAT": result.metrics, **result.baselines}
    names = [name for name, value in result.metrics["test"].items() if not isinstance(value, dict)]
    lines = [f"{'':34}" + "".join(f"{name:>12}" for name in names)]
    for model, metrics in models.items():
        for part in ("train", "valid", "test"):
            cells = [metrics[part][name] for name in names]
            values = "".join(f"{'undefined' if c is None else f'{c:.4f}':>12}" for c in cells)
            lines.append(f"{model:28}{part:6}{values}")
    return "\n".join(lines)
