"""What an Inference Endpoint of the Hub runs; travels with a pushed model as `handler.py`."""

from typing import Any

from transformers import pipeline

MAX_BATCH_SIZE = 32


class EndpointHandler:
    """Answers requests with the results of the model's pipeline.

    It needs nothing but what lies beside it and the `requirements.txt` there.

    Args:
        path (`str`): Folder of the repository.

    Example:
        ```python
        handler = EndpointHandler("path/to/the/repository")
        handler({"inputs": ["CCO", "C1CC"]})  # one result per molecule, an error for the second
        ```
    """

    def __init__(self, path: str = "") -> None:
        # its types know the tasks of transformers only
        build_pipeline: Any = pipeline
        self.pipeline = build_pipeline(model=path, trust_remote_code=True)

    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]]:
        """Return one result per molecule of `data["inputs"]`, a SMILES or a list of them."""
        inputs = data["inputs"]
        molecules = [inputs] if isinstance(inputs, str) else list(inputs)
        results: list[dict[str, Any]] = self.pipeline(molecules, batch_size=MAX_BATCH_SIZE)
        return results
