"""What the paper states, to stand beside our figures; never more than could be checked.

Sources:
    NEURIPS     Wu, Xiong, Jiang, Davis: LiteEval, NeurIPS 2019. Its mean average precisions on
                FCVID and ActivityNet as a public listing of its results repeats them; its GFLOPs
                per video were found in no place that could be checked and are left out.
    EXTENSION   Wu et al.: A Coarse-to-Fine Framework for Resource Efficient Video Recognition.
                GFLOPs per row of the backbones.

To add a figure, write a line here with its source.
"""

from __future__ import annotations

from dataclasses import dataclass

from liteeval_train.run_files import RunInfo

NEURIPS = "Wu et al., LiteEval, NeurIPS 2019"
EXTENSION = "Wu et al., A Coarse-to-Fine Framework for Resource Efficient Video Recognition"

# GFLOPs per row by backbone@size; SlowFast's is that of 256 px by our count, too.
GFLOPS_PER_ROW = {
    "mobilenet_v2@112": 0.08,
    "resnet101@224": 7.82,
    "dpn107@224": 18.34,
    "slowfast_r50@256": 65.71,
}


@dataclass(frozen=True)
class PaperFigure:
    """A figure of the paper, and the runs that it may stand beside."""

    map: float  # mean average precision, 0 to 1
    method: str
    data_set: str
    preset: str
    classes: int
    source: str
    coarse: str = "mobilenet_v2@112"
    fine: str = "resnet101@224"

    def matches(self, info: RunInfo) -> bool:
        """Whether a run has the figure's method, data set, backbones, cell and synchronisation.

        A data set is told by the preset that is named after it and by its number of classes.
        """
        config = info.config
        return (
            (config.method, config.preset) == (self.method, self.preset)
            and len(info.classes) == self.classes
            and (info.coarse.backbone, info.fine.backbone) == (self.coarse, self.fine)
            and config.cell == "lstm"
            and config.synchronise
        )

    def __str__(self) -> str:
        return (
            f"{self.source}: {self.method} on {self.data_set} ({self.classes} classes), "
            f"{self.coarse} and {self.fine}, mAP {100 * self.map:.1f} %"
        )


FIGURES = (
    PaperFigure(0.800, "liteeval", "FCVID", "fcvid", 239, NEURIPS),
    PaperFigure(0.727, "liteeval", "ActivityNet v1.3", "activitynet", 200, NEURIPS),
)


def paper_figure(info: RunInfo) -> PaperFigure | None:
    """The paper's own figure for a run like this one, if it is known."""
    return next((figure for figure in FIGURES if figure.matches(info)), None)
