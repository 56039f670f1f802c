"""SMOTE: who is near, what is learned from, and where the features come from."""

import torch
import torch.nn.functional as F

from ssl_selmix import contract
from ssl_selmix.algorithm import Context
from ssl_selmix.algorithms.smote import Smote
from ssl_selmix.contract.subjects import make_data
from ssl_selmix.training import engine


def made(**settings: int) -> Smote:
    algorithm, _ = contract.subject("smote").started(make_data()[0], **settings)
    assert isinstance(algorithm, Smote)
    return algorithm


def test_partners_are_the_nearest_of_the_class() -> None:
    algorithm = made(neighbours=2)
    algorithm.known.zero_()
    algorithm.known[:, 0] = torch.arange(11.0)  # 6, 3 and 2 images of the classes
    assert algorithm.classes.tolist() == [0] * 6 + [1] * 3 + [2] * 2
    h = torch.zeros(200, 8)
    h[:, 0] = 4.2
    places = [algorithm.near(h, torch.full((200,), k)) for k in range(3)]
    assert [sorted(set(found.tolist())) for found in places] == [[4, 5], [6, 7], [9, 10]]
    shares = torch.bincount(places[0], minlength=6)[4:] / 200
    assert float(shares.min()) > 0.35
    wide = made(neighbours=50)
    wide.known.copy_(algorithm.known)
    assert sorted(set(wide.near(h, torch.full((200,), 2)).tolist())) == [9, 10]


def test_the_loss_is_on_points_between() -> None:
    algorithm, (data, _) = made(neighbours=1), make_data()
    batch = next(algorithm.train().batches(data, 0))
    torch.manual_seed(3)
    found = algorithm(batch, Context(0, 4, algorithm))[0]["labeled"]
    torch.manual_seed(3)
    h, share = algorithm.net.features(batch.x), torch.rand(len(batch.y), 1)
    other = algorithm.known[algorithm.near(h, batch.y)]
    assert torch.equal(algorithm.classes[algorithm.near(h, batch.y)], batch.y)
    expected = F.cross_entropy(algorithm.head(h + share * (other - h)), batch.y)
    torch.testing.assert_close(found, expected)


def test_features_are_those_of_the_labeled_images_as_they_are() -> None:
    algorithm, (data, _) = made(), make_data()
    features, _ = engine.predict(algorithm, data.plain(data.labeled), len(data.labeled))
    torch.testing.assert_close(algorithm.known, features)
    assert torch.equal(algorithm.classes, data.labels)
