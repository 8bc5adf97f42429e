"""`mlx_speech serve`: OpenAI's audio API, jobs, live sessions and a page, in front of the pipeline."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from mlx_speech.cli.outputs import expanded
from mlx_speech.cli.parser import SWITCH, add_command, add_models, add_speakers
from mlx_speech.cli.screen import Say
from mlx_speech.cli.setup import make_pipeline, pipeline_keywords, prepare
from mlx_speech.errors import MissingDependency, OptionError, install
from mlx_speech.names import DEFAULT_CPU, DEFAULT_GPU

DESCRIPTION = (
    "Serve OpenAI's audio API with subtitles and speakers, jobs for long recordings, live sessions over a socket, and "
    "a page to read and correct transcripts in a browser."
)
KEY_VARIABLE = "MLX_SPEECH_API_KEY"
DEFAULT_NAME = "whisper"
DEMO_NAME = "demo"
HOUR = 3600.0
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}  # bytes


def add_parser(group: Any) -> None:
    """The command and its flags."""
    parser = add_command(group, run, "serve", "OpenAI's audio API, and a page", DESCRIPTION, only_given=True)
    model_help = (
        f"Whisper, as of transcribe (default {DEFAULT_GPU}, on a CPU {DEFAULT_CPU}); may be given several times"
    )
    first = "the first answers OpenAI's names of models, too"
    parser.add_argument("--model", action="append", default=[], metavar="NAME", help=f"{model_help}: {first}")
    parser.add_argument(
        "--alias", action="append", default=[], metavar="NAME=MODEL", help="a further name that requests may give"
    )
    parser.add_argument("--demo", action="store_true", default=False, help="the small models of the package, offline")
    others = "one that others reach needs --api-key-file or --no-auth, and --allow-host for each name that it has"
    parser.add_argument("--host", help=f"address (default 127.0.0.1); {others}")
    parser.add_argument("--port", type=int, help="0 takes a free one (default 8000)")
    parser.add_argument("--uds", default=None, metavar="FILE", help="a Unix socket instead")
    parser.add_argument("--wyoming", default=None, metavar="PORT", help="Home Assistant's protocol, at a port too")
    parser.add_argument("--data-dir", metavar="FOLDER", help="jobs and their sound (default: the user's data folder)")
    _add_access(parser.add_argument_group("who may use it"))
    _add_limits(parser.add_argument_group("limits"))
    machine = parser.add_argument_group("models and machine")
    preload_help = "load what tells speakers, and times words of these languages (en,de), before the first request, too"
    machine.add_argument("--preload", nargs="?", const="", metavar="LANGUAGE,…", help=preload_help)
    offline_help = "download nothing once the models are loaded"
    machine.add_argument("--offline", action=SWITCH, help=offline_help)
    machine.add_argument("--align-model", metavar="NAME", help="wav2vec2 (default: the one of the language)")
    machine.add_argument("--batch-size", help="chunks at once (default: auto)")
    machine.add_argument("--memory-limit", type=float, metavar="GB", help="that MLX should stay within")
    add_speakers(machine)
    add_models(machine, "longest recording answered at once (default 4 h); jobs may have 24 h")


def _add_access(group: Any) -> None:
    key_help = f"a key a line; requests have to bring one (or {KEY_VARIABLE})"
    group.add_argument("--api-key-file", default=None, metavar="FILE", help=key_help)
    group.add_argument("--no-auth", action="store_true", help="no key, though others reach the address")
    group.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="requests may call this server so"
    )
    group.add_argument("--cors", action="append", default=[], metavar="ORIGIN", help="a page of another site")
    group.add_argument("--metrics-open", action=SWITCH, help="/metrics without a key")
    certificate_help = "TLS: the certificate, and behind it those that vouch for it (PEM)"
    group.add_argument("--ssl-certfile", default=None, metavar="FILE", help=certificate_help)
    key_help = "its private key (PEM; default: in the file of the certificate)"
    group.add_argument("--ssl-keyfile", default=None, metavar="FILE", help=key_help)
    proxies_help = "proxies whose X-Forwarded-For and -Proto are believed: addresses and networks, * for all"
    group.add_argument("--forwarded-allow-ips", default="", metavar="ADDRESS,…", help=proxies_help)


def _add_limits(group: Any) -> None:
    upload_help = "largest recording: bytes, or as 500M, 2G (default 2G)"
    group.add_argument("--max-upload", type=size_in_bytes, metavar="SIZE", help=upload_help)
    group.add_argument("--max-queue", type=int, metavar="N", help="requests that wait (default 64)")
    group.add_argument("--max-live", type=int, metavar="N", help="live sessions at once (default 8)")
    group.add_argument("--keep-results", type=float, metavar="HOURS", help="of jobs (default 24)")
    group.add_argument("--grace", type=float, metavar="SECONDS", help="to end requests when stopped (default 30)")
    alive_help = "answers in JSON that take long begin with spaces, and with status 200, also those that fail then"
    group.add_argument("--keep-alive-json", action=SWITCH, help=alive_help)
    group.add_argument("--log-text", action=SWITCH, help="texts may stand in the log")


def run(
    model: list[str],
    alias: list[str],
    demo: bool,
    uds: str | None,
    wyoming: str | None,
    api_key_file: str | None,
    allow_host: list[str],
    cors: list[str],
    ssl_certfile: str | None,
    ssl_keyfile: str | None,
    forwarded_allow_ips: str,
    verbose: bool,
    say: Say,
    print_progress: bool | None = None,
    **given: Any,
) -> int:
    """Serve until a signal comes."""
    try:
        from mlx_speech.server.run import log_to_stderr, serve
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        raise MissingDependency(f"{missing} is missing: {install('server')}") from error
    from mlx_speech.server.app import create_app
    from mlx_speech.server.listening import listen, listen_at
    from mlx_speech.server.settings import Settings

    limits = {name: given.pop(name) for name in _LIMITS if name in given}
    if "keep_results" in limits:
        limits["keep_results"] = _seconds(limits["keep_results"])
    if "preload" in limits:
        limits["preload"] = tuple(_parts(limits["preload"]))
    folder = given.pop("data_dir", None)
    settings = Settings(
        keys=_keys(api_key_file),
        allowed_hosts=tuple(allow_host),
        cors=tuple(cors),
        data_dir=_data_folder() if folder is None else expanded(folder),
        wyoming=wyoming,
        **limits,
    )
    if uds is not None and ("host" in limits or "port" in limits):
        raise OptionError("--uds conflicts with --host and --port: a Unix socket has neither, so leave them out")
    proxies = _proxies(forwarded_allow_ips)
    log_to_stderr(verbose)
    listener = listen(settings.host, settings.port) if uds is None else listen_at(expanded(uds))
    pipelines = _pipelines(model, demo, given, say)
    app = create_app(pipelines, settings, _aliases(alias, list(pipelines)))

    def started(address: str) -> None:
        # not by `say`, which makes flags of keywords
        print(greeting(address, list(pipelines), settings.keys), file=sys.stderr, flush=True)

    try:
        serve(
            app,
            settings,
            listener,
            certificate=ssl_certfile,
            private_key=ssl_keyfile,
            proxies=proxies,
            started=started,
        )
    finally:
        if uds is not None:
            expanded(uds).unlink(missing_ok=True)
    return 0


def size_in_bytes(text: str) -> int:
    """A number of bytes, or of KiB, MiB or GiB with the letter behind it. Raises `ArgumentTypeError`."""
    number = text
    unit = 1
    if text[-1:].upper() in UNITS:
        number = text[:-1]
        unit = UNITS[text[-1].upper()]
    if not (number.isascii() and number.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: give bytes, or a number and K, M or G, as 500M")
    return int(number) * unit


def _seconds(hours: float) -> float:
    """Raises `OptionError` in the flag's own unit."""
    if not 0 <= hours < math.inf:  # which nan is not, either
        raise OptionError(f"keep_results is {hours:g}: give a number of hours from 0")
    return hours * HOUR


_LIMITS = (
    "host",
    "port",
    "no_auth",
    "metrics_open",
    "max_upload",
    "max_duration",
    "max_queue",
    "max_live",
    "keep_results",
    "grace",
    "preload",
    "offline",
    "keep_alive_json",
    "log_text",
)


def _parts(text: str) -> list[str]:
    """What lies between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _proxies(text: str) -> list[str]:
    """Addresses and networks, or "*". Raises `OptionError`."""
    proxies = _parts(text)
    for proxy in proxies:
        if proxy == "*":
            continue
        try:
            ip_network(proxy)
        except ValueError as error:
            advice = "give addresses or networks, as 10.0.0.0/8, with commas between them, or *"
            raise OptionError(f"--forwarded-allow-ips {proxy}: is no address ({error}): {advice}") from error
    return proxies


def _pipelines(models: list[str], demo: bool, given: dict[str, Any], say: Say) -> dict[str, Any]:
    """Name → pipeline: of every model, or those of the package, or the default one."""
    from mlx_speech.pipeline import Pipeline

    if demo:
        if models:
            raise OptionError("--demo and --model conflict: leave one of them out")
        machine = {name: given.pop(name) for name in ("device", "model_dir", "model_cache_only", "hf_token")}
        prepare(say, **machine)
        return {DEMO_NAME: Pipeline.demo(**pipeline_keywords(given))}
    if not models:
        return {DEFAULT_NAME: make_pipeline(given, say)}
    return {name: make_pipeline({**given, "model": name}, say) for name in models}


def _aliases(texts: list[str], models: list[str]) -> dict[str, str]:
    aliases: dict[str, str] = {}
    for text in texts:
        name, equals, model = text.partition("=")
        if not equals or model not in models:
            raise OptionError(f"--alias {text}: give NAME=MODEL, of {', '.join(models)}")
        aliases[name] = model
    return aliases


def _keys(path: str | None) -> tuple[str, ...]:
    """Keys of a file, a line each, and that of the environment."""
    lines: list[str] = []
    if path is not None:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    lines.append(os.environ.get(KEY_VARIABLE, ""))
    stripped = [line.strip() for line in lines]
    keys = tuple(line for line in stripped if line and not line.startswith("#"))
    if path is not None and not keys:
        raise OptionError(f"--api-key-file {path}: no key is in it: write one a line")
    return keys


def _data_folder() -> Path:
    from mlx_speech.folders import data_folder

    return data_folder() / "server"


def greeting(address: str, models: list[str], keys: tuple[str, ...]) -> str:
    """Where the server is, and how it is asked from this machine."""
    lines = [f"mlx_speech: listening at {address} ({', '.join(models)}; {'with a key' if keys else 'without a key'})"]
    scheme, _, path = address.partition(":")
    if scheme == "unix":
        place = f"--unix-socket {shlex.quote(path)} http://localhost"
    else:
        # that of every address is none of its own: requests are sent to the loopback's
        place = address.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
        lines.append(f"  page: {place}/")
    header = ' -H "Authorization: Bearer $MLX_SPEECH_API_KEY"' if keys else ""
    fields = f"-F model={shlex.quote(models[0])} -F file=@meeting.m4a"
    lines.append(f"  curl {place}/v1/audio/transcriptions{header} {fields}")
    return "\n".join(lines)
