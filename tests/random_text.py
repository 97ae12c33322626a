"""Documents of random words."""

import random

WORDS = ["the", "model", "learns", "from", "text", "def", "return", "\n", "", "naïve", "☕", "1234"]


def make_documents(count: int, seed: int) -> list[str]:
    """Texts of 20 to 400 words, all different."""
    draw = random.Random(seed)
    return [f"{seed}/{number} " + " ".join(draw.choices(WORDS, k=draw.randint(20, 400))) for number in range(count)]
