"""burla in notebooks: `%load_ext burla_jupyter` brings `%%burla`; the live view needs no extension."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Register the magics, and the completion of their options."""
    # nodes import this package too, and need none of it
    from burla_jupyter.magic import BurlaMagics
    from burla_jupyter.options import complete

    shell.register_magics(BurlaMagics)
    shell.set_hook("complete_command", lambda _, event: complete(event), str_key="%%burla")
