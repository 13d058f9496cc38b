"""What the command line says about an error that its user can do something about."""

from huggingface_hub.errors import HfHubHTTPError, HTTPError
from safetensors import SafetensorError

from rmat_hf.memory_errors import is_out_of_memory
from rmat_hf.write_errors import find_write_failure

_TOO_MANY_REQUESTS = 429

# Everything among which such errors are; the others of these types are bugs.
COMMAND_ERRORS = (ValueError, OSError, RuntimeError, MemoryError, HTTPError, SafetensorError)


def describe_error(error: BaseException) -> str | None:
    """Return one line on what went wrong and what to do; `None` for a bug.

    Args:
        error (`BaseException`): One of `COMMAND_ERRORS`.
    """
    if _is_rate_limit(error):
        return (
            f"{_join_lines(error)}. The Hub takes no more requests for now (HTTP 429, too many "
            "requests), and several attempts did not help. Wait a few minutes and repeat the "
            "command: what was downloaded is kept. Who is logged in may ask more often."
        )
    # an answer of the Hub, which says what is wrong, is an OSError too
    if isinstance(error, HTTPError) and not isinstance(error, OSError):
        reason = _join_lines(error) or type(error).__name__
        return (
            f"The connection to the Hub failed: {reason}. Repeat the command: what was downloaded "
            "is kept."
        )
    if is_out_of_memory(error):
        return (
            f"There is not enough memory: {_join_lines(error) or 'the allocation failed'}. Use a "
            "smaller --batch-size (rmat pretrain: --max-pairs), or leave out the largest molecules."
        )
    if isinstance(error, ValueError | OSError):
        return " ".join(str(error).split()) or type(error).__name__
    failure = find_write_failure(error)
    if failure is not None:
        return f"A file cannot be written: {failure}. Make room on the disk, or choose another."
    return None


def _is_rate_limit(error: BaseException | None) -> bool:
    """Tell whether the Hub's limit of requests is behind an error, whatever was made of it."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(error, HfHubHTTPError) and response is not None:
            return bool(response.status_code == _TOO_MANY_REQUESTS)
        error = error.__cause__ or error.__context__
    return False


def _join_lines(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")
