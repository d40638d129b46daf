"""The tasks of speech, by the name that a recipe has for them."""

from benchmarks.asr.speech_task import SpeechTask

TASKS = dict.fromkeys(("speech", "swb300", "swb2000"), SpeechTask)
