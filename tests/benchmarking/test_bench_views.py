"""Views for plots: series by size, the parts of a step, every sample in its rug; and formats of numbers."""

import re

import bench_reports as made
import pytest

from aifx.benchmarking.page import RUG_WIDTH, rug_plot
from aifx.benchmarking.views import by_size, headlines, memory_rate, of_name, step_of
from aifx.core import units


def test_parts_and_the_rest_are_the_whole():
    step = step_of(made.report(*made.train(0.12)))
    assert [part.name for part in step.parts] == ["forward", "backward", "optimizer", "the rest"]
    assert sum(part.seconds for part in step.parts) == pytest.approx(step.whole_s)
    assert sum(part.fraction for part in step.parts) == pytest.approx(1)
    assert [part.name for part in step.beside] == ["data wait", "dispatch"]
    assert step.over_s == 0


def test_parts_that_are_longer_than_the_step_say_so():
    quick = made.result("train.loop", 0.09, noise=0.0)
    step = step_of(made.report(quick, *made.train(0.12)[3:]))
    assert [part.name for part in step.parts] == ["forward", "backward", "optimizer"]
    assert step.over_s == pytest.approx(0.9 * 0.12 - 0.09, rel=0.05)


def test_a_step_of_which_nothing_was_measured_apart():
    assert step_of(made.report()) is None
    assert step_of(made.report(made.result("train.step", 1.0))) is None
    assert step_of(made.report(made.result("train.forward", 1.0))) is None


def test_series_go_up_in_size_with_their_intervals():
    results = made.hardware()
    series = by_size(reversed(results), "hardware.memory")
    assert set(series) == {"copy", "scale", "add", "triad"}
    for points in series.values():
        sizes = [point.x for point in points]
        assert sizes == sorted(sizes)
        assert all(point.low <= point.y <= point.high for point in points)
        low, high = points[0].result.interval_s
        assert (points[0].high - points[0].low) / points[0].y == pytest.approx(
            points[0].result.median_s * (1 / low - 1 / high)
        )
    (first, *_), *_ = by_size(results, "hardware.collective").values()
    assert first.y == first.result.figures["bus_bytes_per_s"]


def test_headlines_are_of_the_largest_memory_and_the_best_product():
    report = made.report(*made.hardware(), *made.train())
    largest = [r for r in of_name(report, "hardware.memory") if r.params["num_bytes"] == 1 << 30]
    assert memory_rate(report) == max(result.bytes_per_s for result in largest)
    cached = [r.model_copy(update={"figures": {"times_cache": 0.5}}) for r in largest]
    assert memory_rate(made.report(*cached)) is None
    told = dict(headlines(report))
    best = max(r.flops_per_s for r in of_name(report, "hardware.matmul") if r.params["dtype"] == "float32")
    assert told["float32 products"] == units.rate(best, "FLOP/s")
    assert told["MFU"] == "41 %"
    assert "tokens/joule" not in told  # it could not be read


def test_a_project_of_images_has_its_own_headlines():
    figures = {"units_per_s": 512.0, "mfu": 0.2, "units_per_joule": 3.0, "model_flops": 1e9}
    step = made.result("train.step", 1.0, unit="images", figures=figures)
    told = [label for label, _ in headlines(made.report(step))]
    assert told == ["training step", "images/s", "MFU", "images/joule"]


def test_a_strip_has_every_sample():
    result = made.result("x", 1.0, launches=2, noise=0.001)
    late = result.model_copy(update={"samples_s": [[*launch, 50.0] for launch in result.samples_s]})
    for one in (result, late, result.model_copy(update={"samples_s": [[1.0, 1.0]], "interval_s": (1.0, 1.0)})):
        drawn = rug_plot(one)
        assert len(drawn.lines) == len(one.samples_s)
        for line, samples in zip(drawn.lines, one.samples_s, strict=True):
            places = [float(x) for x in re.findall(r"M([\d.]+) ", line)]
            assert 1 <= len(places) <= len(samples)
            assert all(0 <= place <= RUG_WIDTH for place in places)
        assert 0 <= drawn.low <= drawn.middle <= drawn.high <= RUG_WIDTH
        assert drawn.beyond == sum(s > drawn.scale[1] for launch in one.samples_s for s in launch)
    assert rug_plot(late).beyond >= 2


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (units.duration(0.99996), "1 s"),
        (units.duration(0.0123), "12.3 ms"),
        (units.duration(4.35e-6), "4.35 µs"),
        (units.duration(0), "0 ns"),
        (units.rate(9.999e11, "FLOP/s"), "1 TFLOP/s"),
        (units.rate(123.456e9, "B/s"), "123 GB/s"),
        (units.rate(0.5, "B/s"), "0.5 B/s"),
        (units.size(16384), "16 KiB"),
        (units.size(1000), "1000 B"),
        (units.share(0.0123), "1.2 %"),
        (units.share(0.996), "100 %"),
        (units.named("memory", {"op": "copy", "num_bytes": 1 << 20}), "memory copy 1 MiB"),
        (units.named("x", {"size": 1024, "quick": True}), "x 1024 True"),
    ],
)
def test_numbers_are_told_in_three_digits(said, text):
    assert said == text


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("peak_memory_bytes", 3 << 20, ("peak memory", "3 MiB")),
        ("bus_bytes_per_s", 2e9, ("bus", "2 GB/s")),
        ("units_per_s", 34_133.0, ("tokens/s", "34.1 k")),
        ("units_per_joule", 12.0, ("tokens/joule", "12")),
        ("step_j", 0.25, ("step", "0.25 J")),
        ("first_call_s", 0.5, ("first call", "500 ms")),
        ("mfu", 0.41, ("MFU", "41 %")),
        ("overhead_share", 0.004, ("overhead share", "0.4 %")),
        ("eigen_flops_per_s", 4e10, ("eigen", "40 GFLOP/s")),
        ("accuracy", 0.5, ("accuracy", "0.5")),
    ],
)
def test_a_figure_is_told_by_the_unit_in_its_name(name, value, told):
    assert units.figure(name, value, "tokens") == told
