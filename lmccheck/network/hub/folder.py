"""The model of a folder: its config.json says the class, transformers builds it, nothing is downloaded or trusted."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lmccheck.data.imports import say
from lmccheck.errors import SourceError, nearest, shown_path
from lmccheck.network.hub.library import quiet, transformers_for
from lmccheck.store.disk import Held
from lmccheck.store.documents import read_document
from lmccheck.store.folders import CONFIG, PIPELINE

OTHERS = {PIPELINE: "a pipeline of diffusers"}  # what else a folder without a config.json may be
ENDS = ("start_logits", "end_logits")  # of answers that are spans of a text, (n, T) each
OFF = ("use_cache", "output_hidden_states", "output_attentions", "output_router_logits")
OWN = 'mend: give model = "module:callable" that builds it'


@dataclass(frozen=True)
class FolderModel:
    """Builds the model that a folder's config.json describes, with random weights; ``held``: that file as it was read.

    ``home``: the folder; ``kind``: the class of transformers; ``config``: its settings, caches off.
    """

    home: Path
    kind: Any = field(repr=False)
    config: Any = field(repr=False)
    held: Held = field(repr=False)

    @property
    def label(self) -> str:
        """What messages call the model."""
        return f"{self.kind.__name__} of {shown_path(self.home)}"

    @property
    def loss(self) -> str | None:
        """The name of the loss that such a model is trained with; None where lmccheck has none."""
        return loss_of(self.kind.__name__, self.config)

    def require_loss(self) -> str:
        """Return the name of that loss; raise SourceError where there is none."""
        if self.loss is None:
            why = ": their targets are shorter than what they say, and are aligned with it" * self._aligns
            raise SourceError(
                f"loss: left out, and models such as {self.label} have none here{why}; mend: give "
                'loss = "module:function" (outputs, targets) -> (n,)'
            )
        return self.loss

    @property
    def _aligns(self) -> bool:
        return str(self.kind.__name__).endswith("ForCTC")

    def untied(self) -> FolderModel:
        """Return the model whose config says that its head is a tensor of its own."""
        config = copy.deepcopy(self.config)
        for said in (config, config.get_text_config()):
            said.tie_word_embeddings = False
        return replace(self, config=config)

    def __call__(self) -> nn.Module:
        """Return the module; of its outputs only the logits are left, where it has some."""
        try:
            with quiet(transformers_for(self.label)):
                module: nn.Module = self.kind(copy.deepcopy(self.config))
        except Exception as error:
            raise SourceError(
                f"{shown_path(self.home / CONFIG)}: building {self.kind.__name__} raised {say(error)}; {OWN}"
            ) from error
        module.register_forward_hook(only_logits)
        return module


def only_logits(module: nn.Module, given: Any, output: Any) -> Any:
    """Leave of a model's outputs what it answers: no loss, cache or hidden states, all of which hang on settings."""
    logits = output.get("logits") if isinstance(output, dict) else None
    if logits is None and isinstance(output, dict) and all(name in output for name in ENDS):
        return torch.stack([output[name] for name in ENDS], -1)  # (n, T, 2): the places are the classes
    return output if logits is None else type(output)(logits=logits)


def folder_model(home: Path | None, side: str) -> FolderModel:
    """Return the model of a checkpoint's folder. Raises SourceError where that says none that can be built.

    ``side``: what messages call a checkpoint that lies in no such folder.
    """
    if home is None:
        raise SourceError(
            f"model: left out, and {side} lies in no folder with a {CONFIG} that says it; {OWN}, or name a folder that "
            "save_pretrained wrote"
        )
    path = home / CONFIG
    where = shown_path(path)
    if not path.is_file():
        other = next((what for name, what in OTHERS.items() if (home / name).is_file()), "a folder without it")
        raise SourceError(f"{where}: no such file, got {other}, expected what save_pretrained writes; {OWN}")
    try:
        held, _, said = read_document(path)
    except ValueError as error:
        raise SourceError(f"{error}; {OWN}") from None
    name = _class_name(said, where)
    library = transformers_for(f"{shown_path(home)}: building {name}")
    kind = _class(library, name, where)
    try:
        with quiet(library):
            config = kind.config_class.from_pretrained(
                str(home.resolve()), local_files_only=True, attn_implementation="eager"
            )
    except Exception as error:
        raise SourceError(f"{where}: transformers {library.__version__} cannot read it: {say(error)}; {OWN}") from error
    if said.get("model_type") != kind.config_class.model_type:
        raise SourceError(
            f"{where}: 'model_type' is {said.get('model_type')!r}, that of {name} {kind.config_class.model_type!r}; "
            "mend: correct the one that is wrong"
        )
    config._attn_implementation = "eager"  # whatever the file says: this is what can be traced
    for part in _parts(config):
        if getattr(part, "return_dict", True) is False:
            part.return_dict = True
        for key in OFF:
            if getattr(part, key, None):
                setattr(part, key, False)
    return FolderModel(home, kind, config, held)


def _class_name(said: dict[str, Any], where: str) -> str:
    """Return the architecture that a config names. Raises SourceError for what is not built from a config alone."""
    if said.get("auto_map"):
        raise SourceError(
            f"{where}: 'auto_map' names code that the folder brings along, which is never run; {OWN}, from code that "
            "you have read"
        )
    if said.get("quantization_config"):
        raise SourceError(
            f"{where}: 'quantization_config' says that its weights are packed, expected float weights; mend: check the "
            "model before it is quantised, or dequantise it"
        )
    names = said.get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str):
        return names[0]
    if isinstance(said.get("architecture"), str):
        raise SourceError(f"{where}: a config of timm, {said['architecture']!r}, expected one of transformers; {OWN}")
    if isinstance(said.get("_class_name"), str):
        theirs = f"a config of diffusers, {said['_class_name']!r}"
        raise SourceError(f"{where}: {theirs}, expected one of transformers; {OWN}")
    raise SourceError(f"{where}: 'architectures' names no class, so that its head is not known; {OWN}")


def _class(library: Any, name: str, where: str) -> Any:
    """Return the class of a name. Raises SourceError where the library has no such model, or cannot import it."""
    kind: Any = None
    try:
        with quiet(library):
            kind = getattr(library, name, None)
    except Exception as error:
        raise SourceError(f"{where}: importing {name} raised {say(error)}; mend: install what it needs") from error
    model = isinstance(kind, type) and issubclass(kind, library.PreTrainedModel)
    if not model or getattr(kind, "config_class", None) is None:
        needs = getattr(kind, "_backends", None)
        if needs:
            raise SourceError(f"{where}: {name} needs {', '.join(needs)}; mend: install it")
        known = [known for known in dir(library) if known[:1].isupper()]
        raise SourceError(
            f"{where}: transformers {library.__version__} has no model {name!r}{nearest(name, known)}; {OWN}, or "
            "install a version that has it"
        )
    return kind


def _parts(config: Any) -> Iterator[Any]:
    """Yield a config and those that it holds, of encoders, decoders and towers."""
    yield config
    for value in list(vars(config).values()):
        if hasattr(value, "model_type") and hasattr(value, "to_dict"):
            yield from _parts(value)


def loss_of(name: str, config: Any) -> str | None:
    """Return the loss that a class of models is trained with by default, told by its name.

    >>> from types import SimpleNamespace as Config
    >>> loss_of("LlamaForCausalLM", Config()), loss_of("T5ForConditionalGeneration", Config(is_encoder_decoder=True))
    ('next_token', 'token_cross_entropy')
    >>> loss_of("BertForSequenceClassification", Config(num_labels=3)), loss_of("Wav2Vec2ForCTC", Config())
    ('cross_entropy', None)
    >>> loss_of("BertForQuestionAnswering", Config())
    'cross_entropy'
    """
    if name.endswith(("ForMaskedLM", "ForTokenClassification")) or getattr(config, "is_encoder_decoder", False):
        classifies = name.endswith("ForSequenceClassification")
        return "cross_entropy" if classifies else "token_cross_entropy"
    if name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
        return "next_token"
    if name.endswith("ForQuestionAnswering"):
        return "cross_entropy"
    if not name.endswith(("ForSequenceClassification", "ForImageClassification", "ForVideoClassification")):
        return None
    problem = getattr(config, "problem_type", None)
    if problem == "multi_label_classification":
        return None
    return "mse" if problem == "regression" or getattr(config, "num_labels", 2) == 1 else "cross_entropy"
