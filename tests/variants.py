"""A trial with one setting changed, for each of its settings: new ones are tested as the others are."""

import dataclasses

from workbench.config import Cosine

# What another value may be, where one cannot be told from the field's type.
OTHERS = {
    "pool": None,  # the tests of pools have theirs
    "kind": None,
    "precision": "bf16",
    "pooling": "linear_softmax",
    "subset": "esc10",
    "test_usage": "public",
    "num_heads": 4,
    "width": 512,
    "kernel": 17,
    "first_kernel": 33,
    "test_fold": 2,
    "window_ms": 80.0,
    "hop_ms": 10.0,
    "betas": (0.8, 0.98),
    "num_distractors": 7,
    "mixup": None,
    "max_grad_norm": None,
    "schedule": Cosine(),
    "root": "/elsewhere",
    "batch_size": 128,
    "accumulation": 2,
}


def variants(settings, path=""):
    """Every setting below `settings` with one other value: (path, changed settings)."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        here = f"{path}.{field.name}" if path else field.name
        if dataclasses.is_dataclass(value):
            for inner, changed in variants(value, here):
                yield inner, dataclasses.replace(settings, **{field.name: changed})
            if field.name not in OTHERS:
                continue
        other = _other(field.name, value)
        if other is not None or field.name in {"mixup", "max_grad_norm"}:
            yield here, dataclasses.replace(settings, **{field.name: other})


def _other(name, value):
    if name in OTHERS:
        return OTHERS[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 if value else 0.25
    raise AssertionError(f"the test has no other value for {name} = {value!r}")
