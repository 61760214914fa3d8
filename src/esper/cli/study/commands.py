"""Commands of ``esper study``."""

from esper.cli.options import Help, group
from esper.cli.study import effect, regret

app = group()


@app.callback()
def main(show_help: Help = False) -> None:
    """Repeat the experiments that Esper's defaults rest on."""
    del show_help  # dealt with by its callback


app.command()(regret.regret)
app.command()(effect.effect)
