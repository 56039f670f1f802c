"""torch's SGD, without what torch imports for its compiler alone."""

from __future__ import annotations

from typing import Any

import torch


def _undecorated(method: Any) -> Any:
    """A method of torch's optimizer before torch told its compiler to leave it alone."""
    return getattr(method, "__wrapped__", method)


class SGD(torch.optim.SGD):
    """The same steps and the same state as torch's.

    The first call of torch's own methods imports its compiler, which takes about as long as torch
    itself, only to tell it to leave the optimizer alone. No optimizer is compiled here: with
    `compile=true` that is the network's body (`models.execution`).
    """

    add_param_group = _undecorated(torch.optim.SGD.add_param_group)
    zero_grad = _undecorated(torch.optim.SGD.zero_grad)
    state_dict = _undecorated(torch.optim.SGD.state_dict)
    load_state_dict = _undecorated(torch.optim.SGD.load_state_dict)
    step = torch.no_grad()(_undecorated(torch.optim.SGD.step))
