"""Turns what the Hub's client raises into what is wrong and what to do next."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from revsurgeon.errors import HubError, SourceError
from revsurgeon.sources.hub_answers import check_answers
from revsurgeon.sources.suggestions import close_names

_SEARCHES = 3
_FOUND = 50


@contextmanager
def hub_errors(repo_id: str, revision: str | None, token: str | bool | None, what: str) -> Iterator[None]:
    """Raise a HubError for anything that goes wrong between here and the Hub.

    Args:
        repo_id, revision, token: what was asked for, and as whom.
        what: the file that was asked for, for the message.
    """
    from huggingface_hub import errors

    check_answers()
    try:
        yield
    except errors.GatedRepoError as error:
        raise _gated(repo_id, error) from None
    except errors.RepositoryNotFoundError:
        raise _no_repository(repo_id, token) from None
    except errors.RevisionNotFoundError:
        raise _no_revision(repo_id, revision, token) from None
    except errors.LocalEntryNotFoundError as error:
        raise _not_cached(repo_id, what, error) from None
    except errors.OfflineModeIsEnabled as error:
        raise _not_cached(repo_id, what, error) from None
    except errors.LocalTokenNotFoundError:
        raise HubError("you are not logged in to the Hub.", hint="Log in: hf auth login") from None
    except errors.HFValidationError as error:
        raise SourceError(f"{repo_id!r} is not a possible Hub id.", where=str(error)) from None
    except errors.EntryNotFoundError:
        raise  # the caller knows what the absence of a file means
    except errors.HfHubHTTPError as error:
        raise _refused(repo_id, error) from None
    except (errors.HTTPError, errors.XetDownloadError, ConnectionError, TimeoutError) as error:
        raise _broken(repo_id, what, error) from None
    except errors.FileMetadataError as error:
        raise _broken(repo_id, what, error) from None
    except OSError as error:
        if error.errno is not None and error.errno not in (errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT):
            raise  # the disk: full, read-only, ...
        raise _broken(repo_id, what, error) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # the client read it, and stumbled
        raise _nonsense(repo_id, what, error) from None


def _gated(repo_id: str, error: Exception) -> HubError:
    from huggingface_hub import constants

    page = f"{constants.ENDPOINT}/{repo_id}"
    if _status(error) == 403:
        return HubError(
            f"{repo_id!r} is gated, and your account has no access to it.",
            where=page,
            hint="Ask for access on that page; once it is granted, run the command again.",
        )
    return HubError(
        f"{repo_id!r} is gated: it needs an account that was given access.",
        where=page,
        hint="Ask for access on that page, then log in as that account: hf auth login",
    )


def _no_repository(repo_id: str, token: str | bool | None) -> HubError:
    near = _near_names(repo_id, token)
    what = f"the Hub has no repository {repo_id!r} that you may see."
    private = "If it is private, log in with an account that has access: hf auth login"
    if near:
        return HubError(what, where="near names:\n" + "\n".join(f"  {name}" for name in near), hint=private)
    return HubError(what, hint=f"Check the name for a typing error. {private}")


def _no_revision(repo_id: str, revision: str | None, token: str | bool | None) -> HubError:
    from huggingface_hub import HfApi, errors

    try:
        refs = HfApi(token=token).list_repo_refs(repo_id)
        names = [ref.name for ref in [*refs.branches, *refs.tags]]
    except (errors.HTTPError, OSError):
        names = []
    return HubError(
        f"{repo_id!r} has no revision {revision!r}.",
        where=f"its branches and tags: {', '.join(names)}" if names else None,
        hint="Name a branch, a tag or a whole commit hash.",
    )


def _not_cached(repo_id: str, what: str, error: BaseException) -> HubError:
    from huggingface_hub import constants, errors

    if constants.HF_HUB_OFFLINE:
        return HubError(
            f"offline mode is on, and {what} of {repo_id!r} is not in the cache.",
            where=f"cache: {constants.HF_HUB_CACHE}",
            hint="Run the command once with network and without HF_HUB_OFFLINE; after that it works offline.",
        )
    cause = error.__cause__ or error
    if isinstance(cause, errors.HfHubHTTPError):
        return _refused(repo_id, cause)
    return _broken(repo_id, what, cause)


def _broken(repo_id: str, what: str, error: BaseException) -> HubError:
    from huggingface_hub import constants

    reason = next(iter(str(error).strip().splitlines()), "no reason was given")
    weights = what != "config.json" and not what.startswith("the ")  # the artifact, the repository
    alone = " To take the architecture alone, add --random-weights." if weights else ""
    return HubError(
        f"the Hub could not be reached, or the connection broke, while fetching {what} of {repo_id!r}.",
        where=f"{constants.ENDPOINT}\n{type(error).__name__}: {reason}",
        hint="Check the network, and HF_ENDPOINT if you set it, then run the command again; "
        f"nothing half fetched is used.{alone}",
    )


def _nonsense(repo_id: str, what: str, error: Exception) -> HubError:
    from huggingface_hub import constants

    reason = next(iter(str(error).strip().splitlines()), "")
    return HubError(
        f"the Hub's answer makes no sense, while fetching {what} of {repo_id!r}.",
        where=f"{constants.ENDPOINT}\n{type(error).__name__}: {reason[:300]}",
        hint="The page of a wireless network or of a proxy may have come in its place: open the address in a "
        "browser. Check HF_ENDPOINT if you set it.",
    )


def _refused(repo_id: str, error: Exception) -> HubError:
    status = _status(error)
    message = getattr(error, "server_message", None) or str(error).strip().splitlines()[0]
    where = f"{repo_id}\n{message}"
    if status == 401:
        return HubError(
            "the Hub does not accept your token.",
            where=where,
            hint="Log in again: hf auth login. An old token may also stand in the variable HF_TOKEN.",
        )
    if status == 403:
        return HubError(
            f"the Hub does not let you read {repo_id!r}.",
            where=where,
            hint="Give your token the permission to read this repository, in the Hub's settings.",
        )
    if status == 429:
        return HubError(
            "the Hub asks for a pause: too many requests.", where=where, hint="Try again in some minutes."
        )
    if status is not None and status >= 500:
        return HubError("the Hub has a failure of its own.", where=where, hint="Try again in some minutes.")
    return HubError(
        f"the Hub did not deliver {repo_id!r}.", where=where, hint="Check the name and the revision."
    )


def _status(error: Exception) -> int | None:
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None)


def _near_names(repo_id: str, token: str | bool | None) -> list[str]:
    """Return ids on the Hub that are like this one; empty where the Hub does not answer.

    The Hub finds names that contain the query, so a misspelt name is searched by its beginnings too.
    """
    from huggingface_hub import HfApi, errors

    name = repo_id.rpartition("/")[2]
    words = name.replace("_", "-").split("-")
    queries = dict.fromkeys([name, "-".join(words[:-1]), words[0]])
    found: list[str] = []
    for query in [query for query in queries if len(query) > 2][:_SEARCHES]:
        try:
            found += [model.id for model in HfApi(token=token).list_models(search=query, limit=_FOUND)]
        except (errors.HTTPError, OSError):
            break
        if close := close_names(repo_id, found):
            return close
    by_name = {model_id.rpartition("/")[2]: model_id for model_id in reversed(found)}
    return [by_name[close] for close in close_names(name, by_name)] or found[:5]
