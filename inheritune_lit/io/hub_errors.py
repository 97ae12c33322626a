"""What goes wrong with the hub, in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from inheritune_lit.errors import UserError, first_line


@contextmanager
def explain_hub_errors(
    name: str, gated: bool = False, flag: str = "--ref", kind: Literal["model", "dataset"] = "model"
) -> Iterator[None]:
    """Turn what the hub's client raises into one line.

    Args:
        name: ``org/name``.
        gated: it is known to ask for permission.
        flag: the option that named the repository.
        kind: what it is a repository of.

    Raises:
        UserError: with the cause and the remedy.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    unreachable: tuple[type[Exception], ...] = (*_transport_errors(), RuntimeError)
    page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{name}"
    try:
        yield
    except (GatedRepoError, RepositoryNotFoundError) as error:
        if gated or isinstance(error, GatedRepoError):
            raise UserError(
                f"{name} is gated: ask for access at {page}, then log in with `hf auth login` or set HF_TOKEN"
            ) from error
        raise UserError(f"no folder and no public hub repository is called {name!r}; check {flag}") from error
    except RevisionNotFoundError as error:
        raise UserError(f"{name} has no such revision (branch, tag or commit); check {flag}") from error
    except HFValidationError as error:
        raise UserError(f"{name!r} is not a hub repository, a known name or a folder; check {flag}") from error
    except unreachable as error:
        # huggingface_hub 1.x retries a refused connection with the client that it has just closed: a RuntimeError.
        if isinstance(error, RuntimeError) and "closed" not in str(error):
            raise
        raise UserError(
            f"cannot download {name} ({first_line(error)}); "
            "run the same command again to continue, or give a local folder"
        ) from error


def _transport_errors() -> tuple[type[Exception], ...]:
    # huggingface_hub >= 1 raises httpx's errors, older versions those of requests, which are OSErrors.
    try:
        from httpx import HTTPError
    except ImportError:
        return (OSError,)
    return (OSError, HTTPError)
