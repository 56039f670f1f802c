"""cRT: a new classifier on frozen features, learned from classes that are drawn equally often."""

from __future__ import annotations

from ssl_selmix.data.batch import Task
from ssl_selmix.models import Classifier
from ssl_selmix.selmix.fine_tuning import FrozenBody, new_classifier


class ClassifierRetraining(FrozenBody):
    """Classifier re-training (Kang et al., ICLR 2020)."""

    def __init__(self, net: Classifier, task: Task, config: FrozenBody.Config) -> None:
        super().__init__(net, task, config)
        new_classifier(net)
