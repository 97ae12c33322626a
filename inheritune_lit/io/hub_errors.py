"""What goes wrong with the hub, in one line."""

import logging
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

    page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{name}"
    # The client's own lines about each attempt would come before ours.
    client = logging.getLogger("huggingface_hub")
    level = client.level
    client.setLevel(logging.CRITICAL)
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
    except Exception as error:
        if not is_unreachable(error):
            raise
        raise cannot_download(name, error) from error
    finally:
        client.setLevel(level)


def is_unreachable(error: BaseException) -> bool:
    """Whether the hub did not answer, or must not be asked."""
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError | HFValidationError | RepositoryNotFoundError | RevisionNotFoundError):
        return False
    # huggingface_hub 1.x retries a refused connection with the client that it has just closed: a RuntimeError.
    return isinstance(error, _transport_errors()) or (isinstance(error, RuntimeError) and "closed" in str(error))


def cannot_download(what: str, error: BaseException, instead: str = "") -> UserError:
    """The error for something of the hub that neither the hub nor its cache gives, with the true cause."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    chain = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    instead = f", and {instead}" if instead else ""
    if any(isinstance(one, OfflineModeIsEnabled) for one in chain):
        return UserError(f"cannot download {what} (HF_HUB_OFFLINE is set){instead}; unset it, or give a local folder")
    # The root of a refused connection says why; of an answer, the answer does.
    reason = first_line(chain[-1] if isinstance(chain[-1], OSError) and str(chain[-1]) else error)
    if isinstance(error, RuntimeError) and error is chain[-1]:
        reason = "the connection failed"
    return UserError(
        f"cannot download {what} ({reason}){instead}; run the same command again to continue, or give a local folder"
    )


def _transport_errors() -> tuple[type[Exception], ...]:
    # huggingface_hub >= 1 raises httpx's errors, older versions those of requests, which are OSErrors.
    try:
        from httpx import HTTPError
    except ImportError:
        return (OSError,)
    return (OSError, HTTPError)
