"""Numbers of optax 0.2.8 (JAX 0.10.2, float64) after four updates, of the optimizers that torch does not have."""

from __future__ import annotations

import pytest
import torch

import hyperopt_ftp as hft

F64 = torch.float64
START = {"w": [1.0, -0.5, 2.0], "b": [0.0, 0.25]}
GRADS = {
    "w": [[0.5, -0.25, 1.5], [0.25, 0.75, -1.0], [-2.0, 0.0, 0.125], [0.375, 0.5, 3.0]],
    "b": [[1.0, -0.5], [0.0, 0.25], [-0.75, 2.0], [0.125, 0.5]],
}

# fmt: off
NUMBERS = {
    # optax.adabelief(0.1), and (0.1, 0.5, 0.7, 1e-2, 1e-2)
    "adabelief": (hft.adabelief(0.1),
        [0.852036348435409, -0.5473895194289962, 1.7945548982828075, -0.19724297561557322, 0.26307567844594737]),
    "adabelief-options": (hft.adabelief(0.1, (0.5, 0.7), 1e-2),
        [0.8723111931671621, -0.6608098473233404, 1.6798265673286736, -0.18730737966558852, 0.11865113721044399]),
    # optax.yogi(0.1), and (0.1, 0.5, 0.7, 0.1)
    "yogi": (hft.yogi(0.1),
        [0.8733038000267161, -0.5458692844754365, 1.8138015073254055, -0.17802258305718233, 0.2620725484649047]),
    "yogi-options": (hft.yogi(0.1, (0.5, 0.7), 0.1),
        [0.9265168272276394, -0.5666098809122357, 1.847856881685032, -0.09154940681681834, 0.19685715860188377]),
    # optax.lamb(0.1), and (0.1, 0.5, 0.7, 1e-2, weight_decay=0.25)
    "lamb": (hft.lamb(0.1),
        [0.886663085824841, -0.7364128639131686, 1.6479377986185229, -0.04771698417779239, 0.2244561669118172]),
    "lamb-options": (hft.lamb(0.1, (0.5, 0.7), 1e-2, 0.25),
        [0.8435410211202604, -0.642357022393784, 1.5002795560283917, -0.029517195685819408, 0.21547670515094003]),
    # optax.lars(1.0), and (1.0, trust_coefficient=0.125, eps=0.25, momentum=0.5, nesterov=True)
    "lars": (hft.lars(1.0),
        [1.0003820598843842, -0.5027925775006067, 1.994970262671951, -0.0006627605442135843, 0.2490198566678765]),
    "lars-options": (hft.lars(1.0, 0.5, 0.0, 0.125, 0.25, nesterov=True),
        [1.1345217032351427, -0.710183893134823, 1.4413749389064274, -0.03348242805177903, 0.1699959397312958]),
}
# fmt: on


@pytest.mark.parametrize(("opt", "want"), NUMBERS.values(), ids=NUMBERS)
def test_four_updates_end_where_those_of_optax_end(opt: hft.Optimizer, want: list[float]):
    params = {name: torch.tensor(w, dtype=F64) for name, w in START.items()}
    state = opt.init(params)
    for t in range(4):
        grads = {name: torch.tensor(g[t], dtype=F64) for name, g in GRADS.items()}
        params, state = opt.update(grads, state, params)
    # A dozen roundings a step, over four steps of values up to 2.
    torch.testing.assert_close(torch.cat([params["w"], params["b"]]), torch.tensor(want, dtype=F64), rtol=0, atol=1e-14)
