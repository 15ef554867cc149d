# SPDX-License-Identifier: Apache-2.0
# /// script
# requires-python = ">=3.9"
# dependencies = ["scikit-learn"]
# ///
"""A model of scikit-learn's, trained when the worker starts: which iris has these four measures?"""

from __future__ import annotations

from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from atoll_worker import Service, expose


class Irises(Service):
    """Tells irises apart."""

    def setup(self) -> None:
        """Train."""
        data = load_iris()
        self.names = [str(name) for name in data.target_names]
        self.model = LogisticRegression(max_iter=1000).fit(data.data, data.target)

    @expose
    def predict(self, measures: list[list[float]]) -> list[dict[str, object]]:
        """The species of each flower, of four measures in centimetres, and how likely it is."""
        found = []
        for chances in self.model.predict_proba(measures):
            best = int(chances.argmax())
            found.append({"species": self.names[best], "chance": round(float(chances[best]), 3)})
        return found
