"""Options that many commands share, declared once."""

from typing import Annotated

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Write the result as JSON on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No talk on stderr; errors and warnings stay.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be written or sent, and stop.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
