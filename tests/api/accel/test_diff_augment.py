"""DiffAugment against its operations pixel by pixel in float64, its random numbers, its seeds, what is left alone."""

import copy
import dataclasses
import importlib.util
import sys
import types
import warnings

import pytest
import torch
from torch import Tensor

from kernel_distill import accel
from kernel_distill.accel._call import Settings, VerificationError, accelerated, forget_calls
from kernel_distill.accel._fingerprint import fingerprint_of
from kernel_distill.accel._records import record
from kernel_distill.accel.registry._vico_parts import PARTS
from kernel_distill.accel.replacements import diff_augment as replacements

from .peers import peer_path

KNOWN = {target.name: target for target in PARTS if target.qualname == "DiffAugment"}
EVERYTHING = "color_crop_cutout_flip_scale_rotate"
EXACT = ("crop", "cutout", "flip")
SHAPES = {"square": (5, 3, 8, 8), "oblong": (3, 2, 6, 9), "one_row": (2, 1, 1, 7), "many": (18, 1, 5, 4)}

CALLS = [(name, seed) for name in KNOWN for seed in (-1, 0, 3) if seed == -1 or not name.startswith("rfad")]


class Param:
    """The interface of `ParamDiffAug`; its module is that of `peer`."""

    def __init__(self, **others):
        vars(self).update(
            aug_mode="M",
            prob_flip=0.5,
            ratio_scale=1.2,
            ratio_rotate=15.0,
            ratio_crop_pad=0.125,
            ratio_cutout=0.5,
        )
        vars(self).update(brightness=1.0, saturation=2.0, contrast=0.5)
        vars(self).update(others)


def sampled(x, where):
    """Images of float64 at (rows, columns), functions of a pixel's number, from the four pixels about each; else 0."""
    h, w = x.shape[2:]
    y, z = (places.expand(len(x), h, w) for places in where)
    out = torch.zeros_like(x)
    for i in range(h):
        for j in range(w):
            near = (1 - (y - i).abs()).clamp_min(0) * (1 - (z - j).abs()).clamp_min(0)
            out = out + near[:, None] * x[:, :, i : i + 1, j : j + 1]
    return out


class Operations:
    """The published operations, in float64 and by their meaning: of one kind of copies."""

    def __init__(self, attribute="Siamese", corners=False, seeds=True):
        self.attribute, self.corners, self.seeds = attribute, corners, seeds

    def seed(self, param):
        if self.seeds and param.latestseed != -1:
            torch.manual_seed(param.latestseed)
            param.latestseed += 1

    def draw(self, param, make):
        self.seed(param)
        numbers = make().double()
        return numbers[:1].expand(len(numbers)) if getattr(param, self.attribute) else numbers

    def rand_brightness(self, x, param):
        u = self.draw(param, lambda: torch.rand(len(x)))
        return x + ((u - 0.5) * param.brightness)[:, None, None, None]

    def rand_saturation(self, x, param):
        u = self.draw(param, lambda: torch.rand(len(x)))[:, None, None, None]
        grey = x.mean(1, keepdim=True)
        return grey + u * param.saturation * (x - grey)

    def rand_contrast(self, x, param):
        u = self.draw(param, lambda: torch.rand(len(x)))[:, None, None, None]
        grey = x.mean((1, 2, 3), keepdim=True)
        return grey + (u + param.contrast) * (x - grey)

    def rand_crop(self, x, param):
        places = []
        for size in x.shape[2:]:
            most = int(size * param.ratio_crop_pad + 0.5)
            shift = self.draw(param, lambda most=most: torch.randint(-most, most + 1, (len(x),)))
            places.append(torch.arange(size) + shift[:, None])
        return sampled(x, (places[0][:, :, None], places[1][:, None, :]))

    def rand_cutout(self, x, param):
        kept = []
        for size in x.shape[2:]:
            side = int(size * param.ratio_cutout + 0.5)
            middle = self.draw(
                param, lambda size=size, side=side: torch.randint(0, size + 1 - side % 2, (len(x),))
            )
            begin = (middle - side // 2)[:, None]
            kept.append((torch.arange(size) < begin) | (torch.arange(size) >= begin + side))
        return x * (kept[0][:, None, :, None] | kept[1][:, None, None, :])

    def rand_flip(self, x, param):
        u = self.draw(param, lambda: torch.rand(len(x)))
        return torch.stack(
            [image.flip(2) if a < param.prob_flip else image for image, a in zip(x, u, strict=True)]
        )

    def turned(self, x, xx, xy, yx, yy):
        h, w = x.shape[2:]
        half_h, half_w = ((h - 1) / 2, (w - 1) / 2) if self.corners else (h / 2, w / 2)
        across = ((torch.arange(w).double() - (w - 1) / 2) / (half_w or 1.0))[None, None, :]
        down = ((torch.arange(h).double() - (h - 1) / 2) / (half_h or 1.0))[None, :, None]
        xx, xy, yx, yy = (value[:, None, None] for value in (xx, xy, yx, yy))
        rows = (yx * across + yy * down) * half_h + (h - 1) / 2
        return sampled(x, (rows, (xx * across + xy * down) * half_w + (w - 1) / 2))

    def rand_scale(self, x, param):
        least = 1 / param.ratio_scale
        factors = [
            self.draw(param, lambda: torch.rand(len(x))) * (param.ratio_scale - least) + least
            for _ in range(2)
        ]
        zero = torch.zeros(len(x), dtype=torch.float64)
        return self.turned(x, factors[0], zero, zero, factors[1])

    def rand_rotate(self, x, param):
        u = self.draw(param, lambda: torch.rand(len(x)))
        angle = torch.deg2rad((u - 0.5) * 2 * param.ratio_rotate)
        return self.turned(x, angle.cos(), -angle.sin(), angle.sin(), angle.cos())

    def table(self):
        names = {"color": ("rand_brightness", "rand_saturation", "rand_contrast")}
        names |= {name: (f"rand_{name}",) for name in EVERYTHING.split("_")[1:]}
        return {
            name: [getattr(self, function) for function in functions] for name, functions in names.items()
        }

    def augment(self, x, strategy="", seed=-1, param=None):
        if strategy in ("", "none", "None"):
            return x
        setattr(param, self.attribute, seed != -1)
        param.latestseed = seed
        names = strategy.split("_")
        if param.aug_mode == "S":
            self.seed(param)
            names = [names[int(torch.randint(0, len(names), (1,)))]]
        made = x.double()
        for name in names:
            for function in self.table()[name]:
                made = function(made, param)
        return made.to(x.dtype)


KINDS = {
    "vico.DiffAugment": Operations(),
    "vico.DiffAugment_batchmode": Operations("batchmode", corners=True),
    "rfad.DiffAugment": Operations(seeds=False),
}


@pytest.fixture(autouse=True)
def peer(monkeypatch):
    """The module beside whose table the settings' class is."""
    made = types.ModuleType("invented_augmentation")
    made.AUGMENT_FNS = Operations().table()
    monkeypatch.setitem(sys.modules, made.__name__, made)
    monkeypatch.setattr(Param, "__module__", made.__name__)
    return made


@pytest.fixture
def verified(monkeypatch):
    for name in KNOWN:
        forget_calls(name)
    monkeypatch.setattr(Settings, "verify", 1000)
    yield
    for name in KNOWN:
        forget_calls(name)


def images(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stand_in(name, original):
    return accelerated(
        dataclasses.replace(KNOWN[name], hashes=(fingerprint_of(original),), requires={}), original
    )


def both(name, x, strategy, seed, param):
    """Of the definition and the replacement: value, gradient, random state left, attributes of the settings."""
    assert KNOWN[name].load("guard")(x, strategy, seed, param) is None
    for function in (KINDS[name].augment, KNOWN[name].load("replacement")):
        torch.manual_seed(11)
        leaf, mine = x.clone().requires_grad_(), copy.deepcopy(param)
        value = function(leaf, strategy, seed, mine)
        (gradient,) = torch.autograd.grad(value, leaf, images(x.shape, 5))
        yield value.detach(), gradient, torch.get_rng_state(), vars(mine)


@pytest.mark.parametrize("strategy", [*EVERYTHING.split("_"), EVERYTHING, "rotate_flip_crop"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("name", "seed"), CALLS)
def test_values_gradients_and_random_numbers_are_those_of_the_definition(name, seed, shape, strategy):
    expected, result = both(name, images(shape), strategy, seed, Param())
    assert torch.equal(expected[2], result[2])
    assert expected[3] == result[3]
    for wanted, found in zip(expected[:2], result[:2], strict=True):
        assert found.dtype == torch.float32
        assert found.is_contiguous()
        torch.testing.assert_close(found, wanted, rtol=0, atol=0 if strategy in EXACT else 1e-5)


@pytest.mark.parametrize("name", ["vico.DiffAugment", "vico.DiffAugment_batchmode"])
@pytest.mark.parametrize(
    "settings",
    [
        {"ratio_crop_pad": 0.9, "ratio_cutout": 0.2, "prob_flip": 0.2},
        {"ratio_crop_pad": 1.0, "ratio_cutout": 1.0, "prob_flip": 1},
        {"ratio_crop_pad": 0.0, "ratio_cutout": 0.0, "prob_flip": 0},
        {"ratio_scale": 2.5, "ratio_rotate": 80, "brightness": 3.0, "saturation": 0, "contrast": 2},
    ],
)
@pytest.mark.parametrize("seed", [-1, 7])
def test_other_settings(name, settings, seed):
    expected, result = both(name, images((4, 3, 7, 6)), EVERYTHING, seed, Param(**settings))
    assert torch.equal(expected[2], result[2])
    torch.testing.assert_close(result[0], expected[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", KINDS)
def test_one_operation_is_drawn(name, verified):
    """Through what is installed, the definition beside it on every call."""
    function, before = stand_in(name, KINDS[name].augment), record(name).verified
    x, param = images((4, 3, 8, 8)), Param(aug_mode="S")
    torch.manual_seed(0)
    for seed in range(24):
        function(x, strategy=EVERYTHING, seed=-1 if name.startswith("rfad") else seed, param=param)
    assert record(name).verified == before + 24
    assert param.latestseed in ((-1,) if name.startswith("rfad") else (25, 26, 27))


def test_a_wrong_answer_does_not_verify(verified, monkeypatch):
    monkeypatch.setitem(
        replacements._OPERATIONS, "flip", lambda x, param, draws, corners: draws.uniform() * x.sum()
    )
    with pytest.raises(VerificationError, match="DiffAugment"):
        stand_in("vico.DiffAugment", KINDS["vico.DiffAugment"].augment)(
            images((4, 3, 8, 8)), "flip", -1, Param()
        )


@pytest.mark.parametrize("mode", ["S", "M"])
def test_other_devices_are_left_with_the_same_seed(mode, monkeypatch):
    seen = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seen.append)
    last = []
    for function in (KINDS["vico.DiffAugment"].augment, replacements.diff_augment):
        seen.clear()
        function(images((4, 3, 8, 8)), EVERYTHING, 40, Param(aug_mode=mode))
        last.append(seen[-1])
    assert last[0] == last[1] > 40
    assert len(seen) == 1


def test_the_result_is_another_tensor_and_what_is_not_finite_stays():
    x = images((2, 3, 8, 8))
    for name in (*EXACT, "scale", "rotate"):
        for seed in range(6):
            made = replacements.diff_augment(x, name, seed, Param(ratio_crop_pad=0.0, ratio_cutout=0.0))
            assert made.data_ptr() != x.data_ptr()
    assert replacements.diff_augment(x / 0, "cutout", 1, Param()).isnan().any()


@pytest.mark.parametrize("shape", [(5, 3, 8, 8), (3, 2, 6, 9)])
@pytest.mark.parametrize("count", ["one", "each"])
def test_one_kernel_reads_the_same_pixels(shape, count):
    """What runs on a GPU, by the definition of the kernel."""
    x, n = images(shape), 1 if count == "one" else shape[0]
    factors = torch.rand(2, n, generator=torch.Generator().manual_seed(1)) + 0.6
    zero = torch.zeros(n)
    found = replacements.in_one_kernel(x, "scale", list(factors))
    wanted = replacements._interpolated(x, (factors[0], zero, zero, factors[1]), False)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    cosine, sine = factors[0].cos(), factors[0].sin()
    found = replacements.in_one_kernel(x, "rotate", (cosine, sine))
    torch.testing.assert_close(
        found, replacements._interpolated(x, (cosine, -sine, sine, cosine), False), rtol=0, atol=1e-5
    )
    if shape[2] == shape[3]:  # as between corners
        wanted = replacements._interpolated(x, (cosine, -sine, sine, cosine), True)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_what_is_left_alone(peer, monkeypatch):
    x, good = images((4, 3, 8, 8)), Param()

    def reason(x=x, strategy="crop", seed=-1, param=good):
        return replacements.why_not(x, strategy, seed, param) or ""

    assert reason() == reason(seed=5) == reason(x=torch.nn.Parameter(x)) == reason(x=x[:1]) == ""
    for other in (x.double(), x.half(), x[0], x[:0], x.numpy()):
        assert "float32 images" in reason(x=other)
    assert "another kind" in reason(x=x.to("meta"))
    assert "nothing to do" in reason(strategy="None")
    assert "nothing to do" in reason(strategy=["crop"])
    for seed in (-2, 1.0, True, 1 << 63):
        assert "the seed" in reason(seed=seed)
    assert "one image" in reason(x=x[:1], seed=0)
    assert "not published" in reason(strategy="crop_noise")
    assert "class beside" in reason(param=types.SimpleNamespace(**vars(good)))
    assert "class beside" in reason(param=None)
    assert "mode" in reason(param=Param(aug_mode="X"))
    assert "not a number" in reason(param=Param(contrast=torch.tensor(0.5)))
    assert "not a number" in reason(param=Param(ratio_cutout=float("nan")))
    assert "out of range" in reason(param=Param(ratio_crop_pad=-0.1))
    assert "out of range" in reason(param=Param(ratio_scale=0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "autocast" in reason()
    reasons = []
    torch.func.vmap(lambda a: (reasons.append(reason(x=a)), a.sum())[1])(x[None])
    assert "function transform" in reasons[0]
    torch.set_default_dtype(torch.float64)
    try:
        assert "default dtype" in reason()
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert "default dtype" in reason()
    assert "set seeds" in replacements.why_not_unseeded(x, "crop", 5, good)
    monkeypatch.setitem(peer.AUGMENT_FNS, "crop", [Operations().rand_flip])
    assert "not published" in reason()


def test_what_is_left_alone_is_the_original_itself():
    x, function = images((2, 3, 8, 8)), stand_in("vico.DiffAugment", KINDS["vico.DiffAugment"].augment)
    assert function(x) is x
    assert function(x.double(), "flip", 3, Param()).dtype == torch.float64
    with pytest.raises(KeyError, match="noise"):
        function(x, "noise", -1, Param())
    assert isinstance(function(x, "flip", -1, Param()), Tensor)


PLACES = {
    "vico.DiffAugment": "vico/utils.py",
    "vico.DiffAugment_batchmode": "mtt/utils.py",
    "rfad.DiffAugment": "rfad/diffaugment.py",
}


@pytest.mark.data
@pytest.mark.parametrize("name", KINDS)
def test_the_published_code(name, monkeypatch):
    path = peer_path(PLACES[name])
    module = published(path, monkeypatch)
    original = module.DiffAugment
    assert fingerprint_of(original) in KNOWN[name].hashes
    for function, hashes in KNOWN[name].requires.items():
        assert fingerprint_of(getattr(module, function)) in hashes
    before = record(name).verified
    with accel.patched(name, verify=1000), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the original's, of torch
        assert module.DiffAugment is not original
        for seed in (-1, 2):
            for mode in "SM":
                param = module.ParamDiffAug()
                param.aug_mode = mode
                module.DiffAugment(images((6, 3, 12, 9)), EVERYTHING, seed, param)
    assert module.DiffAugment is original
    assert record(name).verified == before + (2 if name == "rfad.DiffAugment" else 4)


def published(path, monkeypatch):
    """The module of a clone, without the libraries that the functions here do not use."""

    class Anything(types.ModuleType):
        def __getattr__(self, attribute):
            if attribute.startswith("__"):
                raise AttributeError(attribute)
            return object

    for absent in (
        *(
            "torchvision",
            "torchvision.datasets",
            "torchvision.transforms",
            "scipy.ndimage.interpolation",
            "tqdm",
        ),
        *("networks", "kornia", "kornia.augmentation"),
    ):
        monkeypatch.setitem(sys.modules, absent, Anything(absent))
    name = f"published_{path.parent.name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module
