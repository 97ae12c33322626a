"""``inheritune demo``."""

from pathlib import Path


def demo_command(out_dir: Path = Path("runs/demo")) -> None:
    """Run the whole recipe in miniature, offline, on text every Python installation carries.

    Args:
        out_dir: folder for everything the demo makes; finished parts are kept when it is run again.
    """
    from inheritune_lit.studies.demo import run_demo

    run_demo(out_dir)
