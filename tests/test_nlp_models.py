"""Language models: the paper's against PyTorch's own attention and its counted parameters; the library's by name."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY
from torch import nn

from benchmarks.nlp import models
from benchmarks.nlp.models import hugging_face
from benchmarks.nlp.models.transformer import CausalAttention, Shape, Transformer
from horovod_dpsgd.errors import RecipeError

SMALL = {"width": 24, "hidden": 40, "heads": 4, "layers": 3}


def small(**options) -> nn.Module:
    return models.find("transformer", 50, 12, SMALL | options).make()


def complaint(name: str, **options) -> str:
    with pytest.raises(RecipeError) as raised:
        models.find(name, 50, 12, options).make()
    line = str(raised.value)
    assert len(line.splitlines()) == 1, line
    return line


# ---- the paper's ----


def test_the_papers_model_has_the_parameters_of_the_tutorials():
    with torch.device("meta"):
        model = Transformer(28_996, 256, Shape())
    assert sum(p.numel() for p in model.parameters()) == 50_396_360


@pytest.mark.parametrize("training", [False, True])
def test_fused_attention_is_multihead_attention_under_a_causal_mask(training):
    torch.manual_seed(0)
    ours, reference = CausalAttention(24, 4, 0.0), nn.MultiheadAttention(24, 4, batch_first=True)
    reference.in_proj_weight.data, reference.in_proj_bias.data = ours.inputs.weight.data, ours.inputs.bias.data
    reference.out_proj.load_state_dict(ours.output.state_dict())
    ours.train(training)
    h = torch.randn(3, 7, 24)
    mask = nn.Transformer.generate_square_subsequent_mask(7)
    expected, _ = reference(h, h, h, attn_mask=mask, is_causal=True, need_weights=False)
    torch.testing.assert_close(ours(h), expected, rtol=1e-5, atol=1e-6)


def test_the_model_is_its_equations():
    """h <- LN(h); h <- h + attention(h); h <- LN(h); h <- h + MLP(h); logits from the embedding, no last LayerNorm."""
    model = small(layer_norm_init="ones").eval()
    tokens = torch.randint(0, 50, (2, 9))
    h = model.tokens.weight[tokens] + model.positions.weight[:9]
    for layer in model.layers:
        h = layer.norm_1(h)
        h = h + layer.attention(h)
        h = layer.norm_2(h)
        h = h + layer.mlp[2](torch.relu(layer.mlp[0](h)))
    torch.testing.assert_close(models.logits(model, tokens), h @ model.tokens.weight.t())


def test_a_compiled_model_is_called_as_the_model():
    model, tokens = small().eval(), torch.randint(0, 50, (2, 9))
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(models.logits(compiled, tokens), models.logits(model, tokens))


def test_dropout_is_on_in_training_alone():
    model, tokens = small(dropout=0.5), torch.randint(0, 50, (2, 9))
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


def test_no_token_sees_what_follows():
    model = small().eval()
    tokens = torch.randint(0, 50, (1, 12))
    other = tokens.clone()
    other[:, 6:] = (other[:, 6:] + 1) % 50
    torch.testing.assert_close(model(tokens)[:, :6], model(other)[:, :6])
    assert not torch.allclose(model(tokens)[:, 6:], model(other)[:, 6:])


def test_weights_begin_as_the_tutorials():
    torch.manual_seed(3)
    model = models.find("transformer", 5000, 256, {"width": 100, "hidden": 400, "heads": 4, "layers": 3}).make()
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert not p.any(), name
        elif "attention.inputs" in name:  # Xavier's, of all three together
            bound = math.sqrt(6 / (100 + 300))
            assert 0.9 * bound < p.abs().max() <= bound, name
        else:
            assert p.std().item() == pytest.approx(0.02, rel=0.25), name
    gains = models.layer_norm_gains(model)
    assert len(gains) == 6 and all(abs(gain.mean()) < 0.01 for gain in gains)


@pytest.mark.parametrize(("init", "std"), [("ones", 0.0), ("normal", 0.02)])
@pytest.mark.parametrize("name", ["transformer", "gpt2"])
def test_the_gains_of_layer_norms_begin_as_asked(name, init, std):
    pytest.importorskip("transformers")
    sizes = SMALL if name == "transformer" else {"n_embd": 24, "n_layer": 3, "n_head": 4}
    gains = torch.cat(models.layer_norm_gains(models.find(name, 50, 12, sizes | {"layer_norm_init": init}).make()))
    assert gains.std().item() == pytest.approx(std, rel=0.3)
    assert gains.mean().item() == pytest.approx(1.0 if init == "ones" else 0.0, abs=0.01)


def test_the_same_seed_makes_the_same_model():
    weights = []
    for _ in range(2):
        torch.manual_seed(5)
        weights.append(small().state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depth": 3}, "model_options.depth: unknown; known are width, hidden, heads, layers, dropout, init_std"),
        ({"width": 25, "heads": 4}, "width 25 is no multiple of 4 heads"),
        ({"layers": 0}, "model_options.layers: Input should be greater than 0"),
        ({"dropout": 1.0}, "model_options.dropout: Input should be less than 1"),
        ({"width": "wide"}, "model_options.width: Input should be a valid integer"),
        ({"layer_norm_init": "zeros"}, "model_options.layer_norm_init: Input should be 'normal' or 'ones'"),
        ({"pretrained": True}, "there are no weights for transformer"),
    ],
)
def test_a_wrong_option_is_named(options, words):
    assert words in complaint("transformer", **options)


def test_an_unknown_model_is_named():
    assert "unknown model 'gpt5': choose transformer, gpt2, or hf:NAME_OR_FOLDER" in complaint("gpt5")


def test_the_papers_model_does_without_the_library():
    """Which takes seconds of every learner's start."""
    program = "import sys, benchmarks.nlp.train; print([m for m in ('transformers', 'tokenizers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- the library's ----


@pytest.fixture
def library():
    return pytest.importorskip("transformers")


def test_gpt2_comes_in_the_papers_sizes(library):
    config = hugging_face.gpt2_config(28_996, 256, {})
    assert (config.n_embd, config.n_inner, config.n_head, config.n_layer) == (410, 2100, 10, 16)
    assert (config.n_positions, config.vocab_size, config.resid_pdrop) == (256, 28_996, 0.1)
    with torch.device("meta"):
        model = library.GPT2LMHeadModel(config)
    assert sum(p.numel() for p in model.parameters()) == 50_396_360 + 820, "the paper's and a last LayerNorm"


def test_any_key_of_its_configuration_may_be_given(library):
    model = models.find("gpt2", 50, 12, {"n_embd": 24, "n_layer": 2, "n_head": 4, "activation_function": "relu"}).make()
    assert model.config.activation_function == "relu"
    assert models.logits(model, torch.randint(0, 50, (2, 9))).shape == (2, 9, 50)


def test_a_key_that_gpt2_does_not_have_is_named(library):
    assert "a gpt2 model's configuration has no 'n_heads'" in complaint("gpt2", n_heads=4)
    assert "vocab_size cannot be chosen" in complaint("gpt2", vocab_size=4)
    for heads in (4, 0):
        assert "transformers cannot make this gpt2 model" in complaint("gpt2", n_embd=25, n_head=heads)
    assert "model gpt2 has 11 positions: data_options.block_size must not be above" in complaint("gpt2", n_positions=11)


@pytest.fixture
def llama(library, tmp_path):
    config = library.LlamaConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=16, vocab_size=70,
    )  # fmt: skip
    torch.manual_seed(1)
    model = library.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "llama")
    return tmp_path / "llama", model


def test_a_model_from_a_folder_takes_the_texts_vocabulary(llama):
    folder, saved = llama
    fresh = models.find(f"hf:{folder}", 50, 12, {"num_hidden_layers": 1}).make()
    assert fresh.config.vocab_size == 50 and len(fresh.model.layers) == 1
    assert models.logits(fresh, torch.randint(0, 50, (2, 9))).shape == (2, 9, 50)
    its, theirs = (model.model.layers[0].mlp.up_proj.weight for model in (fresh, saved))
    assert its.shape == theirs.shape and not torch.equal(its, theirs)


def test_or_its_weights(llama):
    folder, saved = llama
    taken = models.find(f"hf:{folder}", 50, 12, {"pretrained": True}).make()
    assert {p.dtype for p in taken.parameters()} == {torch.float32}
    tokens = torch.randint(0, 50, (2, 9))
    torch.testing.assert_close(models.logits(taken.eval(), tokens), models.logits(saved.eval(), tokens))


def test_what_does_not_fit_a_model_from_a_folder_is_named(llama, tmp_path):
    folder, _ = llama
    with pytest.raises(RecipeError, match="has 16 positions"):
        models.find(f"hf:{folder}", 50, 17, {})
    with pytest.raises(RecipeError, match="knows 70 tokens, but the text has 71"):
        models.find(f"hf:{folder}", 71, 12, {"pretrained": True})
    assert "cannot be chosen for pretrained weights" in complaint(f"hf:{folder}", pretrained=True, hidden_size=8)
    assert f"model hf:{tmp_path} cannot be read" in complaint(f"hf:{tmp_path}")


def test_a_model_that_sees_what_it_is_to_predict_is_refused(library, tmp_path):
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    library.BertConfig(**sizes, max_position_embeddings=16).save_pretrained(tmp_path)
    assert "it is not causal" in complaint(f"hf:{tmp_path}")
    assert models.find(f"hf:{tmp_path}", 50, 12, {"is_decoder": True}).make()
