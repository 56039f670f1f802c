"""Objectives: functions of the confusion matrix that SelMix makes larger.

An objective is ψ(C), where C is the joint K×K confusion matrix of a validation set, rows = true
class. Worst-case and constrained objectives are Lagrangians: `value` holds their multipliers
constant, `update` sets them from a measured C. The shipped objectives do not depend on how many
validation images each class has: recalls divide by the row, coverages are those of the matrix whose
rows all have mass 1/K. Raw counts are therefore accepted as well.

Shape legend: K classes, G groups of classes, J constraint terms.
"""

from ssl_selmix.objectives.confusion import RECALL_FLOOR, Function, check_confusion, normalise_rows
from ssl_selmix.objectives.examples import cost_matrix, macro_f1, precision_at_least, recall_of
from ssl_selmix.objectives.kinds import (
    Constrained,
    FunctionObjective,
    Groups,
    Objective,
    RecallMean,
    WorstRecall,
    confusion_gradient,
)
from ssl_selmix.objectives.named import (
    DESCRIPTIONS,
    Config,
    get,
    import_function,
    option_names,
    report,
)

__all__ = [
    "DESCRIPTIONS",
    "RECALL_FLOOR",
    "Config",
    "Constrained",
    "Function",
    "FunctionObjective",
    "Groups",
    "Objective",
    "RecallMean",
    "WorstRecall",
    "check_confusion",
    "confusion_gradient",
    "cost_matrix",
    "get",
    "import_function",
    "macro_f1",
    "normalise_rows",
    "option_names",
    "precision_at_least",
    "recall_of",
    "report",
]
