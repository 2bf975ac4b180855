"""A Ray cluster as the place where the work of the verbs is done.

`wsl.cli` hands a `ClusterExecutor` to the verbs. They know it only by the protocols that they ask for
(`Executor` in `wsl.hashtags.counting`, `wsl.index.build` and `wsl.scoring.verbs`), so that nothing below the
command line knows of clusters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wsl.cluster.parts import Run
from wsl.workspace.config import ClusterConfig

if TYPE_CHECKING:
    from wsl.files.resources import Resources
    from wsl.hashtags.counting import Columns
    from wsl.hashtags.counts import HashtagCounts
    from wsl.index.build import Wanted
    from wsl.selection.topk import Cut, TopK


@dataclass(frozen=True)
class ClusterExecutor:
    """Does the work of verbs on the nodes of a cluster; its parts are in `folder`.

    What a verb needs of the cluster is imported when it is asked for: a selection loads no index builder.
    """

    settings: ClusterConfig
    folder: str
    """A path that all nodes see, or the URI of a folder in a store."""
    _runs: dict[str, Run] = field(default_factory=dict)
    """Runs of several stages, by name."""

    def count(
        self, sources: Sequence[str], columns: Columns, resources: Resources, *, run: str | None = None
    ) -> HashtagCounts:
        """The counts of record files; `run` names the work that counting is the first stage of."""
        from wsl.cluster import counting

        return counting.load(sources, columns, resources, self.settings, self.folder, self._run(run))

    def build(self, wanted: Wanted, *, run: str | None = None) -> None:
        """Builds an index."""
        from wsl.cluster import index_plan

        index_plan.build(wanted, self.settings, self.folder, self._run(run))

    def score(self, job: Mapping[str, Any], made_by: Mapping[str, Any]) -> dict[str, Any]:
        """Scores what no file under ``job["out"]`` covers."""
        from wsl.cluster import scoring

        return scoring.score(job, made_by, self.settings)

    def score_into_state(
        self,
        job: Mapping[str, Any],
        made_by: Mapping[str, Any],
        cut: Cut,
        resources: Resources,
    ) -> tuple[TopK, str]:
        """Lets the network score all samples into one selection; and where its parts are."""
        from wsl.cluster import scoring

        top = scoring.score_into_state(job, made_by, cut, resources, self.settings, self.folder)
        return top, self.folder

    def select(
        self,
        files: Sequence[str],
        columns: Sequence[str],
        cut: Cut,
        resources: Resources,
    ) -> TopK:
        """A selection that has taken all pairs of the files."""
        from wsl.cluster import scoring

        return scoring.select(files, columns, cut, resources, self.settings, self.folder)

    def _run(self, name: str | None) -> Run | None:
        return None if name is None else self._runs.setdefault(name, Run(name))
