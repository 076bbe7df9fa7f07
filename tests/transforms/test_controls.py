"""Controls keep the form of a cache and take its message."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from unspoken.cache import KVCache
from unspoken.engines.protocol import Engine, Prompt
from unspoken.engines.transformers import TransformersEngine
from unspoken.transforms import TRANSFORMS
from unspoken.transforms.cast import Cast
from unspoken.transforms.controls import Displace, Noise, Zero
from unspoken.transforms.rope import Move, RemoveRope

PromptOf = Callable[[Engine, str], Prompt]
TEXT = "The old mill is run by Anna. " * 14


@pytest.fixture
def cache(tiny_engine: Callable[..., TransformersEngine], content: PromptOf) -> KVCache:
    """A real model's cache of 406 columns."""
    return tiny_engine("qwen2").prefill(content(tiny_engine("qwen2"), TEXT))


CONTROLS = {"control.zero": Zero(), "control.noise": Noise(seed=3), "control.displace": Displace(64)}


@pytest.mark.parametrize("name", sorted(CONTROLS))
def test_controls_keep_the_form_of_the_cache(cache: KVCache, name: str) -> None:
    for given in (cache, Cast("bfloat16")(cache)):
        changed = CONTROLS[name](given)
        assert changed.manifest.layers == given.manifest.layers
        assert changed.manifest.dtype == given.manifest.dtype
        assert changed.manifest.rope == given.manifest.rope
        assert changed.manifest.spans == given.manifest.spans
        assert changed.bytes_held() == given.bytes_held()
        assert changed.positions.tolist() == given.positions.tolist()
        assert name in [step.op for step in changed.manifest.lineage]


def test_every_registered_control_is_tested_here() -> None:
    assert {name for name in TRANSFORMS if name.startswith("control.")} == set(CONTROLS)


def test_zero_leaves_nothing_in_any_layer(cache: KVCache) -> None:
    emptied = Zero()(cache)
    assert all(not layer.keys.any() and not layer.values.any() for layer in emptied.layers)
    assert emptied.manifest.token_ids is None


def test_noise_has_the_mean_and_variance_of_each_layer_and_head(cache: KVCache) -> None:
    # As the moments are those of position-free keys, they are compared there.
    noisy, free = RemoveRope()(Noise(seed=1)(cache)), RemoveRope()(cache)
    for new, old in zip(noisy.layers, free.layers, strict=True):
        for made, real in ((new.keys, old.keys), (new.values, old.values)):
            assert not torch.isclose(made, real).all()
            count = real.shape[1] * real.shape[2]
            found, right = ((states.mean(dim=(1, 2)), states.std(dim=(1, 2))) for states in (made, real))
            # Five standard errors of a mean and of a standard deviation of so many normal numbers.
            assert ((found[0] - right[0]).abs() <= 5 * right[1] / count**0.5).all()
            assert ((found[1] - right[1]).abs() <= 5 * right[1] / (2 * count) ** 0.5).all()


def test_noise_has_lost_the_order_and_the_tokens(cache: KVCache) -> None:
    noisy = Noise(seed=1)(cache)
    assert noisy.manifest.token_ids is None
    real, made = cache.layers[0].values.flatten(), noisy.layers[0].values.flatten()
    correlation = torch.corrcoef(torch.stack((real - real.mean(), made - made.mean())))[0, 1]
    assert abs(float(correlation)) < 0.15


def test_noise_is_the_same_for_the_same_seed_only(cache: KVCache) -> None:
    one, again, other = Noise(1)(cache), Noise(1)(cache), Noise(2)(cache)
    assert all(torch.equal(a.keys, b.keys) for a, b in zip(one.layers, again.layers, strict=True))
    assert not torch.equal(one.layers[0].keys, other.layers[0].keys)
    assert not torch.equal(one.layers[0].keys, one.layers[1].keys)


def test_noise_leaves_the_global_generator_alone(cache: KVCache) -> None:
    before = torch.random.get_rng_state()
    Noise(1)(cache)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_displace_turns_the_keys_and_nothing_else(cache: KVCache) -> None:
    displaced = Displace(64)(cache)
    moved = Move(64)(cache)
    for new, old, there in zip(displaced.layers, cache.layers, moved.layers, strict=True):
        assert torch.equal(new.values, old.values)
        assert torch.equal(new.positions, old.positions)
        # The keys are those of columns 64 further on; only the positions beside them say otherwise.
        assert torch.allclose(new.keys, there.keys, atol=1e-5)
        assert (new.keys - old.keys).abs().max() > 0.1
    assert displaced.manifest.token_ids == cache.manifest.token_ids


def test_every_control_changes_what_the_model_says_next(
    cache: KVCache, tiny_engine: Callable[..., TransformersEngine], content: PromptOf
) -> None:
    engine = tiny_engine("qwen2")
    question = content(engine, "Who?")
    right = engine.logits(question, cache)
    assert all((engine.logits(question, control(cache)) - right).abs().max() > 0.01 for control in CONTROLS.values())
