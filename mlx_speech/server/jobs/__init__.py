"""Jobs: long recordings that are transcribed behind the answer, kept on disk, watched, corrected and deleted."""
