"""``refine-pl recipes``: the recipes that come with the package, or one of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from refine_pl.commands.arguments import Arguments
from refine_pl.errors import ConfigError, did_you_mean
from refine_pl.recipes import recipes, title

_HELP = """Lists the recipes that come with refine-pl, or prints one. Where a command takes --config
FILE it takes the name of a recipe too; to change one, write what differs in a file of your own and
give it as a second --config, or start from a copy: refine-pl recipes tiny_mid > mine.yaml"""


def main(argv: Sequence[str]) -> int:
    """Print the list, or the text of one recipe.

    Raises:
        ConfigError: there is no recipe of that name.
    """
    parser = Arguments(prog="refine-pl recipes", description=_HELP)
    parser.add_argument("name", nargs="?", metavar="NAME", help="of the recipe to print")
    name = parser.parse_args(argv).name
    found = recipes()
    if name is None:
        width = max(map(len, found))
        sys.stdout.write("".join(f"{key:<{width}}  {title(found[key])}\n" for key in found))
        return 0
    if name not in found:
        raise ConfigError(
            f"there is no recipe {name}",
            allowed="refine-pl recipes lists them",
            way_out=did_you_mean(name, [*found]),
        )
    sys.stdout.write(found[name].read_text(encoding="utf-8"))
    return 0
