"""The feeds of a build: from its data set or from a seed, with what can't be measured on them taken out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from penstock import feeds, graph, inputs
from penstock.errors import UsageError

if TYPE_CHECKING:
    from penstock.build_settings import BuildSettings
    from penstock.data import Dataset
    from penstock.feeds import RoleFeeds


def for_build(
    dataset: Dataset | None, model: Path, settings: BuildSettings, sizes: Mapping[str, int] | None = None
) -> tuple[RoleFeeds, str]:
    """Return the roles for a model, and a note on what can't be measured with them ("" if all can).

    ``sizes`` are those of dynamic axes, for inputs that are made up.

    Raises ``InputError`` where the data doesn't fit the model, ``UsageError`` for a limit that nothing can be held to.
    """
    loaded = graph.load(model)
    signature = graph.signature(loaded)
    if dataset is None:
        made = feeds.from_seed(signature, inputs.integer_bounds(loaded), settings.data, settings.seed, sizes)
        return made, "no data was given: inputs were made from the signature, accuracy was not measured"
    data = feeds.from_data(dataset, signature, settings.data, settings.seed)
    if not settings.evaluate.metric:
        feeds.check_classes(data, signature, dataset.name)
    why = "" if data.select is not None else f"{dataset.name} has no labels"
    if not why and not settings.evaluate.metric and not feeds.has_classes(signature):
        why = f"top-1 means nothing for the output {signature.outputs[0].text()}"
        data = replace(data, select=None, evaluate=None)
    if why and settings.select.max_drop is not None:
        do = "give labelled data and, unless the model is a classifier, --metric module:function"
        raise UsageError("no-metric", f"--max-drop needs an accuracy, and {why}", do=do)
    return data, f"accuracy was not measured: {why}; --metric module:function names another measure" if why else ""
