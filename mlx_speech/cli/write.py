"""`mlx_speech write`: transcripts in JSON, of this package or WhisperX, → other formats."""

from __future__ import annotations

from typing import Any

from mlx_speech.cli import outputs
from mlx_speech.cli.parser import add_command, add_options
from mlx_speech.cli.screen import Say, failure
from mlx_speech.cli.sound import check_embedding, page_keywords
from mlx_speech.errors import MLXSpeechError, OptionError
from mlx_speech.fields import options_of
from mlx_speech.writers.cues import Layout

DESCRIPTION = "Write transcripts in other formats. They are read from JSON files that mlx_speech or WhisperX wrote."


def add_parser(group: Any) -> None:
    """The command and its flags."""
    parser = add_command(group, run, "write", "a transcript in other formats", DESCRIPTION, only_given=True)
    parser.add_argument("transcripts", nargs="+", metavar="FILE.json", help="of mlx_speech or WhisperX")
    outputs.add_output_dir(parser, "files")
    formats = f"list of {','.join(outputs.FORMATS)}, or all, which leaves out ctm, aud and html"
    parser.add_argument("-f", "--output-format", required=True, help=formats)
    parser.add_argument("--audio", default=None, metavar="FILE", help="the recording of the transcript, for html")
    outputs.add_embedding(parser)
    add_options(parser, options_of(Layout).values())
    parser.add_argument("-v", "--verbose", action="store_true", default=False, help="tracebacks of errors")


def run(
    transcripts: list[str],
    output_dir: str,
    output_format: str,
    audio: str | None,
    embed_audio: bool,
    verbose: bool,
    say: Say,
    **layout: Any,
) -> int:
    """Write transcripts in the formats asked for; 1 where one of them failed."""
    outputs.check_layout(layout)
    formats = outputs.formats_of(output_format, diarized=True)
    transcripts = list(dict.fromkeys(transcripts))
    check_embedding(embed_audio, formats)
    if embed_audio and audio is None:
        raise OptionError("--embed-audio needs --audio: give the recording")
    if audio is not None and "html" not in formats:
        raise OptionError("--audio needs --output-format html: give both")
    if audio is not None and len(transcripts) > 1:
        raise OptionError(f"--audio is of one transcript, and there are {len(transcripts)}: write them one by one")
    folder = outputs.expanded(output_dir)
    stems = outputs.stems_of(transcripts, folder, formats, say)
    outputs.make_writable(folder)
    page = page_keywords(audio, folder, embed=embed_audio)
    failed: list[str] = []
    for source, stem in stems.items():
        try:
            transcript = outputs.read_transcript(source)
            kinds = outputs.formats_of(
                output_format,
                diarized=transcript.diarization is not None,
                advice=f"{source} has none: leave rttm out",
            )
            files = {kind: folder / f"{stem}.{kind}" for kind in kinds}
            outputs.check_paths({source: files.values()}, "the transcript")
            outputs.write_all(transcript, files, stem, layout, page)
        except MLXSpeechError as error:
            failed.append(failure(source, error, verbose))
            continue
        print(outputs.listed(folder / stem, kinds))
    for message in failed:
        say(message)
    return 1 if failed else 0
