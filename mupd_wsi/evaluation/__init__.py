"""Measuring stains against the real thing."""

from mupd_wsi.evaluation.measuring import Evaluation, EvaluationOptions, evaluate_slides
from mupd_wsi.evaluation.report import write_report

__all__ = ["Evaluation", "EvaluationOptions", "evaluate_slides", "write_report"]
