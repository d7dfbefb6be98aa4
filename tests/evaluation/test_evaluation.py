"""Measured figures against plain sums over the whole images."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu, spearmanr
from stains import MPP, SIDE, noisy, section, write

from mupd_wsi.cli.app import run
from mupd_wsi.errors import SlideError, UsageError
from mupd_wsi.evaluation import EvaluationOptions, evaluate_slides
from mupd_wsi.evaluation.bootstrap import figures
from mupd_wsi.evaluation.cells import cell_means, find_cells, nuclear_threshold
from mupd_wsi.evaluation.distances import feature_distances
from mupd_wsi.evaluation.pairing import stain_densities
from mupd_wsi.geometry import Region
from mupd_wsi.rendering import to_brightfield


@pytest.fixture(scope="module")
def real():
    return section()


@pytest.fixture(scope="module")
def virtual(real):
    return noisy(real, 20)


@pytest.fixture(scope="module")
def slides(tmp_path_factory, real, virtual):
    folder = tmp_path_factory.mktemp("pair")
    return (
        write(folder / "real.ome.tiff", real, ("DAPI", "CD8")),
        write(folder / "virtual.ome.zarr", np.ascontiguousarray(virtual[::-1]), ("CD8a", "Hoechst")),
    )


@pytest.fixture(scope="module")
def found(slides):
    return evaluate_slides(*slides)


def _patches(plane, patch):
    return plane.reshape(SIDE // patch, patch, SIDE // patch, patch).mean(axis=(1, 3)).ravel()


def test_correlations_are_those_of_the_whole_images_whatever_the_channels_are_called(found, real, virtual):
    assert found.markers == ("DAPI", "CD8")
    for channel, marker in enumerate(found.markers):
        for patch in (1, 8, 64):
            sides = [_patches(planes[channel].astype(float), patch) for planes in (real, virtual)]
            expected = np.corrcoef(*sides)[0, 1]
            figure = found.table[marker][f"pearson_{patch}px"]
            assert figure.value == pytest.approx(expected, abs=1e-4)
            assert figure.low <= figure.value <= figure.high
        ranks = spearmanr(real[channel].ravel(), virtual[channel].ravel()).statistic
        assert found.table[marker]["spearman"].value == pytest.approx(ranks, abs=0.02)
    mean = np.mean([found.table[m]["pearson_8px"].value for m in found.markers])
    assert found.table["mean"]["pearson_8px"].value == pytest.approx(mean)


def test_likeness_and_areas_are_those_of_the_whole_images(found, real, virtual):
    high, level = found.high["CD8"], found.positive["CD8"]
    assert level == pytest.approx(high / 4, rel=1e-3)
    a, b = (np.minimum(planes[1].astype(float), high) for planes in (real, virtual))
    row = found.table["CD8"]
    assert row["psnr"].value == pytest.approx(10 * np.log10(high**2 / np.mean((a - b) ** 2)), abs=0.01)
    positive = real[1] >= level, virtual[1] >= level
    assert row["area_real"].value == pytest.approx(positive[0].mean(), abs=1e-4)
    dice = 2 * (positive[0] & positive[1]).sum() / (positive[0].sum() + positive[1].sum())
    assert row["dice"].value == pytest.approx(dice, abs=1e-4)
    assert row["mean_ratio"].value == pytest.approx(virtual[1].mean() / real[1].mean(), abs=1e-3)


def test_a_slide_agrees_with_itself_and_a_shuffled_one_does_not(slides, tmp_path):
    same = evaluate_slides(slides[0], slides[0])
    for metric in ("pearson_1px", "spearman", "ssim", "dice", "cell_auc"):
        assert same.table["CD8"][metric].value == pytest.approx(1, abs=1e-3)
    other = write(tmp_path / "other.ome.tiff", section(seed=9), ("DAPI", "CD8"))
    wrong = evaluate_slides(slides[0], other)
    assert wrong.table["CD8"]["pearson_8px"].value < 0.2  # the cells lie on the same grid
    assert wrong.table["CD8"]["cell_auc"].value == pytest.approx(0.5, abs=0.08)


def test_cells_are_found_and_told_apart(real, virtual, found):
    threshold = nuclear_threshold(real[0].astype(np.float32))
    cells = find_cells(real[0].astype(np.float32), threshold, MPP)
    drawn = len(range(14, SIDE - 14, 20)) ** 2
    assert len(np.unique(cells)) - 1 == pytest.approx(drawn, rel=0.05)
    assert found.cells == pytest.approx(drawn, rel=0.1)  # those on the edges of tiles are left out
    means = [cell_means(planes[1:].astype(np.float32), cells)[:, 0] for planes in (real, virtual)]
    positive = means[0] >= found.positive["CD8"]
    auc = mannwhitneyu(means[1][positive], means[1][~positive]).statistic / (positive.sum() * (~positive).sum())
    assert found.table["CD8"]["cell_auc"].value == pytest.approx(auc, abs=0.01)
    assert found.table["CD8"]["positive_cells_real"].value == pytest.approx(positive.mean(), abs=0.02)
    assert found.table["CD8"]["cell_f1"].value > 0.9


def test_thresholds_of_another_slide_are_used_and_told(slides, found):
    assert found.f1_is_tuned_here
    other = evaluate_slides(*slides, EvaluationOptions(thresholds={"cd8": 240.0}, positive={"CD8a": 70.0}))
    assert not other.f1_is_tuned_here
    assert other.f1_thresholds["CD8"] == 240
    assert other.positive["CD8"] == 70
    assert other.table["CD8"]["cell_f1"].value == pytest.approx(0, abs=1e-6)
    with pytest.raises(UsageError, match="no channel CD99"):
        evaluate_slides(*slides, EvaluationOptions(positive={"CD99": 1.0}))


def test_a_stained_region_is_compared_where_it_lies(slides, tmp_path, virtual):
    x, y = 100, 228
    shown = {"notice": "virtual", "display_window": {"CD8a": [0, 51.0], "Hoechst": [0, 255.0]}}
    part = np.ascontiguousarray(virtual[:, y : y + 512, x : x + 600])
    path = write(tmp_path / "roi.ome.tiff", part, ("Hoechst", "CD8a"), (x * MPP, y * MPP), shown)
    roi = evaluate_slides(slides[0], path)
    whole = evaluate_slides(*slides, EvaluationOptions(roi=Region(x, y, 600, 512)))
    assert (roi.region.x, roi.region.y, roi.region.width, roi.region.height) == (x, y, 600, 512)
    for metric in ("pearson_1px", "pearson_64px"):
        assert roi.table["CD8"][metric].value == pytest.approx(whole.table["CD8"][metric].value, abs=1e-4)
    ratio = roi.table["CD8"]["mean_ratio"].value / whole.table["CD8"]["mean_ratio"].value
    assert ratio == pytest.approx(0.2, abs=1e-3)  # grey 255 stands for 51


def test_a_true_standard_deviation_is_found_calibrated(tmp_path):
    rng = np.random.default_rng(0)
    deviation = np.repeat(np.array([[4], [12]]), 256, axis=0).repeat(512, axis=1).reshape(512, 512)
    mean = np.full((512, 512), 100.0)
    truth = rng.normal(mean, deviation)
    real = write(tmp_path / "real.ome.tiff", truth.round().astype(np.uint8)[None], ("CD8",))
    planes = np.stack([mean, deviation]).astype(np.uint8) // 2
    shown = {"notice": "virtual", "display_window": {"CD8": [0, 510.0]}}  # grey 255 is 510, of both channels
    virtual = write(tmp_path / "virtual.ome.tiff", planes, ("CD8", "CD8 SD"), provenance=shown)
    row = evaluate_slides(real, virtual).table["CD8"]
    assert row["sd_coverage_90"].value == pytest.approx(0.9, abs=0.02)
    assert row["sd_error_ratio"].value == pytest.approx(1, abs=0.03)
    assert row["sd_error_spearman"].value > 0.3
    assert np.isnan(row["pearson_1px"].value)  # the virtual one does not vary


@pytest.fixture(scope="module")
def brightfield(tmp_path_factory, real, virtual):
    folder = tmp_path_factory.mktemp("ihc")
    return (
        write(folder / "real.ome.tiff", to_brightfield(*real)),
        write(folder / "virtual.ome.tiff", to_brightfield(virtual[0], real[1] // 2)),
    )


def test_brightfield_is_compared_by_its_stains(brightfield):
    found = evaluate_slides(*brightfield)
    assert (found.style, found.markers) == ("ihc", ("Haematoxylin", "DAB"))
    row = found.table["DAB"]
    assert row["pearson_1px"].value > 0.9
    assert row["mean_ratio"].value < 0.8  # painted at half the strength
    assert row["h_score_real"].value > 40
    assert row["h_score_difference"].value < -10
    assert 0.7 < row["dice"].value <= 1


@pytest.mark.parametrize("name", ["roi.ome.tiff", "roi.ome.zarr"])
def test_a_painted_region_is_compared_where_it_lies(brightfield, tmp_path, real, name):
    part = np.ascontiguousarray(to_brightfield(*real)[:, 200:712, 64:576])
    shown = {"notice": "virtual", "display_window": {"Hoechst": [0, 255.0]}}
    found = evaluate_slides(brightfield[0], write(tmp_path / name, part, (), (64 * MPP, 200 * MPP), shown))
    assert (found.region.x, found.region.y, found.region.width, found.region.height) == (64, 200, 512, 512)
    assert found.table["DAB"]["pearson_1px"].value > 0.95  # JPEG on one side or both


def test_deconvolution_gives_back_what_was_painted():
    nuclei, marker = (np.tile(np.linspace(0, 200, 64).astype(np.uint8), (64, 1)) for _ in range(2))
    amounts = stain_densities(to_brightfield(nuclei, np.zeros_like(marker)).transpose(1, 2, 0), (255, 255, 255))
    assert amounts[0, 0, -1] > 0.3
    assert amounts[1].max() < 0.05
    brown = stain_densities(to_brightfield(np.zeros_like(nuclei), marker).transpose(1, 2, 0), (255, 255, 255))
    assert brown[1, 0, -1] > 0.5
    assert brown[0].max() < 0.1


def test_what_cannot_be_compared_is_refused(slides, brightfield, tmp_path, real):
    with pytest.raises(SlideError, match="give two of one kind"):
        evaluate_slides(slides[0], brightfield[1])
    with pytest.raises(UsageError, match="no channel is in both"):
        evaluate_slides(slides[0], write(tmp_path / "other.ome.tiff", real, ("CD31", "CD45")))
    with pytest.raises(UsageError, match="share less than"):
        evaluate_slides(*slides, EvaluationOptions(roi=Region(5000, 5000, 100, 100)))
    with pytest.raises(UsageError, match="no signal"):
        evaluate_slides(write(tmp_path / "black.ome.tiff", real * 0, ("DAPI", "CD8")), slides[1])


def test_tiles_without_real_signal_are_left_out(tmp_path, real):
    wider = np.concatenate([real, np.zeros_like(real)], axis=2)
    virtual = np.concatenate([real, np.full_like(real, 40)], axis=2)
    paths = [write(tmp_path / f"{n}.ome.tiff", p, ("DAPI", "CD8")) for n, p in (("a", wider), ("b", virtual))]
    half = evaluate_slides(*paths)
    assert (half.tiles, half.skipped) == (4, 4)
    assert half.table["CD8"]["pearson_1px"].value == pytest.approx(1, abs=1e-6)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        sums = np.stack([np.ones((30, 1)), rng.normal(5, 2, (30, 1))], axis=2)
        (figure,) = figures(sums, lambda s: s[..., 1] / s[..., 0], seed=trial)
        covered += figure.low <= 5 <= figure.high
    assert 86 <= covered <= 99


def test_feature_distances_need_a_network_and_grow_with_the_difference(slides, tmp_path):
    class Means(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.avg_pool2d(x[:, :1], 64).flatten(1)

    network = tmp_path / "features.pt2"
    auto = torch.export.Dim.AUTO
    exported = torch.export.export(Means(), (torch.rand(4, 3, 256, 256),), dynamic_shapes=({0: auto},))
    torch.export.save(exported, network)
    same = feature_distances(slides[0], slides[0], network)
    other = feature_distances(*slides, network)
    assert same["FID CD8"] == pytest.approx(0, abs=1e-4)
    assert other["FID CD8"] > 10 * abs(same["FID CD8"])
    assert other["KID CD8"] > same["KID CD8"]


def test_a_file_that_is_no_feature_network_is_refused(slides, tmp_path):
    (tmp_path / "no.pt2").write_bytes(b"junk")
    with pytest.raises(UsageError, match="no network that torch can load"):
        feature_distances(*slides, tmp_path / "no.pt2")


def test_command_writes_a_report_that_needs_no_other_file(slides, tmp_path, capsys):
    out = tmp_path / "report"
    command = ["evaluate", "--real", str(slides[0]), "--virtual", str(slides[1]), "--out", str(out), "--json", "-q"]
    assert run([*command, "--baseline", f"itself={slides[0]}"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["markers"]["CD8"]["pearson_8px"]["value"] > 0.8
    assert values["baselines"]["itself"]["markers"]["mean"]["pearson_8px"]["value"] == 1
    assert json.loads((out / "evaluation.json").read_text())["cells"] == values["cells"]
    page = (out / "report.html").read_text()
    assert "research use only" in page
    assert page.count("data:image/png;base64,") == 1 + 4  # scatter plots, two worst and two best regions
    assert 'src="http' not in page
    assert "itself" in page
    assert (out / "metrics.csv").read_text().startswith("marker,metric,value,low,high\nDAPI,pearson_1px,")


@pytest.mark.parametrize(
    ("extra", "message"),
    [(["--positive", "CD8"], "not NAME=VALUE"), (["--positive", "CD8=x"], "needs a number")],
)
def test_wrong_options_are_exit_2(slides, capsys, extra, message):
    assert run(["evaluate", "--real", str(slides[0]), "--virtual", str(slides[1]), *extra]) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_holds_no_thresholds_is_exit_2(slides, tmp_path, capsys):
    (tmp_path / "x.json").write_text("[]")
    command = ["evaluate", "--real", str(slides[0]), "--virtual", str(slides[1]), "--thresholds"]
    assert run([*command, str(tmp_path / "x.json")]) == 2
    assert "no evaluation.json" in capsys.readouterr().err
