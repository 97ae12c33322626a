"""References from the hub."""

from pathlib import Path

from inheritune_lit.checkpoint.folder import TOKENIZER_FILES
from inheritune_lit.errors import UserError


def download_reference(repository: str, gated: bool = False) -> Path:
    """Fetch a repository's weights, configuration and tokenizer into the hub cache.

    Args:
        repository: ``org/name``.
        gated: it is known to ask for permission.

    Returns:
        The folder that holds them.

    Raises:
        UserError: no such repository, no permission, or no connection.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    patterns = [*TOKENIZER_FILES, "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"]
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except GatedRepoError as error:
        raise UserError(_access(repository)) from error
    except RepositoryNotFoundError as error:
        if gated:
            raise UserError(_access(repository)) from error
        raise UserError(f"no repository {repository!r} on the hub (or it is private); check --ref") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"cannot download {repository} ({reason}); give a local folder with --ref") from error


def _access(repository: str) -> str:
    return (
        f"{repository} is gated: ask for access at https://huggingface.co/{repository}, then log in with"
        f" `hf auth login` or set HF_TOKEN"
    )
