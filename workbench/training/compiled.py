"""An update's forward pass and loss as one graph of torch's compiler, where a trial asks for it (`compile`).

Validation, what is drawn and the front end are not compiled. A graph is made for each shape that is heard;
from the second on its sizes are variables, so that there are few.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar, cast

import torch

from workbench.settings import ConfigError

BACKEND = "inductor"

CallableT = TypeVar("CallableT", bound=Callable[..., object])


def compiled(loss_of: CallableT) -> CallableT:
    """A function or module, which must be one graph whole: nothing falls back to running as it is."""
    torch.compiler.reset()  # graphs of earlier trainings would count against torch's limit
    return cast(CallableT, torch.compile(loss_of, backend=BACKEND, fullgraph=True))


@contextlib.contextmanager
def compiler_errors() -> Iterator[None]:
    """Within, what the compiler refuses raises ConfigError; it may be found in the first backward pass."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException  # takes seconds to import

    try:
        yield
    except (TorchDynamoException, FailOnRecompileLimitHit) as error:
        reason = " ".join(str(error).split("\n\n")[0].split())
        raise ConfigError(
            "compile",
            f"is true, and torch cannot compile the update here: {reason} "
            f"(a CPU needs a C++ compiler such as g++, a GPU Triton); install what is missing, or switch it "
            f"off: compile=false",
        ) from error
