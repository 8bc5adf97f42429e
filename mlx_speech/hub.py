"""The Hugging Face hub: fetch what a conversion needs of a repository, upload what it made.

huggingface_hub says where the hub, its cache and the token are (HF_ENDPOINT, HF_HOME, HF_TOKEN, HF_HUB_OFFLINE). It is
imported inside the functions, since that takes longer than importing this whole package.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mlx_speech.errors import (
    CorruptFile,
    HubError,
    OptionError,
    OutputError,
    SourceError,
    SourceNotFound,
    shorten,
)

logger = logging.getLogger(__name__)

# Weights, best spelling first; one is fetched. Failing these, a single file at the root that ends in one of LOOSE.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "weights.safetensors",
    "weights.npz",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.bin",
)
LOOSE = (".pt", ".pth", ".ckpt", ".jit")
FILE_SUFFIXES = (*LOOSE, ".bin", ".safetensors", ".npz", ".onnx", ".json", ".yaml")
DESCRIPTION = re.compile(
    r"(config|generation_config|preprocessor_config|processor_config|tokenizer|tokenizer_config|special_tokens_map"
    r"|added_tokens|normalizer|vocab|vocabulary)\.json|(merges|vocab|vocabulary)\.txt|[^/]+\.tiktoken"
    r"|config\.yaml|README\.md|LICEN[CS]E[^/]*"
)
PIPELINE_CONFIG = "config.yaml"
CONVERTED_CONFIG = "config.json"  # of a pipeline as this package writes it
PIPELINE = re.compile(
    r"(segmentation|embedding|plda)"
    r"/(pytorch_model\.bin|model\.safetensors|config\.yaml|config\.json|README\.md|[^/]+\.npz)"
)
ADAPTER = re.compile(r"adapter\.([\w-]+)\.(safetensors|bin)")
REVISION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)  # becomes a path in the cache
COMMIT = re.compile(r"[0-9a-f]{40,64}")
REPO_ID = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
MAX_REPO_ID = 96  # characters, by the hub's rules
MAX_FRONT_MATTER = 1 << 16  # characters; PyYAML takes seconds for a megabyte
HASH_BLOCK = 1 << 20  # bytes
RETRY_WAITS = (1, 2)  # seconds, before another try
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Snapshot:
    """A revision of a repository, in the hub's cache.

    path : the folder with the files
    repo : its name, owner/name
    revision : the full hash of the commit
    licence : as the repository's card names it ("mit", "cc-by-4.0"), None where it does not
    """

    path: Path
    repo: str | None = None
    revision: str | None = None
    licence: str | None = None


def is_repo_id(text: str) -> bool:
    """Whether `text` means a repository of the hub: "org/name" or "name" in the hub's alphabet, and not a file.

    Whatever exists on this machine is a path, and so is what has a model file's ending ("large.pt", "old/model.bin").
    """
    if not REPO_ID.fullmatch(text) or len(text) > MAX_REPO_ID:
        return False
    if "--" in text or ".." in text or text.endswith((".", "-", ".git")):
        return False
    return not text.lower().endswith(FILE_SUFFIXES) and not Path(text).exists()


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def fetch(repo: str, revision: str | None = None, *, language: str | None = None) -> Snapshot:
    """Download the configuration, the tokenizer and one spelling of the weights of `repo`, as far as not in the cache.

    revision : branch, tag or commit; None for the default branch
    language : also fetch this language's adapter (`adapter.<language>.safetensors` of the MMS models)

    A download that broke off goes on where it stopped. Without network, or while the hub is down, the copy in the
    cache serves if it is complete. Raises `SourceNotFound` (no such repository or revision), `HubError` (refused or
    unreachable), `SourceError` (no weights), `OptionError` (no such language), `OutputError` (cache not writable).
    """
    if revision is not None and (".." in revision or not REVISION.fullmatch(revision)):
        raise OptionError(f"{revision[:80]!r}: no revision of {repo}: give a branch, a tag or a commit")
    with _explained(repo, revision):
        from huggingface_hub import HfApi

        try:
            info = HfApi().model_info(repo, revision=revision)
        except (
            *_http_errors(),
            ConnectionError,
        ) as error:  # OfflineModeIsEnabled is a ConnectionError
            if not _is_outage(error):
                raise
            sha = _cached(repo, revision, language, _explain(error, repo, revision))
        except (KeyError, TypeError) as error:
            raise ValueError("an incomplete answer") from error
        else:
            sha = str(info.sha)
            if not COMMIT.fullmatch(sha):  # it becomes the name of a folder
                raise ValueError(f"{sha[:80]!r} for a commit")
            names = [file.rfilename for file in info.siblings or []]
            _collect(repo, names, language, partial(_download, repo, sha))
            _remember(repo, revision, sha)
        folder = _store(repo) / "snapshots" / sha
        return Snapshot(folder, repo, sha, readme_licence(folder / "README.md"))


def _remember(repo: str, revision: str | None, sha: str) -> None:
    """Note in the cache which commit a branch or tag is at, as huggingface_hub does."""
    ref = _store(repo) / "refs" / (revision or "main")
    with suppress(OSError):  # it is needed only without network; a cache that is read-only serves as well
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(sha, encoding="utf-8")


@contextmanager
def offline() -> Iterator[None]:
    """Meanwhile nothing in this process asks the hub, as with HF_HUB_OFFLINE: what is in the cache has to do."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def upload(folder: Path, repo: str) -> str:
    """Put all files of `folder`, hidden ones aside, into the model repository `repo` as one commit; returns its URL.

    The repository is created where it is missing; files it has already and `folder` has not stay. Raises
    `SourceNotFound` (nothing to upload), `HubError` (no permission, unreachable).
    """
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    if not names:
        raise SourceNotFound(f"{folder}: no such folder, or no files in it: nothing to upload to {repo}")
    with _explained(repo, writing=True):
        from huggingface_hub import CommitOperationAdd, HfApi

        api = HfApi()
        url = api.create_repo(repo, exist_ok=True)
        files = [CommitOperationAdd(name.as_posix(), str(folder / name)) for name in names]
        api.create_commit(url.repo_id, files, commit_message="Upload from mlx_speech")
    return str(url)


def _collect(repo: str, names: list[str], language: str | None, get: Callable[[str], Path]) -> None:
    """`get` those of the repository's files `names` that a conversion needs."""
    weights = _weights(repo, names, get)
    if language is not None:
        weights.append(_adapter(repo, names, language))
    needed = [name for name in names if DESCRIPTION.fullmatch(name)] + weights
    config = _config_of_pipeline(names)
    if config is not None:  # last: a copy that has it has everything, which matters without network
        needed.remove(config)
        needed.append(config)
    for name in needed:
        get(name)


def _weights(repo: str, names: list[str], get: Callable[[str], Path]) -> list[str]:
    """Those of the files `names` that are the weights: one spelling of a model's, and those of a pipeline's parts."""
    parts = [name for name in names if PIPELINE.fullmatch(name)] if _config_of_pipeline(names) else []
    for spelling in WEIGHTS:
        if spelling in names:
            shards = []
            if spelling.endswith(".index.json"):
                shards = _shards(repo, spelling, names, get(spelling))
            return [spelling, *shards, *parts]
    loose = [name for name in names if "/" not in name and name.endswith(LOOSE)]
    if len(loose) == 1:
        return [*loose, *parts]
    complete = any(name.endswith((".bin", ".npz", ".safetensors")) for name in parts)
    if loose and not complete:
        raise SourceError(f"{repo}: more than one file of weights ({shorten(loose)}): download one and give its path")
    if complete or PIPELINE_CONFIG in names:  # which may be a pipeline whose models lie in other repositories
        return parts
    seen = shorten(sorted(names)) or "nothing at all"
    raise SourceError(f"{repo}: no weights that can be converted, only {seen}: give another repository or revision")


def _config_of_pipeline(names: list[str]) -> str | None:
    """The file that says what a pipeline is made of; None where the files `names` are of none."""
    if PIPELINE_CONFIG in names:
        return PIPELINE_CONFIG
    is_converted = CONVERTED_CONFIG in names and not any(spelling in names for spelling in WEIGHTS)
    return CONVERTED_CONFIG if is_converted and any(PIPELINE.fullmatch(name) for name in names) else None


def _shards(repo: str, index: str, names: list[str], path: Path) -> list[str]:
    """The files that an index at `path` names, all of them among the repository's."""
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(weight_map.values()))
        wrong = [name for name in shards if ".." in name.split("/") or name.startswith("/") or name not in names]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFile(f"{repo}: {index} is no index of weights: try another revision") from error
    if wrong or not shards:
        raise CorruptFile(f"{repo}: {index} names files the repository does not hold: {shorten(wrong)!a}")
    return shards


def _adapter(repo: str, names: list[str], language: str) -> str:
    """The adapter of a language. Raises `OptionError` where there is none."""
    for name in (f"adapter.{language}.safetensors", f"adapter.{language}.bin"):
        if name in names:
            return name
    languages = set()
    for name in names:
        match = ADAPTER.fullmatch(name)
        if match is not None:
            languages.add(match[1])
    hint = "it has none: leave the language out"
    if languages:
        hint = f"choose one of the {len(languages)}: {shorten(sorted(languages), 12)}"
    raise OptionError(f"{repo} has no adapter for the language {language!r}: {hint}")


def _download(repo: str, sha: str, name: str) -> Path:
    """A file of a commit, in the cache. Tried again where the hub or the connection fails."""
    from huggingface_hub import hf_hub_download

    waits = list(RETRY_WAITS)
    while True:
        try:
            _complete_blob(repo, sha, name)
            return Path(hf_hub_download(repo, name, revision=sha))
        except (*_http_errors(), OSError) as error:
            if not waits or not _is_outage(error):
                raise
        time.sleep(waits.pop(0))


def _complete_blob(repo: str, sha: str, name: str) -> None:
    """Bring a large file into the cache, going on where an earlier call stopped.

    huggingface_hub resumes a transfer within a call, but deletes what it has when the call fails. So files outside
    git, whose entity tag is their SHA-256, come here first, to where huggingface_hub expects them; it then only links
    them. This is plain HTTP even where the repository offers Xet, which cannot be resumed.
    """
    from filelock import FileLock
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    store = _store(repo)
    url = hf_hub_url(repo, name, revision=sha)
    if (store / "snapshots" / sha / name).exists():
        return
    metadata = get_hf_file_metadata(url)
    etag = metadata.etag or ""
    size = metadata.size
    if not SHA256.fullmatch(etag):
        return
    blob = store / "blobs" / etag
    part = store / "blobs" / f"{etag}.incomplete"
    lock = Path(constants.HF_HUB_CACHE, ".locks", store.name, f"{etag}.lock")  # the one huggingface_hub takes
    blob.parent.mkdir(parents=True, exist_ok=True)
    lock.parent.mkdir(parents=True, exist_ok=True)
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    with FileLock(lock):
        if blob.exists():
            return
        with part.open("ab") as file:
            if size is not None and file.tell() > size:
                file.truncate(0)
            done = file.seek(0, 2)
            http_get(
                url,
                file,
                resume_size=done,
                headers=headers,
                expected_size=size,
                displayed_filename=name,
            )
        if sha256(part) != etag:
            part.unlink()
            raise CorruptFile(f"{repo}: {name} arrived damaged (its SHA-256 is not the hub's): fetch it again")
        part.replace(blob)


def _cached(repo: str, revision: str | None, language: str | None, reason: Exception) -> str:
    """The commit that the cache holds of `revision`, if it is all there; otherwise raises `reason`."""
    store = _store(repo)
    ref = store / "refs" / (revision or "main")
    sha = revision or "main"
    if ref.is_file():
        sha = ref.read_text(encoding="utf-8").strip()
    if not COMMIT.fullmatch(sha):
        raise reason
    folder = store / "snapshots" / sha
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    try:
        _collect(repo, names, language, folder.joinpath)
    except (SourceError, OptionError) as missing:
        raise reason from missing
    logger.warning("using the copy of %s in the cache (%s), since %s", repo, sha, reason)
    return sha


def is_cached(repo: str) -> bool:
    """Whether the hub's cache holds some revision of a repository, whole or not."""
    return (_store(repo) / "snapshots").is_dir()


def _store(repo: str) -> Path:
    """The repository's place in the cache: https://huggingface.co/docs/huggingface_hub/guides/manage-cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE, f"models--{repo.replace('/', '--')}")


def readme_licence(card: Path) -> str | None:
    """The licence that a model card states in its front matter; None where there is no such card, or none it states."""
    import yaml

    if not card.is_file():
        return None
    with card.open(encoding="utf-8", errors="replace") as file:
        front_matter, closing, _ = file.read(MAX_FRONT_MATTER).removeprefix("---").partition("\n---")
    if not closing:
        return None
    try:
        entries = yaml.safe_load(front_matter)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError):
        return None  # a card that cannot be read names no licence
    licence = entries.get("license") if isinstance(entries, dict) else None
    if isinstance(licence, list):
        return ", ".join(map(str, licence))
    return licence if isinstance(licence, str) else None


def _http_errors() -> tuple[type[Exception], ...]:
    """What requests raise: errors of httpx or httpx2, whichever this release of huggingface_hub uses."""
    from huggingface_hub.errors import HfHubHTTPError

    base = next(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")
    client = sys.modules[base.__module__]
    return client.HTTPError, client.InvalidURL


def _is_outage(error: Exception) -> bool:
    """Whether trying later could help: no connection, a broken one, or a hub that is down or overloaded."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if isinstance(error, HfHubHTTPError):
        return _is_overload(error.response.status_code)
    # An errno comes from this machine's disk; LocalEntryNotFoundError follows tries of huggingface_hub's own.
    return not isinstance(error, LocalEntryNotFoundError) and getattr(error, "errno", None) is None


def _is_overload(status: int) -> bool:
    """Whether a hub that answers so is down, or asked too often."""
    return status >= 500 or status == 429


@contextmanager
def _explained(repo: str, revision: str | None = None, writing: bool = False) -> Iterator[None]:
    """What huggingface_hub raises inside is one of this package's errors, naming `repo` and what to do.

    writing : to the repository, not reading from it
    """
    try:
        import huggingface_hub.hf_api
    except ValueError as error:  # it splits HF_ENDPOINT on import
        raise HubError(f"{repo} cannot be asked for ({error}): check HF_ENDPOINT") from error
    if huggingface_hub.constants.HF_HUB_CACHE.startswith("~"):  # it would make a folder of that name, here
        raise OutputError(f"{repo}: no home folder for the hub's cache: set HOME, or HF_HOME to a folder")
    try:
        yield
    except (OptionError, OutputError):
        raise  # ours, though a ValueError and an OSError
    except (*_http_errors(), OSError, ValueError) as error:
        raise _explain(error, repo, revision, writing) from error


def _explain(error: BaseException, repo: str, revision: str | None, writing: bool = False) -> Exception:
    """This package's error for one of huggingface_hub's."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.LocalEntryNotFoundError):
        error = error.__cause__ or error
    hub = constants.ENDPOINT
    reason = " ".join(str(error).split()) or type(error).__name__
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
    if isinstance(error, errors.HFValidationError):
        return SourceNotFound(f"{repo!r} is no name of a repository: write organisation/name")
    if isinstance(error, errors.OfflineModeIsEnabled):
        cause = "the hub is not to be asked (HF_HUB_OFFLINE, serve --offline)"
        return HubError(f"{repo} is not complete in the cache and {cause}: allow it, or give a folder")
    if writing and (status in (401, 403) or isinstance(error, errors.RepositoryNotFoundError)):
        return HubError(f"no permission to write to {repo}: log in (hf auth login) with a token that may write there")
    if isinstance(error, errors.GatedRepoError):
        how = "log in with hf auth login (or set HF_TOKEN)" if status == 401 else "use a token of that account"
        return HubError(f"{repo} is gated: accept its conditions at {hub}/{repo} and {how}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return SourceNotFound(f"no repository {repo} on the hub: check its name, or hf auth login if it is private")
    if isinstance(error, errors.RevisionNotFoundError):
        return SourceNotFound(f"{repo} has no revision {revision!r}: give one of its branches, tags or commits")
    if _is_overload(status):
        return HubError(f"{hub} answers {status} when asked for {repo}: try again later, or give a local folder")
    if status:
        return HubError(f"{hub} refuses access to {repo}: {reason}")
    if isinstance(error, OSError) and error.errno is not None:
        place = error.filename or constants.HF_HUB_CACHE
        return OutputError(f"{repo}: {place}: {error.strerror}: make room, or move the hub's cache with HF_HOME")
    if isinstance(error, _http_errors()):
        return HubError(f"{hub} cannot be reached for {repo} ({reason}): check the network, or give a local folder")
    return HubError(f"{hub} does not answer about {repo} as a hub does ({reason}): check HF_ENDPOINT")
