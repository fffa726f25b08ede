"""The model: gradient-boosted trees on the features of a flight, and what is needed to store one safely."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from . import flights

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import pandas as pd
    from sklearn.pipeline import Pipeline

# A run of the same night on the same rows gives the same model.
RANDOM_STATE = 2013

# skops stores a model as data and refuses, on loading, every type that is not listed. These three are what
# scikit-learn's boosted trees consist of beyond the types that skops knows to be harmless.
TRUSTED_TYPES = [
    "functools.partial",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.utils.validation.check_array",
]


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """What a user may turn.

    The defaults are scikit-learn's, but for 200 trees instead of 100. On the nights tried, 150 to 250 trees
    and a rate of 0.08 moved the error by a few per cent either way, with no winner. The loss is no option:
    minimising the absolute error beat the squared one on all four nights tried (one a season, windows of 14
    and 28 days), since a handful of ten-hour delays no longer bends the trees.
    """

    max_iter: int = 200
    learning_rate: float = 0.1
    min_samples_leaf: int = 20

    def problem(self) -> str | None:
        """What is wrong with the values, in a sentence; None when nothing is."""
        if self.max_iter < 1:
            return f"--max-iter {self.max_iter} grows no tree: use at least 1"
        if not 0 < self.learning_rate <= 1:
            return f"--learning-rate {self.learning_rate} is not in (0, 1]"
        if self.min_samples_leaf < 1:
            return f"--min-samples-leaf {self.min_samples_leaf} leaves leaves empty: use at least 1"
        return None


def build(hyperparameters: Hyperparameters) -> Pipeline:
    """An unfitted pipeline of stock scikit-learn parts, so that serving it needs no code of ours."""
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OrdinalEncoder

    # A carrier or airport that the window has not seen becomes -1, which the trees treat as missing.
    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)  # type: ignore[no-untyped-call]
    encode = ColumnTransformer(  # type: ignore[no-untyped-call]
        [
            ("categories", codes, list(flights.CATEGORIES)),
            ("numbers", "passthrough", list(flights.NUMBERS)),
        ]
    )
    trees = HistGradientBoostingRegressor(  # type: ignore[no-untyped-call]
        loss="absolute_error",
        max_iter=hyperparameters.max_iter,
        learning_rate=hyperparameters.learning_rate,
        min_samples_leaf=hyperparameters.min_samples_leaf,
        categorical_features=list(range(len(flights.CATEGORIES))),
        early_stopping=False,
        random_state=RANDOM_STATE,
    )
    return Pipeline([("encode", encode), ("trees", trees)])  # type: ignore[no-untyped-call]


def shuffled(labels: pd.Series) -> np.ndarray[Any, Any]:
    """The same labels in another order, the same one each time: nothing can be learned from them."""
    return labels.sample(frac=1, random_state=RANDOM_STATE).to_numpy()


def errors(
    actual: pd.Series, predicted: Sequence[float] | pd.Series | np.ndarray[Any, Any]
) -> dict[str, float]:
    """Mean absolute and root mean squared error in minutes, and the number of rows they stand on."""
    difference = actual.to_numpy() - predicted
    return {
        "mae": float(abs(difference).mean()),
        "rmse": float((difference**2).mean() ** 0.5),
        "rows": float(len(actual)),
    }


def requirements() -> list[str]:
    """What loading the model needs, at the versions that made it; given so that MLflow need not guess it."""
    packages = ("mlflow", "numpy", "pandas", "scikit-learn", "skops")
    return [f"{package}=={version(package)}" for package in packages]
