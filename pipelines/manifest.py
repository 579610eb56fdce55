"""The manifest: one YAML file that says a whole experiment. Where and how it runs are flags.

    name: mine
    variables: {data: , seed: 0}               # data is given by --set data=DIR; seed has a default
    data: {videos: "${data}/videos", labels: "${data}/labels.csv"}
    backbones:
      coarse: {name: mobilenet_v2, size: 112}
      fine: {name: resnet101, size: 224, weights: resnet101.pth}
    runs:
      - {method: liteeval, preset: small, seed: "${seed}", set: {epochs: 30}}
    report: {filmstrip: liteeval}

A path in the manifest is relative to the manifest's folder; a path given by --set is relative to
the current directory. docs/manifests.md explains every key.
"""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

VARIABLE = re.compile(r"\$\{([^{}]*)\}")


class ManifestError(Exception):
    """The manifest, or a variable given to it, is wrong; the message says where and what to do."""


class CommandLineText(str):
    """A value that begins with a variable from the command line: as a path, relative to the cwd.

    Where it goes decides whether it is read as a number: a folder may be called 2024.
    """


def _resolve_path(value: object, info: ValidationInfo) -> object:
    if not isinstance(value, (str, Path)) or str(value) == "":
        raise ValueError(f"expected a path, found {value!r}")
    base = Path.cwd() if isinstance(value, CommandLineText) else (info.context or {})["folder"]
    return (base / Path(value).expanduser()).resolve()


def _resolve_weights(value: object, info: ValidationInfo) -> object:
    return value if value in ("published", "random") else _resolve_path(value, info)


def _require_scalar(value: object) -> object:
    if isinstance(value, CommandLineText):
        return _scalar(value)
    if not isinstance(value, (str, int, float, bool)):
        raise ValueError(f"expected a text, a number, true or false, found {value!r}")
    return value


def _as_folder_name(value: object) -> object:
    """timm:resnet18 → timm-resnet18, as stores are named."""
    return value.replace(":", "-") if isinstance(value, str) else value


ManifestPath = Annotated[Path, BeforeValidator(_resolve_path)]
Weights = Annotated[Literal["published", "random"] | Path, BeforeValidator(_resolve_weights)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
RunName = Annotated[Name, BeforeValidator(_as_folder_name)]
RunPattern = Annotated[str, BeforeValidator(_as_folder_name)]  # * and ? stand for any text
Option = Annotated[str | int | float | bool, BeforeValidator(_require_scalar)]
BACKBONES = ("mobilenet_v2", "resnet101", "dpn107", "slowfast_r50")  # beside timm:NAME
Importer = Literal["activitynet", "fcvid", "kinetics", "breakfast", "folders", "table"]
Split = Literal["train", "val", "test"]


class Section(BaseModel):
    """A mapping of the manifest: an unknown key is answered with the nearest known one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _know_every_key(cls, value: object) -> object:
        if isinstance(value, Mapping):
            for key in value:
                if key not in cls.model_fields:
                    raise ValueError(_unknown("key", str(key), cls.model_fields))
        return value


class SyntheticClips(Section):
    """Clips rendered by `liteeval clips`."""

    videos: int = Field(ge=1)
    seconds: tuple[float, float] = (8.0, 12.0)  # shortest and longest
    seed: int = Field(0, ge=0)

    @field_validator("seconds")
    @classmethod
    def _in_order(cls, seconds: tuple[float, float]) -> tuple[float, float]:
        if not 0 < seconds[0] <= seconds[1]:
            raise ValueError(f"expected 0 < shortest ≤ longest, found {list(seconds)}")
        return seconds


class Data(Section):
    """A folder of videos with labels.csv (video_id,label,split), a data set, or clips to render."""

    videos: ManifestPath | None = None
    labels: ManifestPath | None = None
    importer: Importer | None = None  # reads a data set's own files; see `liteeval import`
    annotations: tuple[ManifestPath, ...] = ()
    classes: ManifestPath | None = None  # names of numbered classes
    fold: int = Field(default=1, ge=1)  # of breakfast: 1 to 4
    val_share: float = Field(default=0.1, ge=0, lt=1)  # of train, where there is no split val
    synthetic: SyntheticClips | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        sources = [bool(self.labels), bool(self.importer), bool(self.synthetic)]
        if sum(sources) != 1 or bool(self.videos) == bool(self.synthetic):
            raise ValueError("give either videos and labels, or importer and videos, or synthetic")
        fields = type(self).model_fields
        only = ("annotations", "classes", "fold", "val_share")
        given = [name for name in only if getattr(self, name) != fields[name].default]
        if given and not self.importer:
            raise ValueError(f"{', '.join(given)}: only with an importer")
        return self


class Finetune(Section):
    """Stage 0: the backbone is fitted to splits train and val first; see docs/finetune.md."""

    epochs: int = Field(10, ge=0)
    lr: float = Field(0.01, gt=0)
    weight_decay: float = Field(5e-4, ge=0)
    batch: int = Field(16, ge=2)  # videos
    segments: int = Field(3, ge=1)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    crop_area: float = Field(0.4, gt=0, le=1)
    seed: int = Field(0, ge=0)

    @property
    def options(self) -> tuple[str, ...]:
        """As liteeval-extract finetune takes them: --epochs=10."""
        values = self.model_dump()
        return tuple(f"--{key.replace('_', '-')}={value}" for key, value in values.items())


class Backbone(Section):
    """A network that turns frames into rows of features."""

    name: str = Field(min_length=1)
    size: int = Field(ge=1)  # input, px
    weights: Weights = "published"  # published, random (seeded), or a file
    finetune: Finetune | None = None  # from these weights

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in BACKBONES and not name.startswith("timm:"):
            raise ValueError(_unknown("backbone", name, (*BACKBONES, "timm:NAME")))
        return name

    @property
    def option(self) -> str:
        """As liteeval-extract takes it: mobilenet_v2@112."""
        return f"{self.name}@{self.size}"

    @property
    def store_name(self) -> str:
        """The folder that liteeval-extract gives it: mobilenet_v2_112."""
        return f"{self.name.replace(':', '-')}_{self.size}"


class Backbones(Section):
    coarse: Backbone
    fine: Backbone
    others: dict[Name, Backbone] = Field(default_factory=dict)  # for runs that name them as `fine`

    @model_validator(mode="after")
    def _one_store_each(self) -> Backbones:
        if self.coarse.store_name == self.fine.store_name:
            raise ValueError(f"coarse and fine are both {self.coarse.option}; give them two sizes")
        stores: dict[str, str] = {}
        for role, backbone in self.by_role.items():
            other = stores.setdefault(backbone.store_name, role)
            if other != role:
                raise ValueError(f"{other} and {role} are both {backbone.option}; name it once")
        return self

    @property
    def by_role(self) -> dict[str, Backbone]:
        return {"coarse": self.coarse, "fine": self.fine, **self.others}


class Extraction(Section):
    """What is extracted, as `liteeval-extract run` takes it; where and how fast are flags."""

    fps: float = Field(default=1.0, gt=0)  # rows per second of video
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    decoder: Literal["auto", "pyav", "decord"] = "auto"
    on_corrupt: Literal["keep", "fail"] = "keep"  # videos with damaged frames

    @property
    def decoding(self) -> tuple[str, ...]:
        """Options that finetuning takes too."""
        return (
            *("--fps", f"{self.fps:g}", "--decoder", self.decoder),
            *("--on-corrupt", self.on_corrupt),
        )


class Run(Section):
    """One model to train: a method, a preset, and what differs from it."""

    method: str = "liteeval"
    name: RunName = ""  # the folder's name; by default the method, + as -
    preset: str | None = None
    seed: int = Field(0, ge=0)
    gpus: int = Field(default=1, ge=1)  # of one machine, that train it together
    set: dict[str, Option] = Field(default_factory=dict)  # overrides, as `liteeval-train fit --set`
    fine: str = "fine"  # the fine backbone: fine, or one of backbones.others
    own_head: bool = False  # of uniform: the finetuned fine backbone's classifier; nothing trains
    matrix: dict[str, Annotated[tuple[Option, ...], Field(min_length=1)]] = Field(
        default_factory=dict
    )  # a run for each combination of these overrides
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = ()  # a run for each of these seeds

    @model_validator(mode="after")
    def _say_everything_once(self) -> Run:
        twice = sorted(self.set.keys() & self.matrix.keys())
        if twice:
            raise ValueError(f"{', '.join(twice)}: stands in set and in matrix")
        if self.seeds and self.seed:
            raise ValueError("give seed or seeds, not both")
        if self.own_head and self.method != "uniform":
            raise ValueError(f"own_head is for method uniform, not {self.method}")
        return self

    @property
    def settings(self) -> list[str]:
        """What `liteeval-train fit --set` takes: key=value."""
        values = {"seed": self.seed, **self.set}
        texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}
        return [f"{key}={text}" for key, text in texts.items()]

    def expand(self) -> list[Run]:
        """One run for each combination of the matrix and each seed, named by what it differs in.

        {name: a, matrix: {epochs: [5, 9]}, seeds: [0, 1]} → a-epochs-5-seed-0, a-epochs-5-seed-1, …
        """
        points = itertools.product(*self.matrix.values())
        return [
            Run(
                method=self.method,
                name=self._name_at(values, seed),
                preset=self.preset,
                seed=self.seed if seed is None else seed,
                set={**self.set, **dict(zip(self.matrix, values, strict=True))},
                fine=self.fine,
                own_head=self.own_head,
                gpus=self.gpus,
            )
            for values, seed in itertools.product(points, self.seeds or (None,))
        ]

    def _name_at(self, values: tuple[Option, ...], seed: int | None) -> str:
        words: list[str] = []
        for key, value in zip(self.matrix, values, strict=True):
            words += [key, value if isinstance(value, str) else json.dumps(value)]
        words += [] if seed is None else ["seed", str(seed)]
        return "-".join([self.name, *(re.sub(r"[^A-Za-z0-9._]+", "_", word) for word in words)])

    @model_validator(mode="before")
    @classmethod
    def _name_is_method(cls, value: object) -> object:
        if isinstance(value, Mapping) and "name" not in value:
            return {**value, "name": str(value.get("method", "liteeval")).replace("+", "-")}
        return value


class Evaluation(Section):
    split: Split = "val"  # of tables, figures and the filmstrip
    also: tuple[Split, ...] = ()  # further splits, a table for each
    budgets: Annotated[str, Field(pattern=r"^[1-9]\d*(-[1-9]\d*)?$")] | None = None  # 1-10

    @field_validator("budgets")
    @classmethod
    def _in_order(cls, budgets: str | None) -> str | None:
        first, _, last = (budgets or "1").partition("-")
        if int(first) > int(last or first):
            raise ValueError("expected A-B with A ≤ B")
        return budgets

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.split, *self.also)))


class Report(Section):
    filmstrip: RunPattern | None = None  # the run whose gate is pictured; no pattern
    filmstrip_videos: int = Field(default=6, ge=1)
    figures: tuple[RunPattern, ...] = ()  # the runs of the paper's figures
    seconds: tuple[RunPattern, ...] = ()  # runs timed from file to prediction, one fine backbone
    seconds_videos: int = Field(default=10, ge=1)
    tables: dict[Name, Annotated[tuple[RunPattern, ...], Field(min_length=1)]] = Field(
        default_factory=dict
    )  # tables of some runs, beside the one of all


class Manifest(Section):
    """A whole experiment, all paths absolute and all variables filled in."""

    name: Name
    data: Data
    backbones: Backbones
    extraction: Extraction = Field(default_factory=Extraction)
    runs: tuple[Run, ...] = Field(min_length=1)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    report: Report = Field(default_factory=Report)

    @cached_property
    def all_runs(self) -> tuple[Run, ...]:
        """Every single run: matrices and seeds are expanded."""
        return tuple(single for run in self.runs for single in run.expand())

    def runs_like(self, patterns: Iterable[str]) -> list[str]:
        """The names of the runs that match one of the patterns, in the manifest's order."""
        names = (run.name for run in self.all_runs)
        return [n for n in names if any(fnmatchcase(n, pattern) for pattern in patterns)]

    @model_validator(mode="after")
    def _runs_have_names(self) -> Manifest:
        names = [run.name for run in self.all_runs]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two runs are called {name!r}; give each its own name")
        wanted = self.report.filmstrip
        if wanted is not None and wanted not in names:
            raise ValueError(f"report.filmstrip: {_unknown('run', wanted, names)}")
        named = {"figures": self.report.figures, "seconds": self.report.seconds}
        named |= {f"tables.{name}": patterns for name, patterns in self.report.tables.items()}
        for key, patterns in named.items():
            for pattern in patterns:
                if not self.runs_like([pattern]):
                    raise ValueError(f"report.{key}: {_unknown('run', pattern, names)}")
        return self

    @model_validator(mode="after")
    def _runs_have_backbones(self) -> Manifest:
        for number, run in enumerate(self.runs):
            if run.fine == "coarse" or run.fine not in self.backbones.by_role:
                valid = [role for role in self.backbones.by_role if role != "coarse"]
                raise ValueError(f"runs.{number}.fine: {_unknown('backbone', run.fine, valid)}")
            if run.own_head and self.backbones.by_role[run.fine].finetune is None:
                raise ValueError(
                    f"runs.{number}.own_head: backbone {run.fine!r} is not finetuned, so it has no "
                    "classifier for these classes; give it `finetune`, or leave own_head out"
                )
        return self

    @model_validator(mode="after")
    def _timed_runs_have_one_fine_backbone(self) -> Manifest:
        timed = self.runs_like(self.report.seconds)
        roles = sorted({run.fine for run in self.all_runs if run.name in timed})
        if len(roles) > 1:
            raise ValueError(
                f"report.seconds: its runs read the fine features of {' and '.join(roles)}; name "
                "runs of one fine backbone"
            )
        return self

    def missing_inputs(self) -> list[str]:
        """One line for each file or folder that the manifest names and that is not there."""
        data = self.data
        named = [("data.videos", data.videos), ("data.labels", data.labels)]
        named += [("data.annotations", path) for path in data.annotations]
        named += [("data.classes", data.classes)]
        named += [
            (f"backbones.{role}.weights", backbone.weights)
            for role, backbone in self.backbones.by_role.items()
            if isinstance(backbone.weights, Path)
        ]
        return [f"{key}: {path} is not there" for key, path in named if path and not path.exists()]

    def to_yaml(self) -> str:
        """The manifest as it was understood; it loads again from any folder."""
        content = self.model_dump(mode="json", exclude_none=True)
        return yaml.safe_dump(content, sort_keys=False)


def manifest_schema() -> dict[str, Any]:
    """The JSON schema of a manifest file, for editors: any value may be a ${variable}."""
    schema = _or_variable(Manifest.model_json_schema())
    schema["properties"]["variables"] = {
        "type": "object",
        "description": "Defaults of ${names}; one without a value is given by --set.",
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _or_variable(schema: Any) -> Any:
    """Let a text of the form ${name} stand for every number, truth value and choice."""
    if isinstance(schema, list):
        return [_or_variable(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    filled = {key: _or_variable(item) for key, item in schema.items()}
    if "enum" not in schema and schema.get("type") not in ("integer", "number", "boolean"):
        return filled
    about = {key: filled.pop(key) for key in ("default", "title") if key in filled}
    return {**about, "anyOf": [filled, {"type": "string", "pattern": VARIABLE.pattern}]}


def load_manifest(path: Path, *, settings: Mapping[str, str] | None = None) -> Manifest:
    """Read, fill in the variables, check.

    Args:
        settings: variables from the command line; they win over the manifest's defaults.

    Raises: ManifestError that names the file, the key, and what was expected.
    """
    content = _read_yaml(path)
    if not isinstance(content, dict):
        raise ManifestError(f"{path}: expected a mapping with name, data, backbones and runs")
    variables = _declare_variables(path, content.pop("variables", None), settings or {})
    try:
        filled = _fill(content, variables)
        return Manifest.model_validate(filled, context={"folder": path.resolve().parent})
    except _VariableFault as error:
        raise ManifestError(f"{path}: {error}") from error
    except ValidationError as error:
        raise ManifestError("\n".join(_describe(path, error))) from error


class _Loader(yaml.SafeLoader):
    """YAML without surprises: no key twice, no alias within what it refers to, dates are text."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node in self.recursive_objects:
            raise _yaml_error("an alias stands within what it refers to", node)
        return super().construct_object(node, deep=True)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _yaml_error("expected a text as key", key_node)
            if key_node.value in seen:
                raise _yaml_error(f"the key {key_node.value!r} stands twice", key_node)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _yaml_error(problem: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _read_yaml(path: Path) -> Any:
    try:
        with path.open(encoding="utf-8") as file:
            return yaml.load(file, Loader=_Loader)
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: not a text file in UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ManifestError(f"{where}: {getattr(error, 'problem', None) or error}") from error
    except ValueError as error:  # a number that YAML's own pattern takes and Python does not
        raise ManifestError(f"{path}: {error}") from error


class _VariableFault(Exception):
    """A ${name} that the manifest does not declare, or that stands within its own value."""


class _Variables:
    """Values by name; a value may hold other variables."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._being_filled: list[str] = []

    def __getitem__(self, name: str) -> Any:
        """Raises: _VariableFault if there is none, or it stands within its own value."""
        if name not in self._values:
            raise _VariableFault(f"${{{name}}}: {_unknown('variable', name, self._values)}")
        value, above = self._values[name], self._being_filled
        if name in above:
            raise _VariableFault(f"variables: a cycle: {' → '.join([*above, name])}")
        if isinstance(value, CommandLineText):
            return value
        above.append(name)
        try:
            return _fill(value, self)
        finally:
            above.pop()


def _declare_variables(path: Path, declared: object, settings: Mapping[str, str]) -> _Variables:
    """Defaults of the manifest, overlaid with the command line's values."""
    if not isinstance(declared or {}, dict):
        raise ManifestError(f"{path}: variables: expected a mapping from names to defaults")
    values: dict[str, Any] = dict(declared or {})  # type: ignore[call-overload]
    for name, text in settings.items():
        if name not in values:
            raise ManifestError(f"{path}: --set {name}: {_unknown('variable', name, values)}")
        values[name] = CommandLineText(text)
    missing = [f"--set {name}=VALUE" for name, value in values.items() if value is None]
    if missing:
        raise ManifestError(f"{path}: has no default for some variables; give {' '.join(missing)}")
    return _Variables(values)


def _scalar(text: str) -> Any:
    """A number or a truth value where the text is one as YAML reads it; else the text itself."""
    try:
        value = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError):
        return str(text)
    return value if isinstance(value, (bool, int, float)) else str(text)


def _fill(value: Any, variables: _Variables) -> Any:
    """Replace ${name} in every text; a text that is one variable takes that variable's type."""
    if isinstance(value, dict):
        return {key: _fill(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, variables) for item in value]
    if not isinstance(value, str):
        return value
    if whole := VARIABLE.fullmatch(value):
        return variables[whole[1]]
    filled = VARIABLE.sub(lambda match: str(variables[match[1]]), value)
    first = VARIABLE.match(value)
    from_command_line = first and isinstance(variables[first[1]], CommandLineText)
    return CommandLineText(filled) if from_command_line else filled


def _unknown(kind: str, name: str, valid: Iterable[str]) -> str:
    """`unknown key 'metod'; did you mean 'method'?`, or all the valid names."""
    names = [str(name) for name in valid]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"valid: {', '.join(names) or 'none'}"
    return f"unknown {kind} {name!r}; {hint}"


def _describe(path: Path, error: ValidationError) -> list[str]:
    """One line for each fault: the manifest, the key, what is wrong."""
    lines = []
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"])
        message = fault["msg"].removeprefix("Value error, ")
        found = "" if fault["type"] in ("value_error", "missing") else f", found {fault['input']!r}"
        lines.append(f"{path}: {where + ': ' if where else ''}{message}{found}")
    return lines
