"""What the commands do with their arguments: set up, run, write, report. `cli` reads the arguments."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import traceback
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_speech.blas import hint
from mlx_speech.errors import AudioError, MLXSpeechError, OptionError, OutOfMemory, OutputError, SourceError

MEANINGLESS = {  # WhisperX's flags that nothing here answers to
    "device_index": "MLX has one GPU",
    "threads": "set OPENBLAS_NUM_THREADS",
    "log_level": "use -v or --quiet",
}
FORMATS = ("txt", "srt", "vtt", "tsv", "json", "rttm", "ctm", "aud")
ALL = 6  # of them are written by default, rttm only where there are speakers
SPEAKERS = ("num_speakers", "min_speakers", "max_speakers")
LAYOUT = ("max_line_width", "max_line_count", "max_cue_duration", "highlight_words", "speaker_embeddings")
DEMO_MODELS = "These models know synthetic voices and some 300 English words: for a first look and tests, not for work."
_SILERO = ("min_speech_duration_ms", "min_silence_duration_ms", "speech_pad_ms", "min_silence_at_max_speech")
_PYANNOTE = ("min_duration_on", "min_duration_off")
DETECTION = {  # flag → the detector's own name for it
    "silero": {"vad_onset": "threshold", "vad_offset": "neg_threshold", **{name: name for name in _SILERO}},
    "pyannote": {"vad_onset": "onset", "vad_offset": "offset", **{name: name for name in _PYANNOTE}},
}


def _set_up(device: str | None, model_dir: str | None, model_cache_only: bool, hf_token: str | None) -> None:
    """What has to be said to the libraries before they are used."""
    if model_dir is not None:
        os.environ["HF_HUB_CACHE"] = str(Path(model_dir).expanduser() / "hub")
        os.environ["MLX_SPEECH_CACHE"] = str(Path(model_dir).expanduser() / "converted")
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
    _hint()


def transcribe(
    audio: list[str], output_dir: str, output_format: str, skip_existing: bool, quiet: bool, verbose: bool, **given: Any
) -> int:
    """Transcribe recordings and write each in the formats asked for; 1 where one of them failed."""
    for name, instead in MEANINGLESS.items():
        if given.pop(name, None) is not None:
            print(f"mlx_speech: --{name.replace('_', '-')} has no meaning here: {instead}", file=sys.stderr)
    from mlx_speech import writers
    from mlx_speech.cues import Layout

    layout = {name: given.pop(name) for name in LAYOUT if name in given}
    Layout(**layout)  # checked before anything runs
    for flag in ("return_char_alignments", "highlight_words", "max_line_width", "max_line_count"):
        if given.get("word_timestamps") == "none" and (given.get(flag) or layout.get(flag)):
            raise OptionError(f"--{flag.replace('_', '-')} and --no-align conflict: leave one of them out")
    if layout.get("max_line_count") and not layout.get("max_line_width"):
        raise OptionError("--max-line-count needs --max-line-width: give both")
    bars, pipeline, options = _Bars(given.pop("print_progress"), quiet), _pipeline(given), _options(given)
    formats = _formats(output_format, diarized=any(options.get(n) for n in ("diarize", *SPEAKERS)))
    audio = list(dict.fromkeys(audio))
    stems = dict(zip(audio, writers.unique_stems(audio), strict=True))
    folder = _writable(Path(output_dir).expanduser())
    files = {source: {kind: folder / f"{stem}.{kind}" for kind in formats} for source, stem in stems.items()}
    left = [name for name in files if not (skip_existing and all(path.exists() for path in files[name].values()))]
    failed: list[str] = []
    try:
        with closing(bars) as report:
            for source, result in pipeline.transcribe(left, on_progress=report, **options):
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
    finally:
        print(*failed, sep="\n", end="\n" * bool(failed), file=sys.stderr)
    return 1 if failed else 0


def diarize(audio: list[str], exclusive: bool, verbose: bool, **given: Any) -> int:
    """Print the turns of recordings as RTTM; 1 where one of them failed."""
    from mlx_speech import writers

    bars, pipeline = _Bars(given.pop("print_progress")), _pipeline(given)
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
    print(*failed, sep="\n", end="\n" * bool(failed), file=sys.stderr)
    return 1 if failed else 0


def demo(audio: str | None, output_dir: str, q_bits: int | None, verbose: bool) -> int:
    """Transcribe a recording, by default the one that comes with the package, with its small models, and score it."""
    from mlx_speech import scores, writers
    from mlx_speech.checkpoint import DEMO
    from mlx_speech.pipeline import Pipeline

    _hint()
    source, folder = Path(audio or DEMO / "conversation.flac"), _writable(Path(output_dir).expanduser())
    beside = source.with_suffix(".json")
    truth = scores.read_truth(beside)
    if truth is not None and beside.resolve() == (folder / beside.name).resolve():
        raise OutputError(f"{beside}: says what was spoken, and would be overwritten: choose another --output-dir")
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
    for kind in ("srt", "json", "rttm"):
        _write(folder / f"{source.stem}.{kind}", writers.FORMATS[kind](result, uri=source.stem))
    print(f"mlx_speech: {folder / source.stem}.{{srt,json,rttm}}")
    if truth is not None:
        try:
            print(scores.score([(result, truth)]))
        except MLXSpeechError as error:
            print(f"mlx_speech: {error}", file=sys.stderr)
    print(_timing(replace(result, seconds={**seconds, **result.seconds})))
    return 0


def _pipeline(given: dict[str, Any]) -> Any:
    """The `Pipeline` of its own keywords, and of those of `_set_up`; all are taken out of `given`."""
    _set_up(**{name: given.pop(name) for name in ("device", "model_dir", "model_cache_only", "hf_token")})
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
    words = options.get("word_timestamps")
    if words in ("none", "False", "True"):
        options["word_timestamps"] = "ctc" if words == "True" else None
    step = options.pop("temperature_increment_on_fallback", 0.2)
    first = options.pop("temperature", 0.0) or 0.0
    if step is not None and not step >= 0.01:
        raise OptionError(f"--temperature-increment-on-fallback {step}: give a number from 0.01 on, or None")
    tries = 1 if step is None else max(1, int((1.0 - first + 1e-6) / step) + 1)
    options["temperature"] = tuple(round(first + k * (step or 0.0), 6) for k in range(tries))
    if "clip_timestamps" in options:
        try:
            options["clip_timestamps"] = tuple(float(number) for number in options["clip_timestamps"].split(","))
        except ValueError as error:
            raise OptionError(f"--clip-timestamps {given['clip_timestamps']}: give start,end,start,end …") from error
    method = options.get("vad_method", "silero")
    options["vad_options"] = {}
    for flag in sorted(flags & given.keys()):
        if flag not in DETECTION[method]:
            raise OptionError(f"--{flag.replace('_', '-')} conflicts with --vad-method {method}: leave one of them out")
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
    return f"mlx_speech: {said}" if source in said or source == "-" else f"mlx_speech: {source}: {said}"


def _writable(folder: Path) -> Path:
    """The folder, made if missing; found out before hours of work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror}): choose another --output-dir") from error


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


def convert(verbose: bool, **options: Any) -> int:
    """Convert a model and print what was done."""
    from mlx_speech.convert import convert

    if options["verify"]:  # the only part of a conversion that computes much
        _hint()
    report = convert(**options, progress=sys.stderr.isatty())
    for line in report.lines:
        print(line)
    for part, table in report.tables.items():
        print(f"{part}\n{table}" if part else table)
    print(report)
    return 0


def _hint() -> None:
    if found := hint():
        print(f"mlx_speech: {found}", file=sys.stderr)


def vad(
    audio: list[str],
    model: str | None,
    format: str,
    max_duration: float,
    verbose: bool,
    audio_track: int | str | None = None,
    **options: Any,
) -> int:
    """Print the regions of speech in recordings."""
    from mlx_speech import writers
    from mlx_speech.audio import load_audio, louder
    from mlx_speech.checkpoint import load
    from mlx_speech.models import silero_vad
    from mlx_speech.stages.vad import detect_speech

    network: Any = load(model or "silero_vad")
    if not isinstance(network, silero_vad.Model):
        raise SourceError(f"{model}: not a Silero VAD: leave --model out, or name one")
    rate, decimals = options.pop("sampling_rate"), options["time_resolution"]
    found = {}
    for source in audio:
        samples = load_audio(source, sample_rate=rate, max_duration=max_duration, audio_track=audio_track)
        samples = louder(samples, source)
        found[source] = regions = detect_speech(samples, network, sample_rate=rate, **options)
        if format == "rttm":
            print(writers.regions_to_rttm(regions, Path(source).stem if source != "-" else "stdin"), end="")
        elif format == "text":
            text = writers.regions_to_text(regions, decimals)
            print(f"# {source}\n" * (len(audio) > 1) + text, end="", flush=True)
    if format == "json":  # of several files one object, by file
        lists = {source: writers.regions_to_json(regions, decimals) for source, regions in found.items()}
        entries = [f"{json.dumps(source, ensure_ascii=False)}: {text.strip()}" for source, text in lists.items()]
        print("{\n" + ",\n".join(entries) + "\n}" if len(audio) > 1 else lists[audio[0]].strip())
    return 0
