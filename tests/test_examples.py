"""The examples define tasks that capture, whose networks score what they are known to score."""

import importlib.util
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import trimtab as tt
from trimtab.core.errors import InputError
from trimtab.examples import digits
from trimtab.graph.capture import capture
from trimtab.train.evaluate import evaluate
from trimtab.train.recipe import Recipe

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture
def example(monkeypatch):
    """Loads an example by its file, its folder being on the path as the command line has it."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def load(name):
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in ("cifar10", "once"):
        sys.modules.pop(name, None)


@pytest.fixture
def cifar10(example):
    module = example("cifar10")
    try:
        module.data_folder()
    except InputError as error:
        pytest.skip(str(error))
    return example


def test_digits_are_learnt_and_learnt_alike(example):
    torch.manual_seed(5)
    made = example("digits").task()
    graph = capture(made.model, made.example)
    assert evaluate(graph, made.validate, made.scored(), "validate").value >= 0.97
    assert evaluate(graph, made.test, made.scored(), "test").value >= 0.97
    few = made.train.take(range(64))
    first, second = (digits.trained(few, epochs=1).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_digits_splits_do_not_overlap(monkeypatch):
    monkeypatch.setattr(digits, "trained", lambda data: digits.Digits())
    made = digits.task()
    sets = [made.train, made.validate, made.test]
    assert [s.samples for s in sets] == [997, 400, 400]
    rows = [{tuple(x.flatten().tolist()) for x in s.inputs} for s in sets]
    assert not rows[0] & rows[1] | rows[0] & rows[2] | rows[1] & rows[2]


@pytest.mark.data
@pytest.mark.parametrize(("depth", "params"), [(20, 269_722), (56, 853_018)])
def test_cifar10_tasks(cifar10, depth, params):
    made = cifar10(f"cifar10_resnet{depth}").task()
    assert sum(p.numel() for p in made.model.parameters()) == params
    assert (made.train.samples, made.validate.samples, made.test.samples) == (50_000, 5_000, 5_000)
    assert all(made.train.targets.bincount() == 5_000)
    inputs, labels = next(iter(made.train))
    assert (tuple(inputs.shape), inputs.dtype, labels.dtype) == ((128, 3, 32, 32), torch.float32, torch.int64)
    assert abs(float(inputs.mean())) < 0.5


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(("depth", "even", "odd"), [(20, 0.8820, 0.8878), (56, 0.9054, 0.9098)])
def test_cifar10_networks_score_as_they_are_known_to(cifar10, depth, even, odd):
    made = cifar10(f"cifar10_resnet{depth}").task()
    graph = capture(made.model, made.example)
    # a sample may fall to the other side of a tie on another processor
    assert evaluate(graph, made.validate, made.scored(), "validate").value == pytest.approx(even, abs=0.0005)
    assert evaluate(graph, made.test, made.scored(), "test").value == pytest.approx(odd, abs=0.0005)


def jpegs(path, n=6):
    """A small file like those of CIFAR-10."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    files = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=95)
        files.append(buffer.getvalue())
    offset = np.cumsum([0, *(len(f) for f in files)])
    np.savez(path, jpeg=np.frombuffer(b"".join(files), np.uint8), offset=offset, y=np.arange(n, dtype=np.uint8))
    return path


def test_images_are_decoded_once_and_cached(example, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cifar10 = example("cifar10")
    path = jpegs(tmp_path / "few.npz")
    pixels, labels = cifar10.images(path)
    assert (tuple(pixels.shape), pixels.dtype, labels.tolist()) == ((6, 3, 32, 32), torch.uint8, [0, 1, 2, 3, 4, 5])
    (cache,) = (tmp_path / "cache" / "trimtab").iterdir()
    monkeypatch.setattr(cifar10, "_decoded", None)
    assert torch.equal(cifar10.images(path)[0], pixels)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cache.write_bytes(cache.read_bytes()[:100])  # cut short: decoded anew
    assert torch.equal(cifar10.images(path)[0], pixels)
    assert np.load(cache, allow_pickle=False).shape == (6, 3, 32, 32)


def test_missing_data_say_how_to_point_to_them(example, tmp_path, monkeypatch):
    cifar10 = example("cifar10")
    monkeypatch.setenv("TRIMTAB_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"the data folder is missing: .*nowhere.* Set TRIMTAB_DATA"):
        cifar10.resnet_task(3)
    monkeypatch.setenv("TRIMTAB_DATA", str(tmp_path))
    with pytest.raises(InputError, match=r"a file is missing: .*resnet20_cifar10_jpeg.safetensors. Set TRIMTAB_DATA"):
        cifar10.resnet_task(3)
    (tmp_path / "broken.npz").write_bytes(b"PK not a zip")
    with pytest.raises(InputError, match="not a file of JPEG images"):
        cifar10.images(tmp_path / "broken.npz")


def test_sentences_count_as_pairs_in_any_order_and_as_often_as_both_were_drawn(example):
    module = example("minilm_stsb")
    angles = torch.tensor([0.1, 0.9, 0.4, 1.3, 0.7])  # of each pair: its cosine falls with it
    embeddings = torch.stack([x for a in angles for x in (torch.tensor([1.0, 0.0]), torch.stack([a.cos(), a.sin()]))])
    said = torch.tensor([5.0, 2.0, 4.0, 2.0, 1.0])
    targets = torch.stack([torch.arange(10.0), said.repeat_interleave(2)], 1)
    # ranks said 5, 2.5, 4, 2.5, 1; of the cosines 5, 2, 4, 1, 3: covariance 6.5, variances 10 and 9.5
    expected = 6.5 / (10 * 9.5) ** 0.5
    assert module.correlation(embeddings, targets) == pytest.approx(expected)
    shuffled = torch.tensor([3, 8, 0, 5, 1, 9, 2, 7, 4, 6])
    assert module.correlation(embeddings[shuffled], targets[shuffled]) == pytest.approx(expected)
    drawn = torch.tensor([1, 0, 0, 3, 2, 5, 4, 7, 6, 9])  # the first pair twice, the last one's partner missing
    twice = [0, 0, 1, 2, 3]
    both = [module.ranks(values[twice]) for values in (said, -angles)]
    again = float(torch.corrcoef(torch.stack(both))[0, 1])
    assert module.correlation(embeddings[drawn], targets[drawn]) == pytest.approx(again)
    with pytest.raises(ValueError, match="three pairs"):
        module.correlation(embeddings[:4], targets[:4])


def test_features_of_speech_are_finite_and_of_about_unit_size(example):
    speech = example("speech")
    waves = torch.from_numpy(np.random.default_rng(0).integers(-3000, 3000, (3, 8000), dtype=np.int16))
    features = speech.log_mel(waves)
    assert features.shape == (3, 1, speech.BANDS, speech.FRAMES)
    assert features.isfinite().all()
    silent = speech.log_mel(torch.zeros(1, 8000, dtype=torch.int16))
    assert float(silent.std()) == pytest.approx(0.0, abs=1e-5)
    assert float(features.mean()) > float(silent.mean())
    tone = (8000 * torch.sin(2 * torch.pi * 1000 * torch.arange(8000) / speech.RATE)).to(torch.int16)
    loudest = int(speech.log_mel(tone[None]).mean(3).argmax())
    centre = int((speech.mel_filters()[round(1000 * speech.WINDOW / speech.RATE)]).argmax())
    assert loudest == centre  # the band that 1,000 Hz falls into
    torch.manual_seed(0)
    varied = speech.vary(features)
    assert varied.shape == features.shape
    assert not torch.equal(varied, features)


def test_what_is_trained_once_is_read_the_second_time(example, tmp_path, monkeypatch):
    speech = example("speech")
    once = sys.modules["once"]
    x = torch.randn(8, 1, speech.BANDS, speech.FRAMES)
    data = tt.Arrays(x, torch.arange(8) % 10, batch=4, shuffle=True)
    torch.manual_seed(0)
    made = tt.Task(speech.Speech(4), x[:2], train=data, loss=torch.nn.functional.cross_entropy, name="few")
    first = once.once(made, Recipe(3, precision="fp32", channels_last=False), tmp_path)
    monkeypatch.setattr(once, "fit_network", None)
    second = once.once(made, Recipe(3, precision="fp32", channels_last=False), tmp_path)
    states = first.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["classify.weight"], made.model.state_dict()["classify.weight"])
    with pytest.raises(TypeError):  # another recipe is another training
        once.once(made, Recipe(4, precision="fp32", channels_last=False), tmp_path)


@pytest.mark.data
def test_speech_splits_do_not_overlap(example):
    try:
        made = example("speech").untrained()
    except InputError as error:
        pytest.skip(str(error))
    sets = [made.train, made.validate, made.test]
    assert [s.samples for s in sets] == [2000, 250, 250]
    assert all((s.targets.bincount() == s.samples // 10).all() for s in sets)
    rows = [{x.numpy().tobytes() for x in s.inputs} for s in sets]
    assert not rows[0] & rows[1] | rows[0] & rows[2] | rows[1] & rows[2]
