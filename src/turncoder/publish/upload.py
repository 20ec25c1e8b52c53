"""A model goes to the Hub: what is sent is listed, checked and described first, and is one commit.

What flows: run or model folder -> files by an explicit list -> licence, data, recipe, scores -> card, which the hub
looks at -> token and repository looked at -> large files uploaded, those that are there already left out -> one commit,
so that a reader never finds half a model.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, RepositoryNotFoundError

from turncoder.config.publishing import PublishConfig
from turncoder.errors import UserError, first_line
from turncoder.publish.bundle import Bundle, is_published
from turncoder.publish.card import digest_card
from turncoder.publish.publication import Publication, prepare

__all__ = ["check_access", "publish"]

logger = logging.getLogger("turncoder")

TOKENS = "https://huggingface.co/settings/tokens"


def publish(config: PublishConfig) -> str:
    """Send a model to the Hub; what is there already is not sent again.

    Parameters
    ----------
    config
        See `turncoder.config.publishing.PublishConfig`.

    Returns
    -------
    str
        The address of the repository.

    Raises
    ------
    UserError
        Whatever `turncoder.publish.publication.prepare` refuses; no token, or one that may not write there; a card that
        the hub refuses; a repository of another visibility, or whose card was edited; a connection that was cut: the
        same call goes on.
    """
    api = check_access(config)
    publication = prepare(config)
    with _told(config, api.endpoint):
        ModelCard(publication.card).validate()  # by the hub: a licence it does not know, say
        before, there = _open_repository(api, config)
        files = dict(publication.files)
        if not _replaces_card(api, publication, there):
            del files["README.md"]
        stale = sorted(name for name in there if is_published(name) and name not in publication.files)
        if stale:
            logger.warning("%s: %s of another model are removed in the same commit", config.to, ", ".join(stale))
        commit = api.create_commit(
            str(config.to),
            [
                *(
                    CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
                    for name, content in files.items()
                ),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=config.commit_message or _name_commit(publication.bundle),
            revision=config.revision,
        )
    if commit.oid == before:
        logger.info("%s has all of it already: nothing was sent", config.to)
    return f"{api.endpoint}/{config.to}" + (f"/tree/{config.revision}" if config.revision != "main" else "")


def check_access(config: PublishConfig) -> HfApi:
    """Refuse, with a UserError, where there is no token or one that may not write to the repository."""
    api = _open_api()
    with _told(config, api.endpoint):
        _check_token(api, config)
    return api


def _name_commit(bundle: Bundle) -> str:
    what = {"encoder": "Encoder", "adapter": "Adapter", "language": "Language model", "heads": "Heads"}[bundle.kind]
    return f"{what} ({bundle.record.get('stage') or 'turncoder'})"


def _open_api() -> HfApi:
    if huggingface_hub.is_offline_mode():
        raise UserError("HF_HUB_OFFLINE is set, so nothing can be published: unset it, or use --dry-run")
    token = huggingface_hub.get_token()
    if token is None:
        raise UserError(f"no token: log in with `hf auth login`, or set HF_TOKEN, to one that may write ({TOKENS})")
    return HfApi(token=token)


def _check_token(api: HfApi, config: PublishConfig) -> None:
    """Refuse a token that may not write, and a repository of somebody else."""
    told = api.whoami()
    role = ((told.get("auth") or {}).get("accessToken") or {}).get("role")
    if role == "read":
        raise UserError(f"the token of {told['name']} may only read: make one that may write, at {TOKENS}")
    owner = str(config.to).partition("/")[0]
    owners = [told["name"], *(one["name"] for one in told.get("orgs") or ())]
    if owner.lower() not in [one.lower() for one in owners]:
        raise UserError(f"to = {config.to!r}: {owner} is not you; you may write to {', '.join(owners)}")


def _open_repository(api: HfApi, config: PublishConfig) -> tuple[str | None, list[str]]:
    """Make the repository, or look at it: the last commit, and the files that it has."""
    name = str(config.to)
    try:
        info = api.model_info(name)
    except RepositoryNotFoundError:
        api.create_repo(name, private=not config.public, repo_type="model", exist_ok=False)
    else:
        if bool(info.private) == config.public:
            now, remedy = ("private", "drop --public") if info.private else ("public", "add --public")
            raise UserError(f"to = {name!r} is {now} already: {remedy}, or change it in the settings of its page")
    if config.revision != "main":
        api.create_branch(name, branch=config.revision, exist_ok=True)
    return api.model_info(name, revision=config.revision).sha, api.list_repo_files(name, revision=config.revision)


def _replaces_card(api: HfApi, publication: Publication, there: list[str]) -> bool:
    """Say whether our card takes the place of the one in the repository, which may have been edited there."""
    config = publication.config
    if "README.md" not in there or config.card == "replace":
        return True
    with tempfile.TemporaryDirectory() as folder:
        theirs, *records = [
            Path(
                hf_hub_download(
                    str(config.to),
                    name,
                    revision=config.revision,
                    local_dir=folder,
                    endpoint=api.endpoint,
                    token=api.token,
                )
            ).read_text(encoding="utf8")
            for name in ("README.md", "turncoder.json")
            if name in there
        ]
    ours = json.loads(records[0]).get("card") if records else None
    if theirs == publication.card or digest_card(theirs) == ours:
        return True
    if config.card == "keep":
        return False
    raise UserError(
        f"to = {config.to!r}: its README.md was edited there; --card keep leaves it, --card replace writes over it"
    )


@contextmanager
def _told(config: PublishConfig, endpoint: str) -> Iterator[None]:
    """Say in one line what the hub, or the way to it, refuses."""
    try:
        yield
    except LocalTokenNotFoundError:
        raise UserError("no token: log in with `hf auth login`, or set HF_TOKEN") from None
    except (HTTPError, RuntimeError, ValueError, OSError) as error:
        if isinstance(error, UserError):
            raise
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        if not isinstance(cause, HfHubHTTPError):
            if isinstance(cause, ValueError) and not isinstance(cause, OSError):
                raise UserError(f"{endpoint} refuses: {' '.join(str(cause).split())}") from error
            said = first_line(cause)  # type: ignore[arg-type]
            raise UserError(
                f"{endpoint} cannot be reached, or the connection was cut ({said}); the same command goes on"
            ) from error
        status, said = cause.response.status_code, cause.server_message or first_line(cause)
        if status == 401 and not isinstance(cause, RepositoryNotFoundError):
            raise UserError(f"the token is not valid at {endpoint}: make another at {TOKENS}") from error
        if status in (401, 403, 404):
            raise UserError(
                f"to = {config.to!r}: this token may not write there ({said}); give it the right at {TOKENS}, or name "
                "another repository"
            ) from error
        raise UserError(f"to = {config.to!r}: {endpoint} answered {status} ({said}); try again") from error
