"""The settings of a run in its loggers: as hyper-parameters, and the file where text is shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from refine_pl.sweep.overlays import flatten
from refine_pl.training.metrics import metrics
from refine_pl.training.run_folder import CONFIG

_FIRST = ("val", "reward")  # TensorBoard's order of groups: the others follow as they are listed
_PLAIN = (bool, int, float, str)


def show_settings(logger: Logger, text: str) -> None:
    """Give a logger the resolved configuration.

    Args:
        logger: TensorBoard gets its table of hyper-parameters and an order of the scalars, others
            what they make of hyper-parameters; MLflow also the file.
        text: of ``config.yaml``.
    """
    config: dict[str, Any] = yaml.safe_load(text)
    if isinstance(logger, TensorBoardLogger):
        _show_in_tensorboard(logger.experiment, config, text)
        return
    logger.log_hyperparams(config)
    experiment: Any = getattr(logger, "experiment", None)
    if hasattr(logger, "run_id") and hasattr(experiment, "log_text"):
        experiment.log_text(logger.run_id, text, CONFIG)


def hyper_parameters(config: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """The settings as a flat table, by dotted key; those that are not set are left out."""
    left_out = ("trainer.logger", "trainer.callbacks", "config")
    return {
        key.replace(".init_args", "").removesuffix(".class_path"): value
        if isinstance(value, _PLAIN)
        else str(value)
        for key, value in flatten(config)
        if value is not None and value != {} and not key.startswith(left_out)
    }


def scalar_layout() -> dict[str, dict[str, list[Any]]]:
    """TensorBoard's "custom scalars": a chart for each scalar, the groups of ``_FIRST`` first."""
    layout: dict[str, dict[str, list[Any]]] = {name: {} for name in _FIRST}
    for metric in metrics():
        group = metric.name.split("/")[0]
        pattern = re.escape(metric.name).replace("<name>", "[^/]+")
        layout.setdefault(group, {})[metric.name] = ["Multiline", [f"^{pattern}$"]]
    return layout


def _show_in_tensorboard(writer: Any, config: Mapping[str, Any], text: str) -> None:
    from torch.utils.tensorboard.summary import hparams

    shown = {m.name: 0 for m in metrics() if m.closing and "<name>" not in m.name}
    # Lightning's own would log a value for each, which is then a point of its curve.
    for summary in hparams(hyper_parameters(config), shown):
        writer._get_file_writer().add_summary(summary)
    writer.add_custom_scalars(scalar_layout())
    writer.add_text("run/config", "\n".join(f"    {line}" for line in text.splitlines()))
