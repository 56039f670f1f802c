"""What results.json, manifest.json and the rows of metrics.jsonl hold: training writes with it.

Who reads these files gets values that can be so, or one line that names the place, the value and
what it should be. Files of version 0.1 say no `schema`; `released` adds what they lack.

Shapes: K classes, C×H×W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError
from typing_extensions import Self

SCHEMA = 2  # of the files that this version writes; those of version 0.1 say none
ROUNDING = 1e-9  # a sum of shares may be this much above 1
MOST = 2**53  # images that can be counted in floating point
PARTS = ("validation", "test")


def _number(value: Any) -> float:
    """Refuse what Python would take for a number, and what no figure can be."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PydanticCustomError("number", "no number")
    try:
        finite = math.isfinite(value)
    except OverflowError:
        finite = False
    if not finite:
        raise PydanticCustomError("number", "no number")
    return float(value)


def _share(value: Any) -> float:
    found = _number(value)
    if not -ROUNDING <= found <= 1 + ROUNDING:
        raise PydanticCustomError("share", "outside 0..1")
    return min(1.0, max(0.0, found))


def _whole(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise PydanticCustomError("whole", "no integer of at least 0")
    return value


def _images(value: int) -> int:
    if value > MOST:
        raise PydanticCustomError("images", "no number of images")
    return value


def _name(value: Any) -> Any:
    if not isinstance(value, str) or not value.strip():
        raise PydanticCustomError("name", "no name")
    return " ".join(value.split())


Number = Annotated[float, BeforeValidator(_number)]
Share = Annotated[float, BeforeValidator(_share)]
Whole = Annotated[int, BeforeValidator(_whole)]
Images = Annotated[int, BeforeValidator(_whole), AfterValidator(_images)]  # a number of them
Name = Annotated[str, BeforeValidator(_name)]


class Section(BaseModel):
    """Values by name; a later version may have more of them."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    def plain(self) -> dict[str, Any]:
        """As JSON holds it, without what was never told."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


def _same_length(where: str, values: list[Any], length: int) -> None:
    if len(values) != length:
        told = f"{where} has {len(values)} values instead of {length}"
        raise PydanticCustomError("told", "{told}", {"told": told})


class Reliability(Section):
    """Accuracy by confidence, a value per bin; None where a bin is empty."""

    confidence: list[Share | None]  # mean of the images in the bin
    accuracy: list[Share | None]  # share of them that are right
    count: list[Images]  # images in the bin

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("confidence", "accuracy"):
            _same_length(name, getattr(self, name), len(self.count))
        return self


class Shares(Section):
    """The figures of a confusion matrix and of the confidence; None: not recorded."""

    mean_recall: Share | None = None  # over the classes; balanced accuracy
    min_recall: Share | None = None  # of the worst class
    min_ht_recall: Share | None = None  # the smaller of the means of head and tail classes
    g_mean: Share | None = None  # geometric mean of the recalls
    h_mean: Share | None = None  # harmonic mean of the recalls
    min_coverage: Share | None = None  # of the class that is predicted least often
    accuracy: Share | None = None
    ece: Share | None = None  # expected calibration error, 15 bins of equal width
    classwise_ece: Share | None = None  # mean over the classes of theirs


class Figures(Shares):
    """What `metrics.evaluate` measured on one part; a class without images has recall None."""

    mean_recall: Share  # type: ignore[assignment]  # never missing here
    min_recall: Share  # type: ignore[assignment]
    per_class_recall: list[Share | None]
    per_class_coverage: list[Share]  # share of the images that are predicted as the class
    reliability: Reliability | None = None  # how well confidence says accuracy

    @model_validator(mode="after")
    def _check(self) -> Self:
        if all(recall is None for recall in self.per_class_recall):
            told = "per_class_recall has no recall"
            raise PydanticCustomError("told", "{told}", {"told": told})
        _same_length("per_class_coverage", self.per_class_coverage, len(self.per_class_recall))
        return self


class Measured(Section):
    """The figures of one set of weights."""

    validation: Figures
    test: Figures


class StartedFrom(Section):
    """What a stage began with: the weights that another stage handed on, or a file of them."""

    sha256: str  # digest of the weights; "" if nobody recorded it
    run_id: str | None = None  # of the run that trained them; None: no run, or nobody knows
    stages: Whole | None = None  # how many stages of that run they had passed
    path: str | None = None  # of version 0.1, which recorded no run_id


class Stage(Section):
    """A finished stage: what it was told, and its figures by its kept and its last weights."""

    algorithm: Name
    steps: Whole  # that were taken
    kept_step: Whole  # the step whose weights are handed on
    seconds: Number  # of training, validations and checkpoints among them
    head: str = ""  # the module that predicts
    validation: Figures
    test: Figures
    last: Measured | None = None  # by the weights of the last step
    settings: dict[str, Any] | None = None  # of the method
    handed_on_sha256: str | None = None  # digest of the tensors in model.pt
    log_sha256: str | None = None  # of metrics.jsonl when the stage was finished
    started_from: StartedFrom | None = None  # None: from random weights


def _split(rule: dict[str, Any]) -> dict[str, Any]:
    for part in PARTS:
        count = rule.get(part)
        if isinstance(count, float | str):  # a share, or a count with limits: `counts` has them
            count = None
        if count is not None and (type(count) is not int or not 0 <= count <= MOST):
            told = f"{part} is {_shown(count)}, no number of images"
            raise PydanticCustomError("told", "{told}", {"told": told})
    return rule


class Protocol(Section):
    """What makes figures comparable."""

    # Its `validation` and `test` are images of each class, or a rule for them, whose `counts` are
    # recorded; test is None where the data set has one.
    split: Annotated[dict[str, Any], AfterValidator(_split)]
    checkpoint_rule: dict[str, Any]  # which weights each stage keeps, and by which figure
    steps: list[Whole]  # of each stage, as planned


class Pretrained(Section):
    """The weights of somebody else that the body of the network started from."""

    name: Name  # of the network
    source: Name  # the file, or the library's
    sha256: Name  # digest of the body's tensors
    licence: str | None = None  # of the library's weights of that name; None: not told
    input: str  # size, interpolation and normalisation of what the network takes


class Results(Section):
    """results.json: written anew whenever a stage is finished."""

    version: Whole = Field(alias="schema")  # of the format
    run_id: Name  # the same for all files of a run
    dataset: Name
    seed: Whole  # of split, initial weights and batches
    manifest_sha256: Name  # of images, split and labels
    images_sha256: Name | None = None  # of the images alone
    init_sha256: str | None = None  # of the weights that --init gave
    counts: dict[str, list[Images]] = {}  # images of each class, by part
    class_names: list[str] | None = None  # in the order of all lists by class
    tail: list[Whole] | None = None  # classes that min_ht_recall takes for the tail; None: unknown
    model: dict[str, Any] | None = None  # the section `model` of the configuration
    pretrained: Pretrained | None = None
    protocol: Protocol  # two runs compare if this is alike
    start: Stage | None = None  # the weights of --init, measured before any step
    stages: list[Stage]  # in the order of training
    files: dict[str, str] | None = None  # digests of the content of the run's other files
    sha256: str | None = None  # of all else in here

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.protocol.steps) < len(self.stages):
            told = f"{len(self.stages)} stages, steps of {len(self.protocol.steps)}"
            raise PydanticCustomError("told", "{told}", {"told": told})
        for stage in self.stages:
            if stage.algorithm not in self.protocol.checkpoint_rule:
                where = f"protocol.checkpoint_rule.{stage.algorithm}"
                raise PydanticCustomError("lacks", "{where}", {"where": where})
        every = [*self.stages, *([self.start] if self.start else [])]
        sizes = {len(getattr(s, part).per_class_recall) for s in every for part in PARTS}
        if len(sizes) > 1:
            told = "its parts have different numbers of classes"
            raise PydanticCustomError("told", "{told}", {"told": told})
        lists: dict[str, list[Any]] = {f"counts.{part}": n for part, n in self.counts.items()}
        lists |= {"class_names": self.class_names} if self.class_names is not None else {}
        for where, values in lists.items():
            for size in sizes:
                _same_length(where, values, size)
        return self

    @property
    def num_classes(self) -> int:
        """K."""
        found = [*self.stages, *([self.start] if self.start else [])]
        return len(found[0].test.per_class_recall)


class Preprocessing(Section):
    """How image files become what the network takes."""

    kind: Literal["whole", "central_square", "features"]  # features: of no image file
    size: list[Whole]  # height and width, pixels; number of features
    resize: Whole | None = None  # shorter side before the square is cut out, pixels
    interpolation: Literal["bilinear"] = "bilinear"
    mean: list[Number]  # per channel, in units of 0..255
    std: list[Number]


class Classes(Section):
    """What a comparison takes from manifest.json."""

    class_names: list[str]
    counts: dict[str, list[Images]]
    images_sha256: Name | None = None


class Manifest(Section):
    """What manifest.json says of the images that a model takes, beside the split."""

    version: Whole | None = Field(None, alias="schema")  # of the format
    run_id: Name | None = None  # that of results.json
    class_names: Annotated[list[str], Field(min_length=2)]
    image_shape: list[int]  # channels, height, width; the number of features
    mean: list[Number]  # per channel, subtracted from pixels in 0..255
    std: list[Number]  # per channel, divides them then
    preprocessing: Preprocessing | None = None  # how a file becomes an image of that shape

    @model_validator(mode="after")
    def _check(self) -> Self:
        told = ""
        if len(self.image_shape) not in (1, 3) or min(self.image_shape) < 1:
            told = f"image_shape is {self.image_shape}, not three integers of at least 1"
        for name in ("mean", "std") if not told else ():
            num = self.image_shape[0] if len(self.image_shape) == 3 else 1  # one for all features
            if len(values := getattr(self, name)) != num:
                told = f"{name} is {values}, not {num} number(s)"
        if not told and min(self.std) <= 0:
            told = f"std is {self.std}, not > 0"
        if told:
            raise PydanticCustomError("told", "{told}", {"told": told})
        return self


class Row(Shares):
    """A validation row of metrics.jsonl, as far as tables and figures read it."""

    step: Number  # after which it was measured
    estimated_prior: list[Number] = []  # class shares of the pool
    estimated_prior_low: list[Number] = []  # the lower ends of their 95 % intervals
    estimated_prior_high: list[Number] = []  # the upper ends
    true_prior: list[Number] = []  # where the data set knows them; no method sees it
    gain_matrix: list[list[Number]] = []  # SelMix: G, of the labeled (row) and partner classes
    pair_distribution: list[list[Number]] = []  # SelMix: P, likewise


Kind = TypeVar("Kind", bound=Section)


def checked(kind: type[Kind], content: Any) -> Kind:
    """What a file holds, as this kind of section.

    Raises:
        ValueError: says in one line what is missing or cannot be.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ValueError(told(error.errors()[0])) from None


PHRASES = {
    "list_type": "no list",
    "dict_type": "no section",
    "model_type": "no section",
    "model_attributes_type": "no section",
    "string_type": "no name",
}


def told(error: Mapping[str, Any]) -> str:
    """A mistake that pydantic found, as `place is value, what is wrong` or `lacks 'place'`."""
    kind, message, value = error["type"], str(error["msg"]), error["input"]
    where = place(error["loc"])
    if kind == "missing":
        return f"lacks {where!r}"
    if kind == "lacks":
        return f"lacks {message!r}"
    if kind == "told":  # which names its own place within the section
        return f"{where}.{message}" if where else message
    return f"{where or 'it'} is {_shown(value)}, {PHRASES.get(kind, message)}"


def _shown(value: Any) -> str:
    try:
        shown = repr(value)
    except ValueError:  # Python writes out no integer of more than 4,300 digits
        return "too large"
    return shown if len(shown) <= 40 else f"{shown[:40]}…"


def place(path: tuple[str | int, ...]) -> str:
    """Where a value stands: stages count from 1, and a list is named without the position in it."""
    text = ""
    for i, part in enumerate(path):
        if isinstance(part, str):
            text += f".{part}" if text else part
        elif path[i - 1] == "stages" or path[i + 1 :]:
            text += f"[{part + 1}]"
    return text
