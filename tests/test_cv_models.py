"""The image models against the known numbers of parameters, torchvision's networks, and their equations."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torchvision
from conftest import PROGRAMS
from torch import nn
from torch.nn import functional as F
from torchvision.models.densenet import DenseNet
from torchvision.models.efficientnet import MBConv, MBConvConfig
from torchvision.models.googlenet import Inception
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.vgg import cfgs as vgg_columns
from torchvision.models.vgg import make_layers as vgg_layers

from benchmarks.cv import models
from benchmarks.cv.models import (
    blocks,
    efficientnet,
    googlenet,
    mobilenet,
    mobilenetv2,
    resnext,
    senet,
    shufflenet,
    vgg,
)
from benchmarks.cv.models.blocks import Shape
from horovod_dpsgd.errors import RecipeError

OURS = list(models.MODELS)
CONVOLUTIONAL = [name for name in OURS if name != "mlp"]
WITHOUT_NORM = ["mlp", "vgg11-plain", "vgg16-plain", "alexnet-plain"]

# Counted once outside this project: CIFAR-10's with 10 classes, ImageNet's with 1000
PARAMETERS = {
    "efficientnet-b0": 3_599_686,
    "efficientnet-b0-2019": 2_912_089,
    "vgg19": 20_040_522,
    "resnet18": 11_173_962,
    "densenet121": 6_956_298,
    "mobilenet": 3_217_226,
    "mobilenetv2": 2_296_922,
    "shufflenet-g2": 887_582,
    "shufflenet-g3": 862_768,
    "googlenet": 6_166_250,
    "resnext29-2x64d": 9_128_778,
    "resnext29-32x4d": 4_774_218,
    "senet18": 11_260_354,
    "alexnet": 61_100_840,
    "vgg11": 132_863_336,
    "vgg11-bn": 132_868_840,
    "resnet50": 25_557_032,
    "resnext50": 25_028_904,
    "densenet161": 28_681_000,
}
# Height and width of what is pooled at the end, of a 32 x 32 image: numbers of parameters do not tell the strides
LAST_MAP = {
    "efficientnet-b0": 2,
    "efficientnet-b0-2019": 1,
    "vgg19": 1,
    "resnet18": 4,
    "densenet121": 4,
    "mobilenet": 2,
    "mobilenetv2": 4,
    "shufflenet-g2": 4,
    "shufflenet-g3": 4,
    "googlenet": 8,
    "resnext29-2x64d": 8,
    "resnext29-32x4d": 8,
    "senet18": 4,
}


def on_meta(name, **more):
    with torch.device("meta"):
        return models.make(name, **more)


def count(model):
    return sum(p.numel() for p in model.parameters())


def images(batch=2, channels=3, size=32, seed=0):
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(seed))


# ---- sizes ----


@pytest.mark.parametrize("name", PARAMETERS)
def test_numbers_of_parameters_are_the_known_ones(name):
    classes = 1000 if name in models.imagenet.PAPER else 10
    assert count(on_meta(name, classes=classes)) == PARAMETERS[name]


@pytest.mark.parametrize(("depth", "parameters"), [(11, 9_231_114), (16, 14_728_266)])
def test_vgg_of_other_depths_has_the_known_numbers_too(depth, parameters):
    with torch.device("meta"):
        assert count(vgg.vgg_norm(depth, Shape(10, 1.0, 32, 3))) == parameters


def test_every_model_of_ours_has_a_known_number_or_is_described():
    assert set(OURS) - set(PARAMETERS) == set(WITHOUT_NORM)
    assert count(on_meta("mlp", image_size=28, channels=1)) == 42_310  # 784-50-50-10


def test_vgg11_plain_has_the_layers_it_says():
    convolutions = [(3, 16), (16, 32), (32, 64), (64, 64), (64, 128), (128, 128), (128, 128), (128, 128)]
    linear = [(128, 256), (256, 256), (256, 10)]
    expected = sum(9 * i * o + o for i, o in convolutions) + sum(i * o + o for i, o in linear)
    model = on_meta("vgg11-plain")
    assert [(c.in_channels, c.out_channels) for c in model.modules() if isinstance(c, nn.Conv2d)] == convolutions
    assert [(c.in_features, c.out_features) for c in model.modules() if isinstance(c, nn.Linear)] == linear
    assert count(model) == expected


def test_alexnet_plain_is_a_quarter_of_alexnet():
    def outputs(model):
        convolutions = [c.out_channels for c in model.modules() if isinstance(c, nn.Conv2d)]
        return convolutions, [c.out_features for c in model.modules() if isinstance(c, nn.Linear)]

    (ours, our_linear), (theirs, their_linear) = outputs(on_meta("alexnet-plain")), outputs(on_meta("alexnet"))
    assert [4 * channels for channels in ours] == theirs
    assert len(our_linear) == len(their_linear)


@pytest.mark.parametrize("name", LAST_MAP)
def test_the_last_map_has_the_known_size(name):
    model = on_meta(name)
    sizes = []
    pool = next(layer for layer in model.modules() if isinstance(layer, nn.AdaptiveAvgPool2d) and layer in model.head)
    pool.register_forward_hook(lambda _layer, inputs, _output: sizes.append(inputs[0].shape[2:]))
    model(torch.empty(2, 3, 32, 32, device="meta"))
    assert sizes == [(LAST_MAP[name],) * 2]


# ---- any shape ----


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize(("size", "channels", "classes"), [(28, 1, 7), (45, 2, 3)])
def test_logits_for_images_of_any_size(name, size, channels, classes):
    model = on_meta(name, classes=classes, width=0.25, image_size=size, channels=channels)
    assert model(torch.empty(2, channels, size, size, device="meta")).shape == (2, classes)


@pytest.mark.parametrize("name", OURS)
def test_a_model_can_be_trained(name):
    """To tell 8 images apart, with a finite gradient for every parameter: what is disconnected or dead could not."""
    torch.manual_seed(0)
    model = models.make(name, width=0.25, image_size=16)
    batch, labels = images(batch=8, size=16), torch.arange(8)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        loss = F.cross_entropy(model(batch), labels)
        if loss < 1.0:
            return
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
    pytest.fail(f"the loss is still {float(loss):.3f}")


@pytest.mark.parametrize("name", OURS)
def test_width_scales_the_number_of_parameters(name):
    sizes = [count(on_meta(name, width=width)) for width in (0.03, 0.3, 1.0, 2.0)]
    assert sizes == sorted(set(sizes))
    ratio = sizes[3] / sizes[2]
    assert (1.9 if name == "mlp" else 3.0) < ratio < 4.1  # matrices grow with the square; the mlp's first does not


def test_scaled_channels_are_multiples():
    shape = partial(Shape, 10, image_size=32, channels=3)
    assert [shape(width).scaled(24) for width in (0.01, 0.25, 0.5, 1.0, 1.1, 1.3)] == [4, 8, 12, 24, 28, 32]
    assert [shape(width).scaled(240, 12) for width in (0.01, 0.5, 1.0, 1.07)] == [12, 120, 240, 252]


# ---- against torchvision ----


def with_weights_of(ours, theirs):
    """Both in double precision, with torchvision's weights, matched by their order; BatchNorms' are made random."""
    for layer in theirs.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.3)
    values = theirs.state_dict().values()
    ours.load_state_dict(dict(zip(ours.state_dict(), values, strict=True)))
    return ours.double(), theirs.double()


def assert_equal_outputs(ours, theirs, inputs):
    """In training, where BatchNorm uses the batch, and afterwards in evaluation, where it uses what it remembers."""
    torch.manual_seed(1)
    ours, theirs = with_weights_of(ours, theirs)
    for training in (True, False):
        ours.train(training), theirs.train(training)
        torch.testing.assert_close(ours(inputs.double()), theirs(inputs.double()))


def test_resnet18_is_torchvisions_with_another_stem():
    theirs = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    assert_equal_outputs(models.make("resnet18"), theirs, images())


def test_densenet121_is_torchvisions_with_another_stem():
    theirs = DenseNet(32, (6, 12, 24, 16), 64, num_classes=10)
    theirs.features.conv0 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.features.norm0 = theirs.features.relu0 = theirs.features.pool0 = nn.Identity()
    assert_equal_outputs(models.make("densenet121"), theirs, images())


@pytest.mark.parametrize(
    ("column", "name", "options"),
    [
        ("E", "vgg19", {}),
        ("A", "vgg11-plain", {"width": 4.0}),
        ("A", "vgg11-plain", {"width": 4.0, "batch_norm": True}),
        ("D", "vgg16-plain", {"width": 4.0}),
    ],
)
def test_vgg_has_torchvisions_convolutions(column, name, options):
    batch_norm = name == "vgg19" or "batch_norm" in options
    theirs = vgg_layers(vgg_columns[column], batch_norm=batch_norm)
    assert_equal_outputs(models.make(name, **options).body, theirs, images())


@pytest.mark.parametrize("groups", [2, 32])
@pytest.mark.parametrize(("inputs", "stride"), [(256, 1), (64, 2)])
def test_resnext_has_torchvisions_bottleneck(groups, inputs, stride):
    """Twice the channels of the groups, where torchvision's puts out four times a quarter of its base width of 64."""
    changes = nn.Sequential(nn.Conv2d(inputs, 256, 1, stride, bias=False), nn.BatchNorm2d(256)) if stride == 2 else None
    theirs = Bottleneck(inputs, 64, stride, changes, groups, base_width=128 // groups)
    assert_equal_outputs(resnext.bottleneck(inputs, 256, stride, groups), theirs, images(3, inputs, 8))


@pytest.mark.parametrize(("outputs", "stride"), [(8, 1), (12, 2)])
def test_mobilenetv2_has_torchvisions_inverted_residual(outputs, stride):
    theirs = InvertedResidual(8, outputs, stride, expand_ratio=6, norm_layer=nn.BatchNorm2d)
    for layer in theirs.modules():
        for name, child in layer.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(layer, name, nn.ReLU())
    assert_equal_outputs(mobilenetv2.inverted_residual(8, outputs, stride, 6), theirs, images(3, 8, 9))


@pytest.mark.parametrize(("outputs", "stride", "kernel"), [(8, 1, 3), (8, 1, 5), (16, 1, 5), (8, 2, 5)])
def test_efficientnet_has_torchvisions_mbconv(outputs, stride, kernel):
    config = MBConvConfig(6, kernel, stride, 8, outputs, 1)
    theirs = MBConv(config, stochastic_depth_prob=0.0, norm_layer=nn.BatchNorm2d)
    assert_equal_outputs(efficientnet.mbconv(8, outputs, stride, 6, kernel), theirs, images(3, 8, 9))


def test_squeeze_and_excitation_is_torchvisions():
    assert_equal_outputs(blocks.SqueezeExcite(8, 3), torchvision.ops.SqueezeExcitation(8, 3), images(3, 8, 5))


def test_shuffle_is_pytorchs():
    for groups in (1, 2, 3):
        inputs = images(2, 12, 3)
        assert torch.equal(shufflenet.Shuffle(groups)(inputs), nn.ChannelShuffle(groups)(inputs))


def test_googlenet_has_torchvisions_inception_but_for_the_second_3x3():
    """Which is made the identity here, as torchvision's has only one."""
    torch.manual_seed(0)
    ours, theirs = (
        googlenet.inception(6, 4, 3, 8, 2, 4, 5).double().eval(),
        Inception(6, 4, 3, 8, 2, 4, 5).double().eval(),
    )
    second = ours[2][2]
    nn.init.dirac_(second[0].weight)
    kernels = [m for m in ours.modules() if isinstance(m, nn.Conv2d) and m is not second[0]]
    for kernel, (conv, norm) in zip(kernels, _basic_convolutions(theirs), strict=True):
        kernel.weight.data.copy_(conv.weight)
        norm.eps = 1e-5
    for kernel in [*kernels, second[0]]:
        nn.init.zeros_(kernel.bias)
    second[1].eps = 0.0
    inputs = images(2, 6, 7).double()
    torch.testing.assert_close(ours(inputs), theirs(inputs))


def _basic_convolutions(inception):
    return [(m.conv, m.bn) for m in inception.modules() if hasattr(m, "conv")]


# ---- against their equations, where torchvision has no counterpart; BatchNorms are fresh: gain 1, bias 0 ----


def normalized(x):
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()


def gate(x, squeeze, expand):
    hidden = F.relu(F.conv2d(x.mean((2, 3), keepdim=True), squeeze.weight, squeeze.bias))
    return torch.sigmoid(F.conv2d(hidden, expand.weight, expand.bias))


def convolutions(block):
    return [layer for layer in block.modules() if isinstance(layer, nn.Conv2d)]


@pytest.mark.parametrize(("outputs", "stride"), [(16, 1), (32, 1), (32, 2)])
def test_senet_block_follows_its_equations(outputs, stride):
    torch.manual_seed(0)
    block, x = senet.PreActivationBlock(16, outputs, stride).double(), images(3, 16, 6).double()
    first, second, squeeze, expand, *changes = convolutions(block)
    before = F.relu(normalized(x))
    shortcut = F.conv2d(before, changes[0].weight, stride=stride) if changes else x
    middle = F.conv2d(before, first.weight, stride=stride, padding=1)
    result = F.conv2d(F.relu(normalized(middle)), second.weight, padding=1)
    assert bool(changes) == (outputs != 16 or stride != 1)
    torch.testing.assert_close(block(x), result * gate(result, squeeze, expand) + shortcut)


@pytest.mark.parametrize(("outputs", "stride"), [(16, 1), (32, 1), (16, 2)])
def test_efficientnet_2019_block_follows_its_equations(outputs, stride):
    torch.manual_seed(0)
    block, x = efficientnet.Block2019(16, outputs, stride, expansion=6).double(), images(3, 16, 6).double()
    widen, deep, narrow, squeeze, expand, *changes = convolutions(block)
    wide = F.relu(normalized(F.conv2d(x, widen.weight)))
    wide = F.relu(normalized(F.conv2d(wide, deep.weight, stride=stride, padding=1, groups=96)))
    result = normalized(F.conv2d(wide, narrow.weight))
    shortcut = x
    if stride == 2:
        shortcut = result
    elif changes:
        shortcut = normalized(F.conv2d(x, changes[0].weight))
    torch.testing.assert_close(block(x), gate(result, squeeze, expand) * result + shortcut)


@pytest.mark.parametrize("stride", [1, 2])
def test_mobilenet_block_is_a_diagonal_and_a_1x1_convolution(stride):
    torch.manual_seed(0)
    block, x = mobilenet.depthwise_separable(6, 10, stride).double(), images(3, 6, 7).double()
    deep, point = convolutions(block)
    diagonal = torch.diag_embed(deep.weight[:, 0].permute(1, 2, 0)).permute(
        2, 3, 0, 1
    )  # as a dense kernel [6, 6, 3, 3]
    between = F.relu(normalized(F.conv2d(x, diagonal, stride=stride, padding=1)))
    torch.testing.assert_close(block(x), F.relu(normalized(F.conv2d(between, point.weight))))


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(12, 36, 2), (24, 24, 1), (24, 48, 2)])
def test_shufflenet_unit_follows_its_equations(inputs, outputs, stride):
    torch.manual_seed(0)
    block = shufflenet.unit(inputs, outputs, stride, groups=3, stem=12).double()
    x = images(3, inputs, 7).double()
    reduce, deep, widen = convolutions(block)
    first_groups = 1 if inputs == 12 else 3
    between = F.relu(normalized(F.conv2d(x, reduce.weight, groups=first_groups)))
    order = torch.arange(len(reduce.weight)).view(first_groups, -1).t().flatten()
    between = F.conv2d(between[:, order], deep.weight, stride=stride, padding=1, groups=len(deep.weight))
    result = normalized(F.conv2d(F.relu(normalized(between)), widen.weight, groups=3))
    both = torch.cat([result, F.avg_pool2d(x, 3, 2, 1)], 1) if stride == 2 else result + x
    assert both.shape[1] == outputs
    torch.testing.assert_close(block(x), F.relu(both))


# ---- modes, and initial weights ----


@pytest.mark.parametrize("name", OURS)
def test_only_batch_norm_looks_at_other_images_and_only_in_training(name):
    torch.manual_seed(0)
    options = {"dropout": 0.0} if name == "efficientnet-b0" else {}
    model, batch = models.make(name, width=0.25, **options), images(batch=4)

    def depends_on_the_others():
        with torch.no_grad():
            return not torch.allclose(model(batch)[:2], model(batch[:2]), rtol=1e-4, atol=1e-5)

    assert depends_on_the_others() == (name not in WITHOUT_NORM)
    model.eval()
    assert not depends_on_the_others()


@pytest.mark.parametrize("name", ["efficientnet-b0", "vgg11-plain", "alexnet-plain"])
def test_dropout_is_random_in_training_alone(name):
    torch.manual_seed(0)
    model, batch = models.make(name, width=0.5, dropout=0.5), images()
    assert sum(isinstance(layer, nn.Dropout) and layer.p == 0.5 for layer in model.modules()) >= 1
    assert not torch.equal(model(batch), model(batch))
    model.eval()
    assert torch.equal(model(batch), model(batch))


def test_efficientnet_drops_a_fifth_unless_told_otherwise():
    def dropouts(**options):
        return [layer.p for layer in on_meta("efficientnet-b0", **options).modules() if isinstance(layer, nn.Dropout)]

    assert dropouts() == [0.2] and dropouts(dropout=0) == []


@pytest.mark.parametrize("name", ["vgg16-plain", "alexnet-plain"])
def test_he_keeps_the_signal_where_pytorchs_initial_weights_lose_it(name):
    """Of images with variance 1, the mean square in the last hidden layer stays near 1: He et al. 2015, Section 2.2."""

    def last_mean_square(init):
        torch.manual_seed(0)
        model, seen = models.make(name, width=2.0, init=init), []
        model.head[-1].register_forward_hook(
            lambda _layer, inputs, _output: seen.append(float(inputs[0].square().mean()))
        )
        with torch.no_grad():
            model(images(batch=4))
        return seen[0]

    assert 0.1 < last_mean_square("he") < 10
    assert last_mean_square("torch") < 0.01


def test_he_weights_have_the_stated_variance():
    torch.manual_seed(0)
    *layers, last = [m for m in models.make("vgg11-plain").modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for layer in layers:
        inputs = layer.weight[0].numel()
        assert float(layer.weight.detach().var() * inputs) == pytest.approx(2.0, rel=0.2)
        assert not layer.bias.any()
    assert last.bias.any()  # PyTorch's own


# ---- the fully connected network ----


@pytest.mark.parametrize(("kind", "activation"), [("relu", nn.ReLU), ("tanh", nn.Tanh), ("sigmoid", nn.Sigmoid)])
def test_mlp_is_that_of_the_mnist_task_bit_for_bit(kind, activation):
    torch.manual_seed(3)
    reference = nn.Sequential(
        *[nn.Linear(784, 20), activation()],
        *[nn.Linear(20, 30), activation()],
        nn.Linear(30, 10),
    )
    with torch.no_grad():
        for p in reference.parameters():
            p.mul_(0.7)
    torch.manual_seed(3)
    model = models.make("mlp", image_size=28, channels=1, hidden=[20, 30], activation=kind, init_scale=0.7)
    assert list(model.state_dict()) == list(reference.state_dict())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), reference.parameters(), strict=True))
    batch = images(5, 1, 28)
    assert torch.equal(model(batch.flatten(1)), reference(batch.flatten(1)))
    assert torch.equal(model(batch), reference(batch.flatten(1)))


# ---- names and complaints ----


@pytest.mark.parametrize(
    ("name", "builder"),
    [
        ("vgg11-bn", "vgg11_bn"),
        ("resnext50", "resnext50_32x4d"),
        ("resnet34", "resnet34"),
        ("squeezenet1_1", "squeezenet1_1"),
        ("torchvision/resnet18", "resnet18"),
    ],
)
def test_torchvisions_models_are_torchvisions(name, builder):
    with torch.device("meta"):
        theirs = torchvision.models.get_model(builder, num_classes=17)
    ours = on_meta(name, classes=17)
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (ours, theirs)]
    assert type(ours) is type(theirs) and shapes[0] == shapes[1]


@pytest.mark.parametrize(("name", "size"), [("inception_v3", 299), ("torchvision/googlenet", 64), ("vit_b_32", 64)])
def test_torchvisions_models_put_out_logits_alone_for_the_size_asked_for(name, size):
    model = on_meta(name, classes=5, image_size=size)
    assert model.training and model(torch.empty(2, 3, size, size, device="meta")).shape == (2, 5)


def complaint(call, *arguments, **more):
    with pytest.raises(RecipeError) as raised:
        call(*arguments, **more)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("call", [models.make, models.check])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "resnet"}, ["'resnet'", *models.NAMES]),
        ({"name": "quantized_resnet18"}, ["unknown model"]),
        ({"name": "torchvision/senet18"}, ["unknown model"]),
        ({"name": "fcn_resnet50"}, ["unknown model"]),  # not a classifier
        ({"name": "resnet18", "dropout": 0.1}, ["resnet18", "'dropout'", "none"]),
        ({"name": "vgg11-plain", "depth": 3}, ["vgg11-plain", "'depth'", "batch_norm, dropout, init"]),
        ({"name": "resnext29-2x64d", "groups": 3}, ["resnext29-2x64d", "'groups'"]),
        ({"name": "vgg11-plain", "dropout": 1.0}, ["dropout", "1.0"]),
        ({"name": "alexnet-plain", "dropout": "half"}, ["dropout", "'half'"]),
        ({"name": "efficientnet-b0", "dropout": True}, ["dropout", "True"]),
        ({"name": "vgg11-plain", "batch_norm": "yes"}, ["batch_norm", "'yes'"]),
        ({"name": "alexnet-plain", "batch_norm": 1}, ["batch_norm", "1"]),
        ({"name": "vgg11-plain", "init": "xavier"}, ["init", "he, torch"]),
        ({"name": "mlp", "activation": "swish"}, ["activation", "relu, tanh, sigmoid"]),
        ({"name": "mlp", "activation": ["relu"]}, ["activation", "relu, tanh, sigmoid"]),
        ({"name": "mlp", "hidden": 50}, ["hidden", "50"]),
        ({"name": "mlp", "hidden": [50, 0]}, ["hidden", "[50, 0]"]),
        ({"name": "mlp", "hidden": [50, 2.5]}, ["hidden", "2.5"]),
        ({"name": "mlp", "init_scale": float("nan")}, ["init_scale", "nan"]),
        ({"name": "mlp", "init_scale": "big"}, ["init_scale", "'big'"]),
        ({"name": "resnet18", "width": 0.0}, ["width", "0.0"]),
        ({"name": "resnet18", "width": float("nan")}, ["width", "nan"]),
        ({"name": "resnet18", "width": float("inf")}, ["width", "inf"]),
        ({"name": "resnet18", "classes": 0}, ["classes", "0"]),
        ({"name": "resnet18", "image_size": 0}, ["image_size", "0"]),
        ({"name": "resnet18", "channels": -1}, ["channels", "-1"]),
        ({"name": "alexnet", "width": 0.5, "image_size": 224}, ["alexnet", "width", "0.5"]),
        ({"name": "alexnet", "channels": 1, "image_size": 224}, ["alexnet", "3 channels", "1"]),
        ({"name": "alexnet", "depth": 3, "image_size": 224}, ["alexnet", "depth"]),
        ({"name": "alexnet", "weights": "DEFAULT", "image_size": 224}, ["alexnet", "weights"]),
        ({"name": "alexnet", "dropout": "half", "image_size": 224}, ["alexnet", "half"]),
        ({"name": "vit_b_32", "image_size": 33}, ["vit_b_32", "33"]),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_what_cannot_be_made_is_one_line(call, arguments, words):
    text = complaint(call, **arguments)
    assert all(word in text for word in words), text


def test_check_finds_images_that_are_too_small():
    text = complaint(models.check, "alexnet", image_size=32)
    assert "alexnet" in text and "32 x 32" in text
    models.check("alexnet", image_size=64)


@pytest.mark.parametrize("name", [*OURS, "resnet50"])
def test_check_draws_no_random_numbers(name):
    before = torch.get_rng_state()
    models.check(name, image_size=64)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.parametrize("algo", ["ssgd", "ssgd-star", "dpsgd", "adpsgd"])
def test_every_model_takes_steps_under_every_algorithm(mpirun, tmp_path, algo):
    out = mpirun(2, PROGRAMS / "all_models_train.py", algo, tmp_path, timeout=400).stdout
    assert out.count(": trained") == len(models.NAMES) - 2
