"""Language models by name:

transformer         the paper's, in the form of the tutorial it took it from (options: `transformer.Shape`)
gpt2                GPT-2 of the transformers library in the same sizes (options: any key of GPT2Config)
hf:NAME_OR_FOLDER   any causal model of that library; pretrained: true takes its weights too, otherwise they are fresh
                    (options: any key of its configuration)

All know the option layer_norm_init: whether the gains of LayerNorms begin at 1 ("ones") or are drawn like other weights
("normal", N(0, 0.02)). The tutorial draws them, which may be what its need of a warm-up hangs on.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from benchmarks.nlp.models import hugging_face
from benchmarks.nlp.models.transformer import Shape, Transformer
from benchmarks.options import Options, parse
from horovod_dpsgd.errors import RecipeError

__all__ = ["Model", "find", "logits"]

GAIN_STD = 0.02


class Common(Options):
    """Options of all models; pretrained is of hf: alone."""

    layer_norm_init: Literal["normal", "ones"] | None = None  # None: as the model has it by itself
    pretrained: bool = False


class Model(NamedTuple):
    """A model that was asked for and can be made, as often as wanted."""

    maker: Any
    layer_norm_init: str | None

    def make(self) -> nn.Module:
        """From PyTorch's random state as it is."""
        model: nn.Module = self.maker()
        if self.layer_norm_init is not None:
            for gain in layer_norm_gains(model):
                if self.layer_norm_init == "normal":
                    nn.init.normal_(gain, std=GAIN_STD)
                else:
                    nn.init.ones_(gain)
        return model


def find(name: str, vocabulary: int, positions: int, options: dict[str, Any], may_fetch: bool = True) -> Model:
    """The model of that name and `options`, for blocks of up to `positions` tokens.

    may_fetch: whether what `hf:` names may be loaded from the hub. Raises RecipeError for a name or option that is
    unknown or impossible.
    """
    names = Common.model_fields.keys()
    common = parse(Common, "model_options", {key: value for key, value in options.items() if key in names})
    others = {key: value for key, value in options.items() if key not in names}
    named = name.startswith(hugging_face.PREFIX)
    if common.pretrained and not named:
        raise RecipeError(f"model_options.pretrained: there are no weights for {name}, only for {hugging_face.PREFIX}")
    if name == "transformer":
        shape = parse(Shape, "model_options", others)
        return Model(partial(Transformer, vocabulary, positions, shape), common.layer_norm_init or "normal")
    if name == "gpt2":
        config = hugging_face.gpt2_config(vocabulary, positions, others)
        return Model(partial(hugging_face.make, config), common.layer_norm_init)
    if named:
        place = name.removeprefix(hugging_face.PREFIX)
        config = hugging_face.named_config(place, vocabulary, positions, others, common.pretrained, may_fetch)
        maker = partial(hugging_face.make, config, place if common.pretrained else None)
        return Model(maker, common.layer_norm_init)
    known = f"transformer, gpt2, or {hugging_face.PREFIX}NAME_OR_FOLDER"
    raise RecipeError(f"unknown model {name!r}: choose {known}")


def layer_norm_gains(model: nn.Module) -> list[Tensor]:
    """Also of the relatives of LayerNorm, as RMSNorm, that libraries define for themselves."""
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm) or type(m).__name__.endswith("RMSNorm")]
    weights = (getattr(m, "weight", None) for m in norms)
    return [weight for weight in weights if isinstance(weight, Tensor)]


def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    """[B, T, vocabulary], from tokens [B, T]; the model may be what torch.compile has made of one."""
    ours = isinstance(getattr(model, "_orig_mod", model), Transformer)
    return model(tokens) if ours else hugging_face.logits(model, tokens)
