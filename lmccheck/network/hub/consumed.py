"""What from_pretrained itself makes of a folder: the network that whoever publishes it hands out."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from lmccheck.data.imports import say
from lmccheck.errors import SourceError, shown_path
from lmccheck.network.hub.folder import folder_model
from lmccheck.network.hub.library import quiet, transformers_for
from lmccheck.network.hub.names import complaint


def consumed(home: Path) -> nn.Module:
    """Return what from_pretrained itself makes of a folder, in its stored dtypes: what whoever loads it gets.

    Raises SourceError where it does not load, or where something of it is not from the folder's files.
    """
    model = folder_model(home, str(home))
    library = transformers_for(model.label)
    try:
        with quiet(library):
            module, said = model.kind.from_pretrained(
                str(home.resolve()),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                dtype="auto",
            )
    except Exception as error:
        raise SourceError(f"{shown_path(home)}: from_pretrained raised {say(error)}; mend: save it again") from error
    if problem := complaint(said, model.label):
        raise SourceError(f"{shown_path(home)}: {problem}")
    return module  # type: ignore[no-any-return]  # transformers is not typed where it is absent
