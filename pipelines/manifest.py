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
the current directory.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
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
    """A value that begins with a variable from the command line: as a path, relative to the cwd."""


def _resolve_path(value: object, info: ValidationInfo) -> object:
    if not isinstance(value, (str, Path)) or str(value) == "":
        raise ValueError(f"expected a path, found {value!r}")
    base = Path.cwd() if isinstance(value, CommandLineText) else (info.context or {})["folder"]
    return (base / Path(value).expanduser()).resolve()


def _resolve_weights(value: object, info: ValidationInfo) -> object:
    return value if value in ("published", "random") else _resolve_path(value, info)


def _require_scalar(value: object) -> object:
    if not isinstance(value, (str, int, float, bool)):
        raise ValueError(f"expected a text, a number, true or false, found {value!r}")
    return value


ManifestPath = Annotated[Path, BeforeValidator(_resolve_path)]
Weights = Annotated[Literal["published", "random"] | Path, BeforeValidator(_resolve_weights)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Option = Annotated[str | int | float | bool, BeforeValidator(_require_scalar)]


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
    """A folder of videos with labels.csv (video_id,label,split), or clips to render."""

    videos: ManifestPath | None = None
    labels: ManifestPath | None = None
    synthetic: SyntheticClips | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        files = (self.videos, self.labels)
        if any(files) == bool(self.synthetic) or any(files) != all(files):
            raise ValueError("give either videos and labels, or synthetic")
        return self


class Backbone(Section):
    """A network that turns frames into rows of features."""

    name: str = Field(min_length=1)
    size: int = Field(ge=1)  # input, px
    weights: Weights = "published"  # published, random (seeded), or a file

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

    @model_validator(mode="after")
    def _two_stores(self) -> Backbones:
        if self.coarse.store_name == self.fine.store_name:
            raise ValueError(f"coarse and fine are both {self.coarse.option}; give them two sizes")
        return self


class Extraction(Section):
    fps: float = Field(default=1.0, gt=0)  # rows per second of video


class Run(Section):
    """One model to train: a method, a preset, and what differs from it."""

    method: str = "liteeval"
    name: Name = ""  # the folder's name; the method if not given
    preset: str | None = None
    seed: int = Field(0, ge=0)
    set: dict[str, Option] = Field(default_factory=dict)  # overrides, as `liteeval-train fit --set`

    @model_validator(mode="before")
    @classmethod
    def _name_is_method(cls, value: object) -> object:
        if isinstance(value, Mapping) and "name" not in value:
            return {**value, "name": value.get("method", "liteeval")}
        return value


class Evaluation(Section):
    split: str = "val"


class Report(Section):
    filmstrip: str | None = None  # the run whose gate is pictured
    filmstrip_videos: int = Field(default=6, ge=1)


class Manifest(Section):
    """A whole experiment, all paths absolute and all variables filled in."""

    name: Name
    data: Data
    backbones: Backbones
    extraction: Extraction = Field(default_factory=Extraction)
    runs: tuple[Run, ...] = Field(min_length=1)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    report: Report = Field(default_factory=Report)

    @model_validator(mode="after")
    def _runs_have_names(self) -> Manifest:
        names = [run.name for run in self.runs]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two runs are called {name!r}; give each its own name")
        wanted = self.report.filmstrip
        if wanted is not None and wanted not in names:
            raise ValueError(f"report.filmstrip: {_unknown('run', wanted, names)}")
        return self

    def missing_inputs(self) -> list[str]:
        """One line for each file or folder that the manifest names and that is not there."""
        named = [("data.videos", self.data.videos), ("data.labels", self.data.labels)]
        named += [
            (f"backbones.{role}.weights", backbone.weights)
            for role, backbone in (("coarse", self.backbones.coarse), ("fine", self.backbones.fine))
            if isinstance(backbone.weights, Path)
        ]
        return [f"{key}: {path} is not there" for key, path in named if path and not path.exists()]

    def to_yaml(self) -> str:
        """The manifest as it was understood; it loads again from any folder."""
        content = self.model_dump(mode="json", exclude_none=True)
        return yaml.safe_dump(content, sort_keys=False)


def load_manifest(path: Path, *, settings: Mapping[str, str] | None = None) -> Manifest:
    """Read, fill in the variables, check.

    Args:
        settings: variables from the command line; they win over the manifest's defaults.

    Raises: ManifestError that names the file, the key, and what was expected.
    """
    content = _read_yaml(path)
    if not isinstance(content, dict):
        raise ManifestError(f"{path}: expected a mapping with name, data, backbones and runs")
    variables = _variables(path, content.pop("variables", None), settings or {})
    try:
        filled = _fill(content, variables)
        return Manifest.model_validate(filled, context={"folder": path.resolve().parent})
    except _UnknownVariable as error:
        raise ManifestError(f"{path}: {error}") from error
    except ValidationError as error:
        raise ManifestError("\n".join(_describe(path, error))) from error


class _Loader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, not a silent loss of the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


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


class _UnknownVariable(Exception):
    """A ${name} that the manifest does not declare."""


def _variables(path: Path, declared: object, settings: Mapping[str, str]) -> dict[str, Any]:
    """Defaults of the manifest, overlaid with the command line's values."""
    if not isinstance(declared or {}, dict):
        raise ManifestError(f"{path}: variables: expected a mapping from names to defaults")
    variables: dict[str, Any] = dict(declared or {})  # type: ignore[call-overload]
    for name, text in settings.items():
        if name not in variables:
            raise ManifestError(f"{path}: --set {name}: {_unknown('variable', name, variables)}")
        value = _scalar(text)
        variables[name] = CommandLineText(value) if isinstance(value, str) else value
    missing = [f"--set {name}=VALUE" for name, value in variables.items() if value is None]
    if missing:
        raise ManifestError(f"{path}: has no default for some variables; give {' '.join(missing)}")
    return variables


def _scalar(text: str) -> Any:
    """A number or a truth value where the text is one as YAML reads it; else the text itself."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if isinstance(value, (bool, int, float)) else text


def _fill(value: Any, variables: Mapping[str, Any]) -> Any:
    """Replace ${name} in every text; a text that is one variable takes that variable's type."""
    if isinstance(value, dict):
        return {key: _fill(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, variables) for item in value]
    if not isinstance(value, str):
        return value
    if whole := VARIABLE.fullmatch(value):
        return _lookup(whole[1], variables)
    filled = VARIABLE.sub(lambda match: str(_lookup(match[1], variables)), value)
    first = VARIABLE.match(value)
    from_command_line = first and isinstance(variables[first[1]], CommandLineText)
    return CommandLineText(filled) if from_command_line else filled


def _lookup(name: str, variables: Mapping[str, Any]) -> Any:
    if name not in variables:
        raise _UnknownVariable(f"${{{name}}}: {_unknown('variable', name, variables)}")
    return variables[name]


def _unknown(kind: str, name: str, valid: Iterable[str]) -> str:
    """`unknown key 'metod'; did you mean 'method'?`, or all the valid names."""
    names = list(valid)
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
