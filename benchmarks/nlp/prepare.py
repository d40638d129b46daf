"""Fetch and tokenize a recipe's text, so that learners find it done. On each host, or once for all that share a home.

    python benchmarks/nlp/prepare.py --recipe wikitext103 --data-dir DIR

Learners do this too, one of a node while the others wait. It may be interrupted and started again, and goes on where it
was.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from benchmarks.nlp.language_task import LanguageTask  # noqa: E402
from horovod_dpsgd.command_line import OneLineParser, give_up  # noqa: E402
from horovod_dpsgd.errors import UserError  # noqa: E402
from horovod_dpsgd.training import recipe  # noqa: E402


def main() -> None:
    parser = OneLineParser(description=__doc__)
    parser.add_argument("--recipe", metavar="NAME_OR_FILE", default="wikitext103")
    parser.add_argument("--data-dir", type=Path, metavar="DIR")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of train.py")
    given = parser.parse_args()
    try:
        overrides = recipe.parse_settings(given.set)
        if given.data_dir is not None:
            overrides["data_dir"] = given.data_dir
        task = LanguageTask(recipe.load(given.recipe, HERE / "recipes", overrides))
    except UserError as error:
        give_up(error)
    sys.stdout.write(f"{task.data}\n")


if __name__ == "__main__":
    main()
