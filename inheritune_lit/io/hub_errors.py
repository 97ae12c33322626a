"""What goes wrong with the hub, in one line."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from inheritune_lit.errors import UserError, first_line


@contextmanager
def explain_hub_errors(name: str, gated: bool = False, is_dataset: bool = False) -> Iterator[None]:
    """Turn what the hub's client raises about ``org/name``, known to be ``gated`` or not, into a ``UserError``."""
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    flag, page = ("--source", f"datasets/{name}") if is_dataset else ("--ref", name)
    client = logging.getLogger("huggingface_hub")
    level = client.level
    client.setLevel(logging.CRITICAL)  # its own lines about each attempt would come before ours
    try:
        yield
    except (GatedRepoError, RepositoryNotFoundError) as error:
        if gated or isinstance(error, GatedRepoError):
            access = f"{name} is gated: ask for access at https://huggingface.co/{page}"
            raise UserError(f"{access}, then log in with `hf auth login` or set HF_TOKEN") from error
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
    # huggingface_hub 1.x retries a refused connection with the client that it has just closed.
    if isinstance(error, RuntimeError) and "closed" in str(error):
        return True
    # It raises httpx's HTTPErrors, and before 1.0 those of requests, which are OSErrors.
    return isinstance(error, OSError) or any(kind.__name__ == "HTTPError" for kind in type(error).__mro__)


def cannot_download(what: str, error: BaseException, instead: str = "") -> UserError:
    """The error for something of the hub that neither the hub nor its cache gives, with the true cause."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    chain = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    if any(isinstance(one, OfflineModeIsEnabled) for one in chain):
        reason, remedy = "HF_HUB_OFFLINE is set", "unset it"
    else:
        # The root of a refused connection says why; of an answer, the answer does.
        reason = first_line(chain[-1] if isinstance(chain[-1], OSError) and str(chain[-1]) else error)
        if isinstance(error, RuntimeError) and error is chain[-1]:
            reason = "the connection failed"
        remedy = "run the same command again to continue"
    instead = f", and {instead}" if instead else ""
    return UserError(f"cannot download {what} ({reason}){instead}; {remedy}, or give a local folder")
