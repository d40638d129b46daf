"""Causal language models of the transformers library: GPT-2 in the paper's sizes, and any other by name or folder.

transformers is imported when such a model is asked for: it takes seconds of every learner's start.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from horovod_dpsgd.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

HELP = "pip install 'transformers>=4.56,<6'"
PREFIX = "hf:"  # of names and folders
PAPER = {"n_embd": 410, "n_inner": 2100, "n_head": 10, "n_layer": 16}  # the sizes of `transformer.Shape`
DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
NAMED_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
LIBRARY_ERRORS = (
    OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError, ArithmeticError
)  # fmt: skip


def gpt2_config(vocabulary: int, positions: int, options: dict[str, Any]) -> PretrainedConfig:
    """GPT2Config in the paper's sizes; `options` are keys of GPT2Config that go before those."""
    config = _transformers().GPT2Config()
    sizes = PAPER | {"n_positions": positions} | dict.fromkeys(DROPOUTS, 0.1)
    config = _fitted(config, vocabulary, sizes | options)
    _check_positions(config, "gpt2", positions)
    return config


def named_config(
    name: str, vocabulary: int, positions: int, options: dict[str, Any], pretrained: bool, may_fetch: bool
) -> PretrainedConfig:
    """The configuration of a model by its name on the hub, or in a folder that `save_pretrained` has written.

    Fresh weights take their vocabulary from the text; pretrained ones have theirs. Raises RecipeError.
    """
    try:
        config = _transformers().AutoConfig.from_pretrained(name, local_files_only=_is_local(name, may_fetch))
        if pretrained and may_fetch:
            _load(name, config, may_fetch)  # so that it is there for the others
    except LIBRARY_ERRORS as error:
        raise RecipeError(f"model {PREFIX}{name} cannot be read: {_joined(error)}") from error
    if not pretrained:
        config = _fitted(config, vocabulary, options)
    elif options:
        raise RecipeError(f"model_options: {', '.join(options)} cannot be chosen for pretrained weights")
    elif config.vocab_size < vocabulary:
        raise RecipeError(
            f"model {PREFIX}{name} knows {config.vocab_size} tokens, but the text has {vocabulary}: "
            "set data_options.tokenizer to the model's own"
        )
    _check_positions(config, PREFIX + name, positions)
    return config


def make(config: PretrainedConfig, pretrained_name: str | None = None) -> nn.Module:
    """The causal model with fresh weights, or with those of that name. Raises RecipeError if it is none."""
    try:
        if pretrained_name is None:
            model = _transformers().AutoModelForCausalLM.from_config(config)
        else:
            model = _load(pretrained_name, config, may_fetch=False)
    except LIBRARY_ERRORS as error:
        raise RecipeError(f"transformers cannot make this {config.model_type} model: {_joined(error)}") from error
    model = model.float()  # learners keep and mix float32; --amp computes in bfloat16
    if not is_causal(model):
        raise RecipeError(f"a {config.model_type} model sees the tokens it is to predict: it is not causal")
    return model


@torch.no_grad()
def is_causal(model: nn.Module) -> bool:
    """Whether what follows a token leaves the logits at it as they are. (The library makes a BERT, too, if asked.)"""
    training = model.training
    model.eval()
    tokens = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 0]])
    one, other = model(input_ids=tokens).logits[:, :3]
    model.train(training)
    return torch.allclose(one, other, atol=1e-5)


def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens, use_cache=False).logits


def _fitted(config: PretrainedConfig, vocabulary: int, options: dict[str, Any]) -> PretrainedConfig:
    """With these keys, this vocabulary, and no tokens of special meaning, which could lie outside of it."""
    for key, value in options.items():
        if not hasattr(config, key):
            raise RecipeError(f"model_options: a {config.model_type} model's configuration has no {key!r}")
        if key == "vocab_size":
            raise RecipeError("model_options: vocab_size cannot be chosen: it is the tokenizer's")
        setattr(config, key, value)
    config.vocab_size = vocabulary
    for name in NAMED_TOKENS:
        setattr(config, name, None)
    return config


def _check_positions(config: PretrainedConfig, name: str, positions: int) -> None:
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and longest < positions:
        raise RecipeError(f"model {name} has {longest} positions: data_options.block_size must not be above")


def _load(name: str, config: PretrainedConfig, may_fetch: bool) -> nn.Module:
    local = _is_local(name, may_fetch)
    model: nn.Module = _transformers().AutoModelForCausalLM.from_pretrained(name, config=config, local_files_only=local)
    return model


def _is_local(name: str, may_fetch: bool) -> bool:
    return not may_fetch or Path(name).is_dir()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise RecipeError(f"models gpt2 and {PREFIX}NAME need the transformers library: {HELP}") from error
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _joined(error: BaseException) -> str:
    return " ".join(str(error).split())
