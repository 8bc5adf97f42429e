"""What the commands do with their arguments: set up, run, write, report. `cli` reads the arguments.

Every command takes `say`, which tells the user a line: the library's messages become the command line's there.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_speech.blas import hint
from mlx_speech.errors import AudioError, MLXSpeechError, OptionError, OutOfMemory, OutputError, SourceError, in_range

if TYPE_CHECKING:
    from mlx_speech.options import Options

Say = Callable[[str], None]
VARIABLES = ("HF_HUB_CACHE", "MLX_SPEECH_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN")  # of the environment, that flags set
NAME_MAX = 255  # bytes of a file's name, where the file system does not say
TAG = 8  # hexadecimal digits that tell shortened names apart
MEANINGLESS = {  # WhisperX's flags that nothing here answers to
    "device_index": "MLX has one GPU",
    "threads": "set OPENBLAS_NUM_THREADS",
    "log_level": "use -v or --quiet",
}
FORMATS = ("txt", "srt", "vtt", "tsv", "json", "rttm", "ctm", "aud")
ALL = 6  # of them are written by default, rttm only where there are speakers
LAYOUT = ("max_line_width", "max_line_count", "max_cue_duration", "highlight_words", "speaker_embeddings")
DEMO_MODELS = "These models know synthetic voices and some 300 English words: for a first look and tests, not for work."
_SILERO = ("min_speech_duration_ms", "min_silence_duration_ms", "speech_pad_ms", "min_silence_at_max_speech")
_PYANNOTE = ("min_duration_on", "min_duration_off")
DETECTION = {  # flag → the detector's own name for it
    "silero": {"vad_onset": "threshold", "vad_offset": "neg_threshold", **{name: name for name in _SILERO}},
    "pyannote": {"vad_onset": "onset", "vad_offset": "offset", **{name: name for name in _PYANNOTE}},
}


def _set_up(device: str | None, model_dir: str | None, model_cache_only: bool, hf_token: str | None, say: Say) -> None:
    """What has to be said to the libraries before they are used."""
    if model_dir is not None:
        folder = _expanded(model_dir)
        os.environ["HF_HUB_CACHE"] = str(folder / "hub")
        os.environ["MLX_SPEECH_CACHE"] = str(folder / "converted")
    if model_cache_only:
        os.environ["HF_HUB_OFFLINE"] = "1"
    if hf_token is not None:
        os.environ["HF_TOKEN"] = hf_token
    if device is not None:
        import mlx.core as mx

        kind = {"cpu": mx.cpu, "gpu": mx.gpu, "cuda": mx.gpu, "mps": mx.gpu, "metal": mx.gpu}.get(device.split(":")[0])
        if kind is None:
            raise OptionError(f"--device {device}: choose cpu or gpu")
        if kind == mx.gpu and not (mx.metal.is_available() or mx.cuda.is_available()):
            raise OptionError(f"--device {device}: MLX finds no GPU here: leave --device out")
        mx.set_default_device(kind)
    _hint(say)


def transcribe(
    audio: list[str],
    output_dir: str,
    output_format: str,
    skip_existing: bool,
    quiet: bool,
    verbose: bool,
    say: Say,
    **given: Any,
) -> int:
    """Transcribe recordings and write each in the formats asked for; 1 where one of them failed."""
    for name, instead in MEANINGLESS.items():
        if given.pop(name, None) is not None:
            say(f"--{name.replace('_', '-')} has no meaning here: {instead}")
    from mlx_speech import writers
    from mlx_speech.options import Options
    from mlx_speech.writers.cues import Layout

    named = [name for name, value in given.items() if value]
    layout = {name: given.pop(name) for name in LAYOUT if name in given}
    Layout(**layout)  # checked before anything runs
    if layout.get("max_line_count") and not layout.get("max_line_width"):
        raise OptionError("--max-line-count needs --max-line-width: give both")
    bars, pipeline, options = _Bars(given.pop("print_progress"), quiet), _pipeline(given, say), _options(given)
    _check_no_align(options, layout)
    read = Options.of(**options)
    if layout.get("highlight_words") and read.words is None:
        raise OptionError("--highlight-words and --task translate conflict: add --word-timestamps attention")
    for flag, needed in _unheeded(named, read):
        say(f"{_flag(flag)} has no meaning without {needed}")
    formats = _formats(output_format, diarized=read.wants_speakers)
    audio = list(dict.fromkeys(audio))
    folder = _expanded(output_dir)
    stems = _stems(audio, folder, formats, say)
    files = {source: {kind: folder / f"{stem}.{kind}" for kind in formats} for source, stem in stems.items()}
    left = [name for name in files if not (skip_existing and all(path.is_file() for path in files[name].values()))]
    results = pipeline.transcribe(left, on_progress=bars, **options)  # the options are checked, nothing runs yet
    _writable(folder)
    _check_paths({name: files[name].values() for name in left})
    if not left:
        say(f"nothing to do: what was asked for is in {folder} already")
        return 0
    failed: list[str] = []
    try:
        with closing(bars) as report:
            for source, result in results:
                report.close(source)
                if isinstance(result, Exception):
                    failed.append(_failure(source, result, verbose))
                    continue
                try:
                    for kind, path in files[source].items():
                        _write(path, writers.FORMATS[kind](result, uri=stems[source], **layout))
                except OutputError as error:
                    failed.append(_failure(source, error, verbose))
                    continue
                if not quiet:
                    print(f"# {source}\n" * (len(audio) > 1) + writers.to_screen(result), end="", flush=True)
                    names = f"{{{','.join(formats)}}}" if len(formats) > 1 else formats[0]
                    print(f"mlx_speech: {folder / stems[source]}.{names}", file=sys.stderr)
                if verbose:
                    print(_timing(result), file=sys.stderr)
                    for region in result.silences:
                        say(f"{region.start:.1f} to {region.end:.1f} s: speech to the detector, silence to Whisper")
    finally:
        for message in failed:
            say(message)
    return 1 if failed else 0


def diarize(audio: list[str], exclusive: bool, verbose: bool, say: Say, **given: Any) -> int:
    """Print the turns of recordings as RTTM; 1 where one of them failed."""
    from mlx_speech import writers

    bars, pipeline = _Bars(given.pop("print_progress")), _pipeline(given, say)
    audio = list(dict.fromkeys(audio))
    stems = dict(zip(audio, writers.unique_stems(audio), strict=True))
    failed: list[str] = []
    with closing(bars) as report:
        for source in stems:
            try:
                found = pipeline.diarize(source, on_progress=report, **given)
            except (AudioError, OutOfMemory) as error:
                failed.append(_failure(source, error, verbose))
                continue
            report.close(source)
            turns = found.exclusive if exclusive else found.turns
            print(writers.regions_to_rttm(turns, stems[source]), end="", flush=True)
    for message in failed:
        say(message)
    return 1 if failed else 0


def demo(audio: str | None, output_dir: str, q_bits: int | None, verbose: bool, say: Say) -> int:
    """Transcribe a recording, by default the one that comes with the package, with its small models, and score it."""
    from mlx_speech import writers
    from mlx_speech.evaluation import scores
    from mlx_speech.package_data import DEMO
    from mlx_speech.pipeline import Pipeline

    _hint(say)
    source, folder = Path(audio or DEMO / "conversation.flac"), _expanded(output_dir)
    formats = ("srt", "json", "rttm")
    stem = _stems([str(source)], folder, formats, say)[str(source)]
    files = {kind: folder / f"{stem}.{kind}" for kind in formats}
    beside = source.with_suffix(".json")
    truth = scores.read_truth(beside)
    if truth is not None and beside.resolve() == (folder / beside.name).resolve():
        raise OutputError(f"{beside}: says what was spoken, and would be overwritten: choose another --output-dir")
    _writable(folder)
    _check_paths({str(source): files.values()})
    print(DEMO_MODELS, flush=True)
    start, pipeline = time.perf_counter(), Pipeline.demo(q_bits=q_bits)
    models = pipeline.models  # converted when they are used for the first time
    models.whisper()
    models.aligner("en")
    models.diarization()
    seconds = {"models": time.perf_counter() - start}
    with closing(_Bars(None)) as report:
        result = pipeline(source, diarize=True, on_progress=report)
    print(writers.to_screen(result), end="")
    for kind, path in files.items():
        _write(path, writers.FORMATS[kind](result, uri=source.stem))
    print(f"mlx_speech: {folder / stem}.{{{','.join(formats)}}}")
    if truth is not None:
        try:
            print(scores.score([(result, truth)]))
        except MLXSpeechError as error:
            say(str(error))
    print(_timing(replace(result, seconds={**seconds, **result.seconds})))
    return 0


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _check_no_align(options: Mapping[str, Any], layout: Mapping[str, Any]) -> None:
    """Raises `OptionError` for flags that need words with times where none are wanted."""
    if options.get("word_timestamps") not in ("none", False):
        return
    for name in ("return_char_alignments", "highlight_words", "max_line_width", "max_line_count"):
        if options.get(name) or layout.get(name):
            raise OptionError(f"{_flag(name)} and --no-align conflict: leave one of them out")


def _unheeded(given: Iterable[str], options: Options) -> Iterator[tuple[str, str]]:
    """Flags that the user gave and nothing answers to, each with what it would need."""
    words = options.words
    detected = options.vad and not options.sequential
    if "speaker_embeddings" in given and not options.wants_speakers:
        yield "speaker_embeddings", "--diarize"
    if "segment_resolution" in given and words is None:
        yield "segment_resolution", "times of words"
    for name in ("align_model", "interpolate_method"):
        if name in given and words != "ctc":
            yield name, "--word-timestamps ctc"
    for name in ("vad_method", "vad_model"):
        if name in given and not detected:
            yield name, "speech detection"


def _pipeline(given: dict[str, Any], say: Say) -> Any:
    """The `Pipeline` of its own keywords, and of those of `_set_up`; all are taken out of `given`."""
    _set_up(**{name: given.pop(name) for name in ("device", "model_dir", "model_cache_only", "hf_token")}, say=say)
    from mlx_speech.pipeline import Pipeline

    names = ("model", "align_model", "vad_model", "diarize_model", "dtype", "q_bits", "batch_size", "low_memory")
    chosen = {name: given.pop(name) for name in (*names, "memory_limit", "max_duration") if name in given}
    size = chosen.get("batch_size", "auto")
    if size != "auto" and not size.isdecimal():
        raise OptionError(f'--batch-size {size}: give a number, or "auto"')
    chosen["batch_size"] = size if size == "auto" else int(size)
    kind = given.pop("compute_type", "default")
    if not given.pop("fp16", True) and kind == "default":
        kind = "float32"
    if kind != "default" and ("dtype" in chosen or "q_bits" in chosen):
        raise OptionError("--compute-type conflicts with --dtype and --q-bits: leave it out")
    if kind.startswith("int"):
        chosen["q_bits"] = int(kind[3:])
    elif kind != "default":
        chosen["dtype"] = kind
    return Pipeline(**chosen)


def _options(given: dict[str, Any]) -> dict[str, Any]:
    """What the user gave, as keywords of `Options`."""
    flags = {flag for own in DETECTION.values() for flag in own}
    options = {name: value for name, value in given.items() if name not in flags}
    if options.get("word_timestamps") in ("False", "True"):  # as openai-whisper's command line has it
        options["word_timestamps"] = options["word_timestamps"] == "True"
    step = options.pop("temperature_increment_on_fallback", 0.2)
    first = options.pop("temperature", 0.0) or 0.0
    if step is not None and not step >= 0.01:
        raise OptionError(f"--temperature-increment-on-fallback {step}: give a number from 0.01 on, or None")
    in_range(0, 100, temperature=first)
    tries = 1 if step is None else max(1, int((1.0 - first + 1e-6) / step) + 1)
    options["temperature"] = tuple(round(first + k * (step or 0.0), 6) for k in range(tries))
    method = options.get("vad_method", "silero")
    options["vad_options"] = {}
    for flag in sorted(flags & given.keys()):
        for other, off in (("--sequential", given.get("sequential")), ("--no-vad", not given.get("vad", True))):
            if off:
                raise OptionError(f"{other} and {_flag(flag)} conflict: leave one of them out")
        if flag not in DETECTION[method]:
            raise OptionError(f"{_flag(flag)} conflicts with --vad-method {method}: leave one of them out")
        if given[flag] is not None:
            options["vad_options"][DETECTION[method][flag]] = given[flag]
    return options


def _formats(text: str, diarized: bool) -> list[str]:
    usual = [kind for kind in FORMATS[:ALL] if kind != "rttm" or diarized]
    named = [kind.strip().lower() for kind in text.split(",")]
    kinds = list(dict.fromkeys(kind for name in named for kind in (usual if name == "all" else [name])))
    for kind in kinds:
        if kind not in FORMATS:
            raise OptionError(f"--output-format {text}: {kind!r} is not one of {', '.join(FORMATS)}, all")
        if kind == "rttm" and not diarized:
            raise OptionError("--output-format rttm holds speakers: add --diarize")
    return kinds


def _failure(source: str, error: Exception, verbose: bool) -> str:
    if verbose:
        traceback.print_exception(error)
    said = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, MLXSpeechError):
        said = f"{source}: {type(error).__name__}: {said} (-v shows where; this should not happen: please report it)"
    return said if source in said or source == "-" else f"{source}: {said}"


def _expanded(folder: str) -> Path:
    """Its ~ expanded. Raises `OptionError` where there is no such user."""
    from mlx_speech.folders import expand

    return expand(folder)


def _writable(folder: Path) -> None:
    """Make the folder if it is missing. That it cannot be written is found out before hours of work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror}): choose another --output-dir") from error


def _check_paths(files: Mapping[str, Iterable[Path]]) -> None:
    """Raises `OutputError` for results, of each recording, that will not be possible to write."""
    for source, paths in files.items():
        for path in paths:
            try:
                found = path.stat()
            except FileNotFoundError:
                continue
            except OSError as error:
                said = f"{path}: cannot be written ({error.strerror}): choose another --output-dir"
                raise OutputError(said) from error
            if stat.S_ISDIR(found.st_mode):
                raise OutputError(f"{path}: cannot be written (it is a folder): choose another --output-dir")
            if _is_file(path, source):
                raise OutputError(f"{path}: is the recording itself: choose another --output-dir")


def _is_file(path: Path, source: str) -> bool:
    """Whether a result that is there already is the recording; one that cannot be looked at is found out later."""
    try:
        return path.samefile(source)
    except OSError:
        return False


def _stems(audio: list[str], folder: Path, formats: Iterable[str], say: Say) -> dict[str, str]:
    """The names of results without extension, by recording: none is longer than the file system takes.

    Of a longer one as much is left as fits, and a part of its SHA-256 that tells it from others; the user hears of it.
    """
    from mlx_speech import writers

    room = _longest_name(folder) - max(len(f".{kind}") for kind in formats)
    stems = dict(zip(audio, writers.unique_stems(audio), strict=True))
    for source, stem in stems.items():
        data = os.fsencode(stem)
        if len(data) > room:
            tag = hashlib.sha256(data).hexdigest()[:TAG]
            # as the name of a file it may hold bytes that are no text; a letter that is cut in two is left out
            kept = data[: max(room - TAG - 1, 0)].decode("utf-8", "ignore")
            stems[source] = f"{kept}-{tag}"
            say(f"{source}: the name is too long for results, which are called {stems[source]}")
    return stems


def _longest_name(folder: Path) -> int:
    """Bytes that a name may have in a folder, which need not be there yet."""
    for place in (folder, *folder.parents):
        try:
            return os.pathconf(place, "PC_NAME_MAX")
        except (OSError, ValueError):  # it is not there; or the system has no such word
            continue
    return NAME_MAX


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    try:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", newline="", dir=path.parent, delete=False) as file:
            try:
                file.write(text)
                file.flush()
                mask = os.umask(0)
                os.umask(mask)
                Path(file.name).chmod(0o666 & ~mask)  # as files are made; temporary ones are private
                Path(file.name).replace(path)
            finally:
                Path(file.name).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}): choose another --output-dir") from error


def _timing(result: Any) -> str:
    total = sum(result.seconds.values())
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in result.seconds.items())
    speed = f" ({result.duration / total:.1f} × real time)" if total else ""
    return f"mlx_speech: {stages}; {result.duration:.1f} s of audio in {total:.1f} s{speed}"


class _Bars:
    """A bar for every stage of every recording that is under way: seconds of audio, and how many of them a second."""

    def __init__(self, shown: bool | None, quiet: bool = False) -> None:
        self._shown = sys.stderr.isatty() and not quiet if shown is None else shown
        self._bars: dict[tuple[str, str], Any] = {}

    def __call__(self, stage: str, done: float, total: float, source: Any) -> None:
        if not self._shown:
            return
        key = (str(source), stage)
        if key not in self._bars:
            from tqdm import tqdm

            form = "{desc} {percentage:3.0f}% |{bar}| {n:.0f} of {total:.0f} s, {rate_noinv_fmt}"
            name = f"{Path(str(source)).name}: {stage}"
            self._bars[key] = tqdm(total=total, desc=name, unit=" s", bar_format=form, leave=False)
        self._bars[key].update(max(0.0, done - self._bars[key].n))
        if done >= total:
            self._bars.pop(key).close()

    def close(self, source: Any = None) -> None:
        """The bars of a recording, or all of them."""
        for key in [key for key in self._bars if source is None or key[0] == str(source)]:
            self._bars.pop(key).close()


def convert(verbose: bool, say: Say, **options: Any) -> int:
    """Convert a model and print what was done."""
    from mlx_speech.convert import convert

    if options["verify"]:  # the only part of a conversion that computes much
        _hint(say)
    report = convert(**options, progress=sys.stderr.isatty())
    for line in report.lines:
        print(line)
    for part, table in report.tables.items():
        print(f"{part}\n{table}" if part else table)
    print(report)
    return 0


def _hint(say: Say) -> None:
    if found := hint():
        say(found)


def vad(
    audio: list[str],
    model: str | None,
    format: str,
    max_duration: float,
    verbose: bool,
    say: Say,
    audio_track: int | str | None = None,
    **options: Any,
) -> int:
    """Print the regions of speech in recordings; 1 where one of them failed."""
    from mlx_speech import writers
    from mlx_speech.audio import load_audio, louder
    from mlx_speech.loading import load
    from mlx_speech.models import silero_vad
    from mlx_speech.stages.vad import detect_speech

    network: Any = load(model or "silero_vad")
    if not isinstance(network, silero_vad.Model):
        raise SourceError(f"{model}: not a Silero VAD: leave --model out, or name one")
    rate, decimals = options.pop("sampling_rate"), options["time_resolution"]
    detect_speech([], network, sample_rate=rate, **options)  # checks them before a recording is read
    audio = list(dict.fromkeys(audio))
    stems = dict(zip(audio, writers.unique_stems(audio), strict=True))
    found: dict[str, Any] = {}
    failed: list[str] = []
    for source in audio:
        try:
            samples = load_audio(source, sample_rate=rate, max_duration=max_duration, audio_track=audio_track)
        except AudioError as error:
            failed.append(_failure(source, error, verbose))
            continue
        samples = louder(samples, source)
        found[source] = regions = detect_speech(samples, network, sample_rate=rate, **options)
        if format == "rttm":
            print(writers.regions_to_rttm(regions, stems[source]), end="", flush=True)
        elif format == "text":
            text = writers.regions_to_text(regions, decimals)
            print(f"# {source}\n" * (len(audio) > 1) + text, end="", flush=True)
    if format == "json":  # of several files one object, by file
        lists = {source: writers.regions_to_json(regions, decimals) for source, regions in found.items()}
        entries = [f"{json.dumps(source, ensure_ascii=False)}: {text.strip()}" for source, text in lists.items()]
        if len(audio) > 1:
            print("{\n" + ",\n".join(entries) + "\n}")
        elif entries:
            print(lists[audio[0]].strip())
    for message in failed:
        say(message)
    return 1 if failed else 0
