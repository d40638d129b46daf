"""The tasks of language, by the name that a recipe has for them."""

from benchmarks.nlp.corpora import CORPORA
from benchmarks.nlp.language_task import LanguageTask

TASKS = dict.fromkeys(CORPORA, LanguageTask)
