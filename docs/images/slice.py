"""Draws slice.png: ``python docs/images/slice.py``."""

from pathlib import Path

from matplotlib.patches import FancyArrowPatch, Rectangle

from inheritune_lit.io.plotting import COLOURS, new_figure, save_png

LAYERS, KEPT = 26, 13
figure, (axes,) = new_figure(size=(9, 2.1))
axes.set_axis_off()


def box(left: float, bottom: float, text: str, inherited: bool, width: float = 0.9) -> None:
    colour = COLOURS[0] if inherited else "0.87"
    axes.add_patch(Rectangle((left, bottom), width, 1, facecolor=colour, edgecolor="white"))
    axes.text(
        left + width / 2,
        bottom + 0.5,
        text,
        ha="center",
        va="center",
        fontsize=7,
        color="white" if inherited else "0.3",
    )


for bottom, name, layers in ((2.3, "reference", LAYERS), (0, "slice", KEPT)):
    axes.text(-2.4, bottom + 0.5, name, ha="right", va="center", fontsize=11)
    box(-2, bottom, "emb", True, 1.6)
    for layer in range(layers):
        box(layer, bottom, str(layer), layer < KEPT)
    for place, part in enumerate(("norm", "head")):
        box(layers + 0.3 + 1.8 * place, bottom, part, True, 1.6)
for left in (-1.2, *(layer + 0.45 for layer in range(KEPT))):
    axes.add_patch(FancyArrowPatch((left, 2.2), (left, 1.1), arrowstyle="-|>", mutation_scale=9, color=COLOURS[0]))
axes.text(LAYERS + 3.7, 0.5, "blue: inherited byte for byte", ha="right", va="center", fontsize=9, color="0.3")
axes.set_xlim(-5.5, LAYERS + 4.2)
axes.set_ylim(-0.2, 3.5)
save_png(figure, Path(__file__).with_suffix(".png"))
