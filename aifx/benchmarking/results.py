"""Reports of measurements: the document that `--json` prints, baselines keep and comparisons read."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aifx.benchmarking.estimate import UNDISTURBED, Change, change, estimate
from aifx.benchmarking.fingerprint import Fingerprint
from aifx.core.errors import AifxError, EnvironmentFault, ExitCode, UsageError
from aifx.core.files import RECORDS_LIMIT, read_input, write_output
from aifx.core.json_files import encode
from aifx.core.json_values import encode_json
from aifx.core.parsing import fault_in
from aifx.core.results import Result as VerbResult
from aifx.core.units import named

Param = str | int | float | bool


class _Document(BaseModel):
    """A frozen document that ignores fields of later versions."""

    model_config = ConfigDict(frozen=True)


class _Named(_Document):
    """A measured thing: its name, and the params that distinguish it from others of the name.

    Attributes:
        same_as: the key of the result whose samples these are, repeated in their place among others. They are compared
            there alone, so that one slowdown is reported once.
        compared_at: the quantile of a launch's samples that comparisons go by: low if only disturbances make them
            differ, 0.5 if they differ by themselves, as requests do.
    """

    name: str
    params: dict[str, Param]
    same_as: str | None = None
    compared_at: float = UNDISTURBED

    @property
    def key(self) -> str:
        """The key that a thing has in each launch and each report."""
        return f"{self.name} {json.dumps(self.params, sort_keys=True)}" if self.params else self.name

    @property
    def suite(self) -> str:
        return self.name.partition(".")[0]

    @property
    def title(self) -> str:
        """The same for people."""
        return named(self.name, self.params)


class Measured(_Named):
    """The result of one launch for one thing, as a suite yields it.

    Attributes:
        name: the suite's and the thing's: "hardware.matmul", "train.forward".
        samples_s: seconds of each time that it was done, in the order of measurement.
        flops, num_bytes: what doing it once asks for at the least.
        bound_s: the least time in which the hardware could do that (the roofline); None where it is not known.
        figures: what else was seen, each with its unit in its name: units_per_s, peak_memory_bytes.
        sources: of figures that were not measured here: "declared", or "measured" by the server.
        model: digest of the model that a server answered with, as `Report.model`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    params: dict[str, Param] = Field(default_factory=dict)
    samples_s: list[float] = Field(min_length=1)
    flops: float | None = None
    num_bytes: float | None = None
    bound_s: float | None = None
    unit: str | None = None
    figures: dict[str, float | None] = Field(default_factory=dict)
    sources: dict[str, str] = Field(default_factory=dict)
    model: str | None = None


class Result(_Named):
    """One thing, over all launches.

    Attributes:
        median_s: the median of the launches' medians.
        interval_s: 95 % of that, by bootstrap over launches and their samples.
        samples_s: a list a launch.
        roofline_fraction: the least time that the hardware could take over the median.
        unit: what `units_per_s` and `units_per_joule` of the figures count: "tokens", "images".
        figures: the median over the launches of each.
        sources: as the last launch has them.
    """

    median_s: float
    interval_s: tuple[float, float]
    samples_s: list[Annotated[list[float], Field(min_length=1)]] = Field(min_length=1)
    flops_per_s: float | None = None
    bytes_per_s: float | None = None
    roofline_fraction: float | None = None
    unit: str | None = None
    figures: dict[str, float | None] = Field(default_factory=dict)
    sources: dict[str, str] = Field(default_factory=dict)

    @classmethod
    def of(cls, launches: list[Measured]) -> Self:
        """Combine the results of launches for one thing."""
        last = launches[-1]
        samples = [launch.samples_s for launch in launches]
        found = estimate(samples)
        figures: dict[str, list[float]] = {}
        for launch in launches:
            for name, value in launch.figures.items():
                figures.setdefault(name, []).extend([] if value is None else [value])

        def rate(amount: float | None) -> float | None:
            return None if amount is None or found.median <= 0 else amount / found.median

        return cls(
            name=last.name,
            params=last.params,
            same_as=last.same_as,
            compared_at=last.compared_at,
            median_s=found.median,
            interval_s=(found.low, found.high),
            samples_s=samples,
            flops_per_s=rate(last.flops),
            bytes_per_s=rate(last.num_bytes),
            roofline_fraction=rate(last.bound_s),
            unit=last.unit,
            figures={name: median(values) if values else None for name, values in figures.items()},
            sources=last.sources,
        )

    def change_since(self, before: Result) -> Change:
        """Compare this result with an earlier one."""
        return change(before.samples_s, self.samples_s, self.compared_at)

    @property
    def scatter(self) -> float:
        """Half the interval of what comparisons go by (`compared_at`), as a share of it."""
        found = estimate(self.samples_s, self.compared_at)
        return (found.high - found.low) / 2 / found.median if found.median > 0 else 0.0

    @property
    def noise(self) -> float | None:
        """Half the interval's width, as a share of the median; None for a single sample, which shows no scatter."""
        if sum(map(len, self.samples_s)) == 1:
            return None
        return (self.interval_s[1] - self.interval_s[0]) / 2 / self.median_s if self.median_s > 0 else 0.0


class Failure(_Document):
    """The failure that ended a bench early: the three lines of an error, and its exit code."""

    what: str
    why: str = ""
    hint: str = ""
    exit_code: int = int(ExitCode.UNABLE)


class Request(_Document):
    """The request of a bench: enough to measure the same again.

    Attributes:
        suites: in the order in which they are measured.
        quick: the sizes that matter most, each for a short time.
        options: of the suites, by name: `ops`, `set`, `data_dir`.
    """

    suites: list[str]
    quick: bool = False
    options: dict[str, Any] = Field(default_factory=dict)


class Report(_Document, VerbResult):
    """A bench, whole or as far as it came (`failure`).

    Attributes:
        launches: of the suite that was launched most often; a result's own are in its samples.
        model: digest of the model version or of the checkpoint's arrays that was served; null if the server, or the
            suite, names none.
    """

    schema_version: Literal[1] = 1
    request: Request
    launches: int
    time: float = Field(ge=0, lt=1 << 37)  # Unix time at which it began; beyond that bound it is no date
    duration_s: float
    fingerprint: Fingerprint
    results: list[Result]
    notes: list[str] = Field(default_factory=list)
    failure: Failure | None = None
    model: str | None = None

    def document(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    def raise_failure(self) -> None:
        """Raise AifxError with the failure that ended the bench early, if there is one."""
        if found := self.failure:
            raise AifxError(found.what, found.why, found.hint, exit_code=ExitCode(found.exit_code))

    def launches_of(self, suite: str) -> int:
        """The most launches that a result of the suite has."""
        return max((len(result.samples_s) for result in self.results if result.suite == suite), default=0)

    def find(self, name: str) -> Result | None:
        """The first result of this name."""
        return next((result for result in self.results if result.name == name), None)


def read_report(path: Path) -> Report:
    """Read a report. Raises UsageError if there is no such file or it is no report."""
    try:
        return Report.model_validate_json(read_input(path, limit=RECORDS_LIMIT))
    except FileNotFoundError:
        raise UsageError(f"no report at {path}", "nothing was saved there", "aifx bench all --quick") from None
    except OSError as error:
        raise EnvironmentFault(f"{path} cannot be read", error.strerror or str(error)) from None
    except ValidationError as error:
        hint = "aifx bench train --output FILE"
        raise UsageError(f"{path} is no report of aifx bench", fault_in(error), hint) from None


def write_report(report: Report, path: Path) -> None:
    """Whole or not at all. Raises EnvironmentFault where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_output(path, encode(_one_line_per_result(report.document())))
    except OSError as error:
        why, hint = error.strerror or str(error), "aifx bench ... --output FILE writes it elsewhere"
        raise EnvironmentFault(f"{path} cannot be written", why, hint) from None


def _one_line_per_result(document: dict[str, Any]) -> str:
    """JSON whose thousands of samples have no lines of their own."""
    results = ",\n".join(encode_json(result, ensure_ascii=False) for result in document["results"])
    rest = encode_json({**document, "results": []}, indent=2, ensure_ascii=False)
    return rest.replace('"results": []', f'"results": [\n{results}\n]', 1) + "\n"
