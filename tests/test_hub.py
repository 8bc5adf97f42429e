"""Fetching from and uploading to a hub on localhost, through the real huggingface_hub in a process of its own.

huggingface_hub reads HF_ENDPOINT, HF_HOME and the like when it is imported, so every call here starts a new Python.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hub_server import READER, STRANGER, WRITER, HubServer, Repo, closed_port, commit

from mlx_speech.hub import is_repo_id

ROOT = Path(__file__).parents[1]
NAME = "org/name"
Files = dict[str, bytes]
WEIGHTS = {"config.json": b"{}", "model.safetensors": b"weights"}
# Waits are shortened; everything else is as a user has it. Prints what was returned, or the error's type and message.
DRIVER = """
import json, resource, sys, time
sleep = time.sleep
time.sleep = lambda seconds: sleep(min(seconds, 0.01))
from pathlib import Path
from mlx_speech import hub
from mlx_speech.errors import MLXSpeechError
arguments = json.loads(sys.argv[1])
if size := arguments.pop("file_limit", None):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
folder = arguments.pop("folder", None)
results = []
for repo in arguments.pop("repos"):
    try:
        if folder is not None:
            results.append({"url": hub.upload(Path(folder), repo, **arguments)})
        else:
            found = hub.fetch(repo, **arguments)
            results.append({**vars(found), "path": str(found.path)})
    except MLXSpeechError as error:
        results.append({"error": type(error).__name__, "message": str(error)})
print(json.dumps(results))
"""


class Client:
    """Calls mlx_speech.hub in a new process, with a cache of this test's own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.stderr = ""

    def __call__(self, url: str, token: str = "", repo: str = NAME, **arguments: Any) -> dict:
        return self.each([repo], url, token, **arguments)[0]

    def each(
        self, repos: Iterable[str], url: str, token: str = "", offline: bool = False, **arguments: Any
    ) -> list[dict]:
        """The results for several repositories, from one process."""
        foreign = re.compile("HF_|HUGGING|.*_proxy", re.IGNORECASE)
        kept = {name: value for name, value in os.environ.items() if not foreign.match(name)}
        env = {**kept, "HF_ENDPOINT": url, "HF_HOME": str(self.home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        env |= {"HF_HUB_OFFLINE": "1" if offline else "0", "HF_TOKEN": token, "PYTHONPATH": path}
        command = [sys.executable, "-c", DRIVER, json.dumps({"repos": list(repos), **arguments})]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        self.stderr = done.stderr
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return Client(tmp_path / "home")


def contents(folder: str | Path) -> dict[str, bytes]:
    """Every file under `folder`, by its relative name."""
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def check_error(result: dict, kind: str, *mentions: str, repo: str = NAME) -> None:
    assert result.get("error") == kind, result
    assert "\n" not in result["message"]
    for text in (repo, *mentions):
        assert text in result["message"], result["message"]


def random_bytes(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def test_fetches_what_a_conversion_needs(client: Client) -> None:
    wanted = {
        **WEIGHTS,
        "preprocessor_config.json": b"1",
        "generation_config.json": b"2",
        "vocab.json": b"0",
        "merges.txt": b"3",
        "tokenizer.json": b"4",
        "multilingual.tiktoken": b"6",
        "vocabulary.txt": b"7",
        "LICENSE.txt": b"5",
        "README.md": b"---\nlicense: cc-by-4.0\n---\n",
    }
    left = ["tf_model.h5", "flax_model.msgpack", "pytorch_model.bin", "optimizer.pt", "onnx/model.onnx", "plot.png"]
    left += ["training/vocab.json", "adapter.fra.safetensors", ".gitattributes", "segmentation/pytorch_model.bin"]
    with HubServer({NAME: Repo({**wanted, **dict.fromkeys(left, b"x")})}) as hub:
        found = client(hub.url)
        assert contents(found["path"]) == wanted
        assert found["repo"] == NAME
        assert found["revision"] == commit(hub.repos[NAME].files)
        assert found["licence"] == "cc-by-4.0"
        assert hub.downloaded() == set(wanted)
        before = len(hub.log)
        assert client(hub.url) == found
        again = [request.path for request in hub.log[before:] if NAME in request.path]
        assert again == [f"/api/models/{NAME}"], "all of it is in the cache"


def test_prefers_one_spelling_of_the_weights(client: Client) -> None:
    cases = {  # the first of each is what should be chosen
        "org/a": ["model.safetensors", "weights.npz", "pytorch_model.bin"],
        "org/b": ["weights.safetensors", "weights.npz"],
        "org/c": ["weights.npz", "pytorch_model.bin", "best.pt"],
        "org/d": ["pytorch_model.bin", "best.pt"],
        "org/e": ["best.ckpt", "old/last.ckpt"],
        "org/f": ["silero_vad.jit", "silero_vad.onnx"],
        "org/g": ["pytorch_model.bin", "model.bin"],
    }
    repos = {name: Repo(dict.fromkeys(["config.json", *sorted(files)], b"x")) for name, files in cases.items()}
    with HubServer(repos) as hub:
        for found, files in zip(client.each(repos, hub.url), cases.values(), strict=True):
            assert set(contents(found["path"])) == {"config.json", files[0]}


def test_fetches_a_repository_of_faster_whisper(client: Client) -> None:
    wanted = ["model.bin", "config.json", "tokenizer.json", "vocabulary.json", "preprocessor_config.json", "README.md"]
    files = {name: name.encode() for name in [*wanted, ".gitattributes", "best.pt"]}
    with HubServer({NAME: Repo(files)}) as hub:
        assert contents(client(hub.url)["path"]) == {name: files[name] for name in wanted}


def test_fetches_the_parts_of_a_pipeline(client: Client) -> None:
    parts = ["segmentation/pytorch_model.bin", "embedding/pytorch_model.bin", "embedding/README.md", "plda/plda.npz"]
    wanted = ["config.yaml", "README.md", *parts, "plda/xvec_transform.npz"]
    files = {name: name.encode() for name in [*wanted, "diarization.gif", "embedding/model.onnx", "other/plda.npz"]}
    with HubServer({NAME: Repo(files)}) as hub:
        found = client(hub.url)
        assert contents(found["path"]) == {name: files[name] for name in wanted}
        assert found["licence"] is None


def converted(part: str) -> Files:
    """The files of a part as this package writes them."""
    return {f"{part}/{name}": f"{part} {name}".encode() for name in ("config.json", "model.safetensors", "README.md")}


def test_fetches_a_converted_pipeline(client: Client) -> None:
    """Which says what it is made of in config.json; a copy without that does not serve."""
    wanted = {**converted("segmentation"), **converted("embedding"), **converted("plda")}
    wanted |= {"config.json": b"{}", "README.md": b"---\nlicense: mit\n---\n"}
    with HubServer({NAME: Repo({**wanted, "plot.png": b"x", "other/model.safetensors": b"x"})}) as hub:
        found = client(hub.url)
        assert contents(found["path"]) == wanted
        assert found["licence"] == "mit"
    assert client(closed_port()) == found
    Path(found["path"], "config.json").unlink()
    check_error(client(closed_port()), "HubError", "cannot be reached")


def index(*shards: str) -> bytes:
    return json.dumps({"weight_map": {f"layer.{n}": shard for n, shard in enumerate(shards)}}).encode()


def test_fetches_the_shards_of_an_index(client: Client) -> None:
    shards = {"model-1-of-2.safetensors": b"one", "model-2-of-2.safetensors": b"two"}
    files = {"model.safetensors.index.json": index(*shards, *shards), **shards}
    with HubServer({NAME: Repo({**files, "model-1-of-1.safetensors": b"x", "pytorch_model.bin": b"x"})}) as hub:
        assert contents(client(hub.url)["path"]) == files


def test_refuses_shards_that_are_not_in_the_repository(client: Client) -> None:
    name = "pytorch_model.bin.index.json"
    listed = ["../../secret.bin", "/etc/passwd", "sub/../../secret.bin"]  # even where the hub itself says it has them
    shards = [*listed, "missing.bin", "line\nbreak", None, 3, ["x"], {}]
    repos = {
        f"org/{n}": Repo({name: json.dumps({"weight_map": {"a": "x.bin", "b": shard}}).encode(), "x.bin": b""})
        for n, shard in enumerate(shards)
    }
    for n, shard in enumerate(listed):
        repos[f"org/{n}"].files[shard] = b"x"
    with HubServer(repos) as hub:
        for repo, result in zip(repos, client.each(repos, hub.url), strict=True):
            check_error(result, "CorruptFile", name, repo=repo)
        assert hub.downloaded() == {name}


def test_refuses_a_broken_index(client: Client) -> None:
    name = "model.safetensors.index.json"
    texts = [b"", b"[]", b"{}", b'{"weight_map": {}}', b'{"weight_map": 1}', b"\xff\xfe"]
    repos = {f"org/{n}": Repo({name: text}) for n, text in enumerate(texts)}
    with HubServer(repos) as hub:
        for repo, result in zip(repos, client.each(repos, hub.url), strict=True):
            check_error(result, "CorruptFile", name, repo=repo)


def test_no_weights(client: Client) -> None:
    with HubServer({NAME: Repo({"config.json": b"{}", "model.onnx": b""}), "org/empty": Repo({})}) as hub:
        check_error(client(hub.url), "SourceError", "no weights", "model.onnx")
        check_error(client(hub.url, repo="org/empty"), "SourceError", "no weights", repo="org/empty")
        assert not hub.downloaded()


def test_several_unnamed_weights_are_not_guessed_among(client: Client) -> None:
    with HubServer({NAME: Repo({"a.pt": b"", "b.pth": b""})}) as hub:
        check_error(client(hub.url), "SourceError", "a.pt", "b.pth")


def test_language_adapters(client: Client) -> None:
    adapters = {f"adapter.{code}.{end}": code.encode() for code in ("deu", "fra") for end in ("bin", "safetensors")}
    adapters["adapter.uig-script_arabic.bin"] = b"uig"
    with HubServer({NAME: Repo({**WEIGHTS, **adapters}), "org/other": Repo(WEIGHTS)}) as hub:
        assert set(contents(client(hub.url)["path"])) == set(WEIGHTS)
        check_error(client(hub.url, language="xyz"), "OptionError", "xyz", "deu, fra, uig-script_arabic")
        check_error(client(hub.url, repo="org/other", language="deu"), "OptionError", "none", repo="org/other")
        found = client(hub.url, language="deu")
        assert set(contents(found["path"])) == {*WEIGHTS, "adapter.deu.safetensors"}
        found = client(hub.url, language="uig-script_arabic")
        assert "adapter.uig-script_arabic.bin" in contents(found["path"])


def test_a_given_revision(client: Client) -> None:
    old = {**WEIGHTS, "model.safetensors": b"older"}
    with HubServer({NAME: Repo(WEIGHTS, branches={"v1": old, "refs/pr/2": {**old, "vocab.json": b"{}"}})}) as hub:
        for revision, files in (("v1", old), (commit(WEIGHTS), WEIGHTS), ("refs/pr/2", {**old, "vocab.json": b"{}"})):
            found = client(hub.url, revision=revision)
            assert found["revision"] == commit(files)
            assert contents(found["path"]) == files
    for revision, files in (("v1", old), (commit(WEIGHTS), WEIGHTS)):
        assert contents(client(closed_port(), revision=revision)["path"]) == files
    check_error(client(closed_port()), "HubError", "cannot be reached")  # main itself was never asked for


def test_missing_revision(client: Client) -> None:
    with HubServer({NAME: Repo(WEIGHTS)}) as hub:
        check_error(client(hub.url, revision="nowhere"), "SourceNotFound", "nowhere")


@pytest.mark.parametrize("token", ["", READER])
def test_missing_repository(client: Client, token: str) -> None:
    with HubServer({}) as hub:
        check_error(client(hub.url, token), "SourceNotFound", "hf auth login")


def test_private_repository(client: Client) -> None:
    with HubServer({NAME: Repo(WEIGHTS, private=True)}) as hub:
        check_error(client(hub.url), "SourceNotFound", "hf auth login")
        assert contents(client(hub.url, READER)["path"]) == WEIGHTS


def test_gated_repository(client: Client) -> None:
    with HubServer({NAME: Repo(WEIGHTS, gated=True)}) as hub:
        check_error(client(hub.url), "HubError", "gated", f"{hub.url}/{NAME}", "HF_TOKEN")
        refused = client(hub.url, STRANGER)
        check_error(refused, "HubError", "gated", f"{hub.url}/{NAME}")
        assert "HF_TOKEN" not in refused["message"], "there is a token: what it lacks is access"
        assert contents(client(hub.url, READER)["path"]) == WEIGHTS
        assert any(request.headers.get("authorization") == f"Bearer {READER}" for request in hub.log)
        elsewhere = [request for request in hub.log if request.path.startswith("/cdn/")]
        assert elsewhere
        assert not any("authorization" in request.headers for request in elsewhere), "the token left the hub"


def test_a_broken_off_download_goes_on_within_one_call(client: Client) -> None:
    files = {"config.json": b"{}", "model.safetensors": random_bytes(25 << 20)}
    with HubServer({NAME: Repo(files)}) as hub:
        hub.cut["model.safetensors"] = [12 << 20, None]
        assert contents(client(hub.url)["path"]) == files
        first, second = [r for r in hub.downloads("model.safetensors") if r.path.startswith("/cdn/")]
        assert "range" not in first.headers
        assert second.headers["range"] == f"bytes={10 << 20}-"  # huggingface_hub writes 10 MiB at a time


def test_a_broken_off_download_goes_on_in_the_next_call(client: Client) -> None:
    files = {"config.json": b"{}", "model.safetensors": random_bytes(25 << 20)}
    with HubServer({NAME: Repo(files)}) as hub:
        hub.cut["model.safetensors"] = [12 << 20, 0]
        check_error(client(hub.url), "HubError", "cannot be reached")
        tried = len(hub.downloads("model.safetensors"))
        del hub.cut["model.safetensors"]
        assert contents(client(hub.url)["path"]) == files
        later = hub.downloads("model.safetensors")[tried:]
        assert {request.headers.get("range") for request in later} == {f"bytes={10 << 20}-"}
        assert not list(client.home.rglob("*.incomplete"))


@pytest.mark.parametrize("left", [b"\0" * 4, b"\0" * 50])
def test_what_was_left_by_an_earlier_call_is_not_trusted(client: Client, left: bytes) -> None:
    with HubServer({NAME: Repo({"model.safetensors": b"the weights"})}) as hub:
        hub.cut["model.safetensors"] = [0]
        check_error(client(hub.url), "HubError")
        del hub.cut["model.safetensors"]
        [partial] = client.home.rglob("*.incomplete")
        partial.write_bytes(left)
        if len(left) < len(b"the weights"):
            check_error(client(hub.url), "CorruptFile", "model.safetensors", "SHA-256")
        assert contents(client(hub.url)["path"]) == {"model.safetensors": b"the weights"}


def test_no_network(client: Client) -> None:
    url = closed_port()
    check_error(client(url), "HubError", url, "local folder")


@pytest.mark.parametrize("down", ["offline", "closed", 503, 429])
def test_the_cache_serves_while_the_hub_does_not(client: Client, down: str | int) -> None:
    adapter = {"adapter.deu.safetensors": b"deu"}
    with HubServer({NAME: Repo({**WEIGHTS, **adapter}, licence="mit"), "org/other": Repo(WEIGHTS)}) as hub:
        found = client(hub.url)
        if isinstance(down, int):
            hub.fail["/api/models"] = down
        url = closed_port() if down == "closed" else hub.url
        before = len(hub.log)
        assert client(url, offline=down == "offline") == found
        assert found["licence"] == "mit"
        assert len([line for line in client.stderr.splitlines() if "in the cache" in line]) == 1
        says = "HF_HUB_OFFLINE" if down == "offline" else str(down) if isinstance(down, int) else "cannot be reached"
        check_error(client(url, offline=down == "offline", repo="org/other"), "HubError", says, repo="org/other")
        check_error(client(url, offline=down == "offline", language="deu"), "HubError", says)
        check_error(client(url, offline=down == "offline", revision="v2"), "HubError", says)
        assert down == 503 or down == 429 or len(hub.log) == before


def test_an_incomplete_copy_does_not_serve(client: Client) -> None:
    shards = {"model-1-of-2.safetensors": b"one", "model-2-of-2.safetensors": b"two"}
    parts = {"segmentation/pytorch_model.bin": b"x", "embedding/pytorch_model.bin": b"y", "config.yaml": b""}
    repos = {
        NAME: Repo({**WEIGHTS}),
        "org/shards": Repo({"model.safetensors.index.json": index(*shards), **shards}),
        "org/pipeline": Repo(parts),
        "org/converted": Repo({"config.json": b"{}", **converted("segmentation"), **converted("embedding")}),
    }
    with HubServer(repos) as hub:
        hub.fail = dict.fromkeys(["model.safetensors", "model-2-of-2.safetensors", "embedding/"], 403)
        del hub.fail["model.safetensors"]
        hub.fail["name/resolve/" + commit(WEIGHTS) + "/model.safetensors"] = 403
        for repo in repos:
            check_error(client(hub.url, repo=repo), "HubError", "refuses", repo=repo)
            for revision in (None, commit(repos[repo].files)):
                found = client(closed_port(), repo=repo, revision=revision)
                check_error(found, "HubError", "cannot be reached", repo=repo)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_is_down(client: Client, status: int) -> None:
    with HubServer({NAME: Repo(WEIGHTS)}) as hub:
        hub.fail["/api/models"] = status
        check_error(client(hub.url), "HubError", str(status), "later")
        del hub.fail["/api/models"]
        hub.fail["/resolve/"] = status
        check_error(client(hub.url), "HubError", str(status), "later")


def test_what_answers_is_no_hub(client: Client) -> None:
    with HubServer({NAME: Repo(WEIGHTS)}) as hub:
        hub.fail["/api/models"] = 200
        check_error(client(hub.url), "HubError", "HF_ENDPOINT")
    for url in ("nonsense", "http://localhost:port", "ftp://localhost"):
        check_error(client(url), "HubError")


def test_a_cache_that_cannot_be_written(client: Client, tmp_path: Path) -> None:
    with HubServer({NAME: Repo({"model.safetensors": random_bytes(1 << 20)})}) as hub:
        check_error(client(hub.url, file_limit=100_000), "OutputError", "HF_HOME")
        blocked = tmp_path / "file"
        blocked.write_text("")
        client.home = blocked
        check_error(client(hub.url), "OutputError", "HF_HOME", str(blocked))


def test_impossible_names(client: Client) -> None:
    names = ["a/b/c", "with space", "../x", ""]
    with HubServer({}) as hub:
        for name, result in zip(names, client.each(names, hub.url), strict=True):
            check_error(result, "SourceNotFound", repr(name), repo=name)
        assert not hub.log


def test_licences(client: Client) -> None:
    cards = {b"": None, b"# Model": None, b"---\nlicense: mit\n---\n": "mit", b"---\r\nlicense: MIT\r\n---\r\n": "MIT"}
    cards |= {b"---\nlicense: [mit, gpl-3.0]\n---\n": "mit, gpl-3.0", b"---\ntags: [x]\n---\n": None}
    cards |= {b"---\nlicense: {\n---\n": None, b"---\n- license\n---\n": None, b"\xff": None}
    repos = {f"org/{n}": Repo({**WEIGHTS, "README.md": card}) for n, card in enumerate(cards)}
    with HubServer(repos) as hub:
        assert [found["licence"] for found in client.each(repos, hub.url)] == list(cards.values())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "segmentation").mkdir(parents=True)
    (folder / ".cache").mkdir()
    for name in ("README.md", "model.safetensors", "segmentation/config.json", ".part", ".cache/x", "empty.txt"):
        (folder / name).write_bytes(b"" if name == "empty.txt" else random_bytes(100 + len(name)))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Model\n")
    return folder


@pytest.mark.parametrize("repo", ["org/new", "org/old", "new"])
def test_upload_sends_the_files_of_the_folder(client: Client, model: Path, repo: str) -> None:
    with HubServer({"org/old": Repo({"older.txt": b""})}) as hub:
        full = repo if "/" in repo else f"me/{repo}"
        assert client(hub.url, WRITER, repo=repo, folder=str(model)) == {"url": f"{hub.url}/{full}"}
        [sent] = hub.commits
        assert sent == {name: data for name, data in contents(model).items() if not name.startswith(".")}
        found = client(hub.url, repo=full)
        assert contents(found["path"])["model.safetensors"] == (model / "model.safetensors").read_bytes()


@pytest.mark.parametrize("token", ["", READER])
@pytest.mark.parametrize("repo", ["org/new", "org/old"])
def test_upload_without_permission(client: Client, model: Path, token: str, repo: str) -> None:
    with HubServer({"org/old": Repo({"older.txt": b""})}) as hub:
        check_error(client(hub.url, token, repo=repo, folder=str(model)), "HubError", "permission", repo=repo)
        assert not hub.commits
        assert set(hub.repos) == {"org/old"}


def test_upload_that_cannot_be(client: Client, model: Path, tmp_path: Path) -> None:
    with HubServer({}) as hub:
        check_error(client(hub.url, WRITER, folder=str(tmp_path / "none")), "SourceNotFound", "none")
        hub.fail["/commit/"] = 503
        check_error(client(hub.url, WRITER, folder=str(model)), "HubError", "503")
    check_error(client(closed_port(), WRITER, folder=str(model)), "HubError", "cannot be reached")


@pytest.mark.parametrize(
    "text", ["facebook/wav2vec2-base-960h", "gpt2", "a/b", "org_1/x.y-z", "openai/whisper-large-v3"]
)
def test_repo_ids(text: str) -> None:
    assert is_repo_id(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", ".", "./x", "../x", "/x", "a/b/c", "a/", "a//b", "~/x", "a\\b", "a b", "-x", ".x/y", "a--b/c", "a..b"),
        *("a/b.git", "x/y\n", "é/x", "x" * 97, "large.pt", "old/model.bin", "x.JIT"),
    ],
)
def test_no_repo_ids(text: str) -> None:
    assert not is_repo_id(text)


def test_what_exists_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert not is_repo_id("org/name")
    assert is_repo_id("org/other")


def test_the_hub_is_imported_when_needed() -> None:
    code = "import sys, mlx_speech.hub; print([name for name in sys.modules if name.startswith('huggingface_hub')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"\[\]\s*", done.stdout)
