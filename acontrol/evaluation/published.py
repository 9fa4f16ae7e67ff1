"""The paper's results, to be quoted next to ours.

He, Liu, Zhao: "AnomalyControl". All on MVTec AD, means over its 15 categories. We know of no
independent reproduction.
"""

from acontrol.evaluation.report import Table

_NOTE = (
    "Quoted from the paper's {}, not measured here: MVTec AD, {}. Ours compares with it "
    "only on that data set and at budget paper."
)


def quality() -> Table:
    """Table 2, its last column."""
    rows = (
        ("DiffAug", "1.58", "0.09"),
        ("CDC", "1.65", "0.07"),
        ("SDGAN", "1.71", "0.13"),
        ("DefGAN", "1.69", "0.15"),
        ("DFMGAN", "1.72", "0.20"),
        ("AnoDiff", "1.80", "0.32"),
        ("AnoXFusion", "1.82", "0.33"),
        ("AnomalyControl", "1.84", "0.35"),
    )
    note = _NOTE.format("Table 2", "Inception Score and IC-LPIPS, means over categories")
    return Table("Quoted: generation", ("method", "IS", "IC-LPIPS"), rows, note)


def localization() -> Table:
    """Table 3."""
    rows = (
        ("DRAEM", "92.2", "54.1", "53.1", "94.6", "97.0", "94.4"),
        ("PRN", "96.9", "66.2", "64.7", "91.6", "96.6", "92.4"),
        ("DFMGAN", "90.0", "62.7", "62.1", "87.2", "94.8", "94.7"),
        ("AnoDiff", "99.1", "81.4", "76.3", "99.2", "99.7", "98.7"),
        ("AnoXFusion", "99.3", "86.1", "80.6", "99.2", "99.8", "98.7"),
        ("AnomalyControl", "99.5", "87.4", "81.2", "99.3", "99.8", "98.0"),
    )
    head = (
        "method",
        "pixel AUROC",
        "pixel AP",
        "pixel F1-max",
        "image AUROC",
        "image AP",
        "image F1-max",
    )
    note = _NOTE.format("Table 3", "in per cent, by the protocol that is called paper here")
    return Table("Quoted: detection and localization", head, rows, note)


def ablation() -> Table:
    """Table 4."""
    rows = (
        ("nothing", "1.50", "0.18", "90.3", "93.0"),
        ("SGA", "1.66", "0.23", "92.7", "95.4"),
        ("SGA + CSM", "1.69", "0.25", "93.1", "95.8"),
        ("+ ASEA T_g 1", "1.70", "0.25", "94.1", "96.8"),
        ("+ ASEA T_g 2", "1.78", "0.28", "96.2", "97.9"),
        ("+ ASEA T_g 3", "1.84", "0.35", "99.5", "99.3"),
        ("+ ASEA T_g 4", "1.84", "0.33", "99.3", "99.3"),
        ("+ ASEA T_g 5", "1.84", "0.35", "99.4", "99.0"),
    )
    head = ("row", "IS", "IC-LPIPS", "pixel AUROC", "image AUROC")
    return Table("Quoted: ablation", head, rows, _NOTE.format("Table 4", "AUROC in per cent"))
