"""What options ask of a Whisper, and whether it can do that."""

from __future__ import annotations

import warnings

from mlx_speech.errors import OptionError
from mlx_speech.loading import Models
from mlx_speech.options import Options
from mlx_speech.samples import SAMPLE_RATE
from mlx_speech.stages.whisper import batched, decode


def check_whisper(options: Options, models: Models) -> None:
    """Raises `OptionError` for what the Whisper of these models cannot do; warns of what it was not trained to."""
    whisper = models.whisper()
    tokenizer = whisper.tokenizer
    options.check_languages(tokenizer.languages or ["en"])
    if options.decoding.task == "translate" and not tokenizer.multilingual:
        raise OptionError('task "translate" conflicts with the model, which knows English only: choose another')
    if options.decoding.task == "translate" and "turbo" in models.names["whisper"]:
        warnings.warn("turbo was not trained to translate: choose another model, such as medium", stacklevel=3)
    decode.check_tokens(options.decoding, tokenizer, whisper.model.args.n_text_ctx)


def chunk_size(options: Options, models: Models) -> float:
    """Seconds of a chunk: as asked for, or the model's window. Raises `OptionError` where that is shorter."""
    window = batched.samples_per_window(models.whisper().model) / SAMPLE_RATE
    asked = options.detection.chunk_size
    if asked is not None and asked > window:
        sizes = f"chunk_size is {asked:g}, and the model's window {window:g} seconds"
        raise OptionError(f"{sizes}: give at most that, or leave chunk_size out")
    return asked or window
