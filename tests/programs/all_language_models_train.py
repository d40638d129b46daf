"""Every form of language model takes three steps by every algorithm, on made-up text.

usage: all_language_models_train.py FOLDER
"""

import math
import shutil
import sys
from pathlib import Path

import problems
import transformers

from benchmarks.nlp.language_task import LanguageTask
from horovod_dpsgd.training.loop import Trainer
from horovod_dpsgd.training.recipe import Recipe

STEPS = 3
ALGORITHMS = {"ssgd": {}, "ssgd-star": {"noise_std": 0.001}, "dpsgd": {}, "adpsgd": {}}

us = problems.start()
folder = Path(sys.argv[1])
if us.rank == 0:
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(**sizes, num_key_value_heads=2, max_position_embeddings=16, vocab_size=999)
    config.save_pretrained(folder / "llama")
us.barrier()
MODELS = {
    "transformer": {"width": 24, "hidden": 40, "heads": 4, "layers": 2},
    "gpt2": {"n_embd": 24, "n_inner": 40, "n_head": 4, "n_layer": 2},
    f"hf:{folder}/llama": {"layer_norm_init": "normal"},
}
for model, options in MODELS.items():
    for algo, keys in ALGORITHMS.items():
        recipe = Recipe(
            task="text", model=model, model_options=options, data_options={"block_size": 16, "vocabulary": 300},
            algo=algo, **keys, optimizer="adam", lr=1e-3, clip_norm=0.25, batch_size=2 * us.size, max_steps=STEPS,
            synthetic=True, checkpoint_every=0,
        )  # fmt: skip
        run = folder / "run"
        run.mkdir(exist_ok=True)
        us.barrier()
        trainer = Trainer(recipe, LanguageTask(recipe), us, run)
        result = trainer.train()
        trainer.close()
        assert result is not None
        assert (result["steps"], sum(result["steps_by_learner"])) == (STEPS, STEPS * us.size)
        assert math.isfinite(result["heldout"]["loss"]), (model, algo)
        assert result["heldout"]["perplexity"] == math.exp(result["heldout"]["loss"])
        spread = result["consensus_distance"]
        assert (spread == 0) == (algo in ("ssgd", "ssgd-star")), f"{model} {algo}: consensus distance {spread}"
        us.barrier()
        if us.rank == 0:
            print(f"{model} {algo}: trained")
            shutil.rmtree(run)
