"""Tokens a second of a language model in the training loop against the same steps in a bare PyTorch loop, one learner.

    python benchmarks/nlp/speed.py                                   # the small transformer of novels-cpu
    python benchmarks/nlp/speed.py --amp --accumulate 4              # in bfloat16; a batch in four parts: both loops
    python benchmarks/nlp/speed.py --compile --turns 3               # every turn compiles: a minute or more each
    python benchmarks/nlp/speed.py --recipe wikitext103 --batch-size 4 --steps 3      # the paper's: 50 million weights

Text is made up. Tokens are those of the blocks that are read. `benchmarks/comm/loops.py` says what is timed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.comm import arguments, loops
from benchmarks.comm.loops import BARE, OURS
from benchmarks.nlp.language_task import LanguageTask
from horovod_dpsgd.errors import UserError
from horovod_dpsgd.training import recipe as recipes

RECIPES = Path(__file__).resolve().parent / "recipes"


ONE_BLOCK = "data_options.heldout_blocks=1"  # is evaluated after every turn, which is not what is timed


def main() -> None:
    parser = _parser()
    given = parser.parse_args()
    options = {"amp": given.amp, "accumulate": given.accumulate, "compile": given.compile}
    try:
        changes = loops.changes(given) | options | recipes.parse_settings([ONE_BLOCK, *given.set])
        recipe = recipes.load(given.recipe, RECIPES, changes)
        recipe.check_learners(1)
        language = LanguageTask(recipe)
    except UserError as error:
        parser.error(" ".join(str(error).split()))
    us, output = loops.alone(given, "nlp/speed")
    task = loops.Timed(language)
    contenders = {BARE: lambda: loops.train_bare(recipe, task), OURS: lambda: loops.train_ours(recipe, task, us)}
    seconds = loops.in_turns(contenders, given.turns, given.budget)
    loops.report(seconds, recipe.batch_size, output, language.options.block_size, "tokens")


def _parser() -> arguments.Parser:
    parser = arguments.parser(__doc__)
    parser.add_argument("--recipe", metavar="NAME_OR_FILE", default="novels-cpu", help="default: %(default)s")
    loops.add_options(parser, batch_size=16, steps=20, of="blocks")
    parser.add_argument("--accumulate", type=arguments.count, default=1, help="parts of a batch (default: %(default)s)")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--compile", action="store_true", help="the model, by torch.compile")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any other recipe key")
    return parser


if __name__ == "__main__":
    main()
