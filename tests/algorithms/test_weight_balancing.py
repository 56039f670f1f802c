"""Weight balancing: the limit, the weights, and what a step leaves."""

import torch
import torch.nn.functional as F

from ssl_selmix import contract
from ssl_selmix.algorithm import Context
from ssl_selmix.algorithms.weight_balancing import WeightBalancing
from ssl_selmix.contract.subjects import make_data, make_net
from ssl_selmix.training.engine import optimizer_of


def made(**settings: float) -> WeightBalancing:
    data, _ = make_data()
    net = make_net(data)
    with torch.no_grad():
        net.classifier.weight.copy_(torch.eye(8)[:3] * torch.tensor([4.0, 2.0, 1.0])[:, None])
    algorithm = contract.subject("weight_balancing").make(data, net, **settings)
    assert isinstance(algorithm, WeightBalancing)
    return algorithm


def test_the_limit_lies_between_the_shortest_and_the_longest_vector() -> None:
    torch.testing.assert_close(made().limit, torch.tensor(1 + 0.1 * (4 - 1)))
    for share, lengths in ((0.0, [1.0, 1.0, 1.0]), (0.5, [2.5, 2.0, 1.0]), (1.0, [4.0, 2.0, 1.0])):
        algorithm = made(max_norm=share)
        directions = F.normalize(algorithm.net.classifier.weight)
        algorithm.after_step(Context(1, 4, algorithm))
        weight = algorithm.net.classifier.weight
        torch.testing.assert_close(weight.norm(dim=1), torch.tensor(lengths))
        torch.testing.assert_close(F.normalize(weight), directions)


def test_the_loss_is_weighted_and_only_the_classifier_decays() -> None:
    data, _ = make_data()
    algorithm, counts = made(), torch.tensor([6.0, 3.0, 2.0], dtype=torch.float64)
    batch = next(algorithm.train().batches(data, 0))
    weights = 1 / (1 - 0.9999**counts)
    weights *= 3 / weights.sum()
    each = F.cross_entropy(algorithm.net(batch.x), batch.y, reduction="none")
    loss = algorithm(batch, Context(0, 4, algorithm))[0]["labeled"]
    torch.testing.assert_close(loss, (weights[batch.y].float() * each).mean())
    plain = made(beta=0.0)
    torch.testing.assert_close(plain.weights, torch.ones(3))
    groups = optimizer_of(algorithm, fused=False).param_groups
    decayed = [p for group in groups for p in group["params"] if group["weight_decay"] == 0.1]
    assert [p.shape for p in decayed] == [algorithm.net.classifier.weight.shape]
