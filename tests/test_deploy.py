"""Files that start the server, and pages that say how: every command in them is one that the server takes."""

from __future__ import annotations

import ast
import json
import plistlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlx_speech.cli import build_parser, main, serve
from mlx_speech.server.settings import Settings

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
GUIDE = ROOT / "docs" / "guides" / "serve.md"
PAGES = (GUIDE, ROOT / "README.md")
SERVER = ROOT / "mlx_speech" / "server"
SECONDS_TO_CLOSE = 5  # behind the grace of requests


def parsed(words: list[str]) -> dict[str, Any]:
    """What the command line makes of a command, without its first word. Ends the test where it takes none."""
    assert words[0] == "serve"
    return vars(build_parser().parse_args(words))


def flags_of_serve() -> set[str]:
    parser = build_parser().parse_args(["serve"]).parser
    return {flag for action in parser._actions for flag in action.option_strings}


# --- files ------------------------------------------------------------------------------------------------------------


def unit() -> dict[str, list[tuple[str, str]]]:
    """Section → its settings, some of which stand there more than once."""
    sections: dict[str, list[tuple[str, str]]] = {}
    section = ""
    for line in (DEPLOY / "mlx_speech.service").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            section = line.strip("[]")
            sections[section] = []
            continue
        name, equals, value = line.partition("=")
        assert equals and name.isidentifier(), line
        sections[section].append((name, value))
    return sections


def test_the_unit_of_systemd() -> None:
    sections = unit()
    assert set(sections) == {"Unit", "Service", "Install"}
    service = dict(sections["Service"])
    program, *command = shlex.split(service["ExecStart"])
    assert program.startswith("/") and program.endswith("/mlx_speech")
    options = parsed(command)
    assert Settings(host=options["host"]).host  # an address that needs no more than there is
    # what is written lies in folders that systemd makes, the key where it puts credentials
    assert options["data_dir"].startswith(f"%S/{service['StateDirectory']}/")
    credential = service["LoadCredential"].partition(":")[0]
    assert options["api_key_file"] == f"%d/{credential}"
    assert f"MLX_SPEECH_CACHE=%C/{service['CacheDirectory']}" in service["Environment"].split()
    assert service["DynamicUser"] == "yes" and service["ProtectSystem"] == "strict"
    assert int(service["TimeoutStopSec"]) >= Settings().grace + SECONDS_TO_CLOSE


def test_the_agent_of_launchd() -> None:
    agent = plistlib.loads((DEPLOY / "org.mlx-speech.serve.plist").read_bytes())
    program, *command = agent["ProgramArguments"]
    assert program.endswith("/mlx_speech") and parsed(command)["api_key_file"]
    assert f"{agent['Label']}.plist" == "org.mlx-speech.serve.plist"
    assert agent["Umask"] == 0o077
    assert agent["ExitTimeOut"] >= Settings().grace + SECONDS_TO_CLOSE


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile: name, and what stands behind it, with lines joined."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line]
    return [(name, rest) for name, rest in lines]


def container_command(*arguments: str) -> dict[str, Any]:
    """What the image runs with these arguments, or with its own."""
    last = dict(instructions())
    program, *command = json.loads(last["ENTRYPOINT"])
    assert program == "mlx_speech"
    return parsed([*command, *(arguments or json.loads(last["CMD"]))])


def test_the_image() -> None:
    last = dict(instructions())
    assert container_command()["host"] == "0.0.0.0"
    assert last["USER"].isdecimal() and last["USER"] != "0"
    port = container_command()["port"]
    assert last["EXPOSE"] == str(port) and f"127.0.0.1:{port}/ready" in last["HEALTHCHECK"]
    script = json.loads(last["HEALTHCHECK"].partition("CMD ")[2])[-1]
    compile(script, "HEALTHCHECK", "exec")
    volumes = json.loads(last["VOLUME"])
    folders = dict(word.split("=", 1) for word in last["ENV"].split())
    for name in ("MLX_SPEECH_CACHE", "MLX_SPEECH_DATA", "HF_HOME"):
        assert any(Path(folders[name]).is_relative_to(volume) for volume in volumes)
    assert Path(container_command()["data_dir"]).is_relative_to(folders["MLX_SPEECH_DATA"])


def test_the_image_has_extras_that_there_are() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = pyproject.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    extras = set(re.findall(r"^(\w+) = \[", section, re.MULTILINE))
    (default,) = [rest.partition("=")[2] for name, rest in instructions() if name == "ARG" and "EXTRA" in rest]
    installed = " ".join(rest for name, rest in instructions() if name == "RUN")
    assert '"/source[server,${EXTRA}]"' in installed
    offered = re.findall(r"EXTRA[=:] ?(\w+)|`(cuda\d+)`", texts_of_containers())
    chosen = {default, "server", *("".join(found) for found in offered)}
    assert {"cpu", "cuda12", "cuda13"} <= chosen <= extras


def texts_of_containers() -> str:
    files = (DEPLOY / "Dockerfile", DEPLOY / "compose.yaml", GUIDE)
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def test_what_the_image_is_built_of() -> None:
    """No more of the repository than the build needs, and no less."""
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in lines
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert kept == {"LICENSE", "README.md", "mlx_speech", "pyproject.toml"}
    assert all((ROOT / name).exists() for name in kept)


def test_the_composition() -> None:
    content = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    (service,) = content["services"].values()
    build = service["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    options = container_command(*service["command"])
    (secret,) = service["secrets"]
    assert secret in content["secrets"] and options["api_key_file"] == f"/run/secrets/{secret}"
    mounted = dict(volume.split(":") for volume in service["volumes"])
    assert set(mounted) == set(content["volumes"])
    assert set(mounted.values()) == set(json.loads(dict(instructions())["VOLUME"]))
    assert service["ports"] == [f"127.0.0.1:{options['port']}:{options['port']}"]
    assert int(service["stop_grace_period"].rstrip("s")) >= Settings().grace + SECONDS_TO_CLOSE


# --- pages ------------------------------------------------------------------------------------------------------------


def commands(page: Path) -> list[str]:
    """The lines of its blocks of code that call `mlx_speech serve`, joined where they are broken."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    shell = "".join(block for language, block in blocks if not language)
    lines = shell.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("mlx_speech serve ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_pages_are_taken(page: Path) -> None:
    lines = commands(page)
    assert lines
    for line in lines:
        parsed(shlex.split(line, comments=True)[1:])


def test_flags_in_the_text_of_the_guide_exist() -> None:
    text = re.sub(r"^```.*?^```", "", GUIDE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    spans = [
        span for span in re.findall(r"`([^`]+)`", text) if not span.startswith(("mlx_speech transcribe", "uvicorn"))
    ]
    flags = {flag for span in spans for flag in re.findall(r"(?<!\S)--[a-z-]+", span)} - {"--build-arg"}
    assert len(flags) > 10 and flags <= flags_of_serve()


def test_answers_of_the_guide_are_given() -> None:
    """Status and code of its table of limits, as they stand in the server's source."""
    given: set[tuple[int, str]] = set()
    for file in SERVER.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "ApiError" and len(node.args) >= 2:
                status, code = node.args[:2]
                if isinstance(status, ast.Constant) and isinstance(code, ast.Constant):
                    given.add((status.value, code.value))
    section = GUIDE.read_text(encoding="utf-8").partition("## Limits")[2].partition("\n## ")[0]
    told = {(int(status), code) for status, code in re.findall(r"(\d{3}) `([a-z_]+)`", section)}
    assert len(told) > 15
    assert told <= given


def test_a_comment_is_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLX_SPEECH_API_KEY", raising=False)
    keys = tmp_path / "keys"
    keys.write_text("# of the studio\n  # and a note\n first \n\nsecond\n", encoding="utf-8")
    assert serve._keys(str(keys)) == ("first", "second")


def test_a_unix_socket_has_no_port(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = str(tmp_path)
    assert main(["serve", "--demo", "--data-dir", folder, "--uds", f"{folder}/s", "--port", "1"]) == 2
    assert "--uds conflicts with --host and --port" in capsys.readouterr().err
