"""HEAR 2021's interface: what its rules ask, and that times and embeddings are those of the sound."""

import pytest
import torch

from workbench import hear
from workbench.config import SAMPLE_RATE, FrontEndConfig, ModelConfig
from workbench.model.encoder import Encoder
from workbench.settings import ConfigError

HOP_MS, LATENT_MS = 20.0, 80.0
LATENT = round(LATENT_MS / 1000 * SAMPLE_RATE)


def _model(window_ms=64.0, **changes):
    sizes = {"num_blocks": 1, "width": 16, "num_heads": 2, "ffn_dim": 16, "first_kernel": 3, "kernel": 3}
    torch.manual_seed(0)
    front_end = FrontEndConfig(num_mels=16, window_ms=window_ms)
    encoder = Encoder(front_end, ModelConfig(**(sizes | changes)))
    encoder.front_end.standardise_by(torch.full((16,), -5.0), torch.full((16,), 3.0))
    return hear.Model(encoder)


@pytest.fixture(scope="module")
def model():
    return _model()


def _noise(sounds, samples, seed=0):
    return torch.rand(sounds, samples, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_sizes_and_types_are_those_of_the_rules(model):
    audio = _noise(3, 16_333)
    embeddings, times = hear.get_timestamp_embeddings(audio, model)
    scenes = hear.get_scene_embeddings(audio, model)
    assert model.sample_rate == 16_000
    assert embeddings.shape == (3, 51 - 4 + 1, model.timestamp_embedding_size)
    assert times.shape == embeddings.shape[:2]
    assert scenes.shape == (3, model.scene_embedding_size)
    assert embeddings.dtype == times.dtype == scenes.dtype == torch.float32
    assert not embeddings.requires_grad


@pytest.mark.parametrize("samples", [1, LATENT - 1, LATENT, LATENT + 319, LATENT + 320, 3 * LATENT, 40_001])
def test_times_are_evenly_spaced_middles_of_what_was_heard(model, samples):
    embeddings, times = hear.get_timestamp_embeddings(_noise(2, samples), model)
    assert times[0, 0] == LATENT_MS / 2
    assert (times.diff() == HOP_MS).all()
    assert torch.equal(times[0], times[1])
    duration = max(samples, LATENT) / SAMPLE_RATE * 1000
    assert duration - HOP_MS < times[0, -1] + LATENT_MS / 2 <= duration
    assert torch.isfinite(embeddings).all()


@pytest.mark.parametrize("click_ms", [205.0, 230.0, 508.0, 777.0, 1312.0])
def test_a_click_changes_the_embedding_at_its_time_most(click_ms):
    # A window of a hop, and no look to the side: a time that is wrong by a hop is seen.
    model = _model(window_ms=HOP_MS, first_kernel=1)
    audio = 0.01 * _noise(1, 2 * SAMPLE_RATE)
    clicked = audio.clone()
    clicked[0, round(click_ms * SAMPLE_RATE / 1000)] += 0.9
    before, times = hear.get_timestamp_embeddings(audio, model)
    after, _ = hear.get_timestamp_embeddings(clicked, model)
    change = (after - before).norm(dim=2)[0]
    changed = times[0, change > change.max() / 2]
    # The click is heard by the latents that span it, whose middles lie about it.
    assert len(changed) == LATENT_MS / HOP_MS
    assert abs(changed.mean() - click_ms) <= HOP_MS / 2
    assert abs(times[0, change.argmax()] - click_ms) <= LATENT_MS / 2


def test_an_embedding_is_that_of_the_encoder_on_the_sound_from_there_on(model):
    audio = _noise(2, 20_000)
    embeddings, _ = hear.get_timestamp_embeddings(audio, model)
    encoder = model.encoder
    with torch.no_grad():
        log_mel = encoder.front_end(audio)
        for first in range(4):
            context = encoder.context(encoder.latents(log_mel[:, first:]))
            assert torch.allclose(embeddings[:, first::4], context, atol=1e-6)
            if first == 0:
                assert torch.allclose(hear.get_scene_embeddings(audio, model), context.mean(1), atol=1e-6)


def test_a_sound_does_not_depend_on_its_neighbours(model, monkeypatch):
    audio = torch.cat([_noise(4, 10_000), torch.zeros(1, 10_000), 1e3 * _noise(1, 10_000, seed=1)])
    together, scenes = hear.get_timestamp_embeddings(audio, model)[0], hear.get_scene_embeddings(audio, model)
    monkeypatch.setattr(hear, "LATENTS_AT_ONCE", 15)  # two sounds of 7 latents
    in_parts, _ = hear.get_timestamp_embeddings(audio, model)
    assert torch.allclose(in_parts, together, atol=1e-5)
    for i in range(len(audio)):
        alone, _ = hear.get_timestamp_embeddings(audio[i : i + 1], model)
        assert torch.allclose(alone[0], together[i], atol=1e-5)
        assert torch.allclose(hear.get_scene_embeddings(audio[i : i + 1], model)[0], scenes[i], atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-2


def test_the_same_sound_gives_the_same_embeddings_whatever_the_mode(model):
    audio = _noise(2, 8_000)
    first, scenes = hear.get_timestamp_embeddings(audio, model)[0], hear.get_scene_embeddings(audio, model)
    torch.manual_seed(7)
    model.train()
    assert torch.equal(hear.get_timestamp_embeddings(audio, model)[0], first)
    assert torch.equal(hear.get_scene_embeddings(audio.double(), model), scenes)


def test_a_long_sound_is_heard_in_bounded_memory(model, monkeypatch):
    sizes = []
    forward = hear.Model.forward
    monkeypatch.setattr(hear.Model, "forward", lambda self, x: (sizes.append(x.shape), forward(self, x))[1])
    hear.get_scene_embeddings(torch.zeros(40, 60 * SAMPLE_RATE), model)
    assert [shape[0] for shape in sizes] == [21, 19]  # of 750 latents each


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((100,), torch.float32),
        ((1, 1, 100), torch.float32),
        ((1, 100), torch.int16),
        ((1, 0), torch.float32),
        ((0, 100), torch.float32),
    ],
)
def test_what_is_no_batch_of_sounds_is_refused(model, shape, dtype):
    for embed in (hear.get_timestamp_embeddings, hear.get_scene_embeddings):
        with pytest.raises(ValueError, match=r"must be float samples in \[-1, 1\]"):
            embed(torch.zeros(shape, dtype=dtype), model)


def test_without_an_exported_folder_there_is_no_model(tmp_path):
    with pytest.raises(ConfigError, match="name an exported folder"):
        hear.load_model()
    with pytest.raises(ConfigError, match=r"settings.json: is not there"):
        hear.load_model(str(tmp_path))
