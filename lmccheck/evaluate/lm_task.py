"""A task of lm-eval (extra ``eval``) as a metric: its documents and its first metric, run offline on given weights."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from lmccheck.data.extras import extra
from lmccheck.data.imports import say
from lmccheck.data.tokenizing import require_tokenizer
from lmccheck.errors import LmcError, SourceError, shown_path
from lmccheck.evaluate.evaluator import Evaluator
from lmccheck.modules.runner import Runner

OFFLINE = "(nothing is fetched: its data set must lie on this disk)"
ROWS = 8  # sequences that are run together


class Task:
    """A task by its name, or by the path of its YAML, whose own paths are relative to ``folder``."""

    def __init__(self, given: Any, folder: Path | None) -> None:
        self.what = f"metric lm_eval {given!r}"
        if not isinstance(given, str) or not given:
            raise SourceError(f"metric lm_eval: got {given!r}, expected the name of a task, or the path of its YAML")
        self.folder = folder or Path.cwd()
        self.name, self.include, self.defaults = given, self.folder, True
        if given.endswith((".yaml", ".yml")):
            path = self.folder / given
            if not path.is_file():
                raise SourceError(f"{self.what}: no such file, expected the YAML of a task; mend: correct the path")
            self.name, self.include, self.defaults = self._named(path), path.parent, False

    def _named(self, path: Path) -> str:
        try:
            name = (
                line.partition(":")[2].strip() for line in path.read_text().splitlines() if line.startswith("task:")
            )
            return next(name).strip("\"'")
        except (OSError, ValueError, StopIteration):
            raise SourceError(f"{self.what}: {shown_path(path)} has no line 'task: NAME'; mend: name it") from None

    def __call__(self, evaluator: Evaluator, weights: Mapping[str, Tensor]) -> tuple[Tensor, str, bool]:
        """Return a value of each of its documents, (m,) float64, the metric's name, and whether higher is better."""
        library = extra("lm_eval", "eval", self.what)
        models = extra("lm_eval.models.huggingface", "eval", self.what)
        tasks = extra("lm_eval.tasks", "eval", self.what)
        runner = evaluator.runner
        runner.load(weights)
        tokenizer = self._tokenizer(evaluator)
        try:
            with offline(), contextlib.chdir(self.folder), torch.no_grad():
                held = models.HFLM(pretrained=self._module(runner), tokenizer=tokenizer, batch_size=ROWS)
                manager = tasks.TaskManager(include_path=str(self.include), include_defaults=self.defaults)
                found = library.simple_evaluate(
                    model=held, tasks=[self.name], task_manager=manager, bootstrap_iters=0, log_samples=True,
                    random_seed=None, numpy_random_seed=None, torch_random_seed=None,
                )  # fmt: skip
        except LmcError:
            raise
        except (Exception, SystemExit) as error:
            raise SourceError(
                f"{self.what}: lm-eval cannot run it {OFFLINE}: {say(error)}; mend: a task whose dataset_path is json "
                "and whose data_files lie beside the manifest"
            ) from None
        return self._values(found)

    def _module(self, runner: Runner) -> nn.Module:
        cls = extra("transformers", "eval", self.what).PreTrainedModel
        module: nn.Module | None = next((part for part in runner.module.modules() if isinstance(part, cls)), None)
        if module is None or not hasattr(module, "generate"):
            raise SourceError(
                f"{self.what}: the model is {type(runner.module).__name__}, expected a language model of transformers; "
                "mend: a metric of your own, 'module:callable'"
            )
        return module

    def _tokenizer(self, evaluator: Evaluator) -> Any:
        path = evaluator.network.data.tokenizer
        if path is None:
            raise SourceError(
                f"{self.what}: {evaluator.network.data.origin} names no tokenizer, expected one; mend: data of JSON "
                "lines with `tokenizer`"
            )
        require_tokenizer(path)
        library = extra("transformers", "eval", self.what)
        return library.AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)

    def _values(self, found: Any) -> tuple[Tensor, str, bool]:
        samples = (found or {}).get("samples", {}).get(self.name)
        if not samples:
            raise SourceError(f"{self.what}: lm-eval gave no samples, expected those of one task; mend: name one task")
        name = str(samples[0]["metrics"][0])
        first = [one for one in samples if one.get("filter") == samples[0].get("filter")]
        try:
            values = torch.tensor([float(one[name]) for one in first], dtype=torch.float64)
        except (TypeError, ValueError, KeyError):
            raise SourceError(
                f"{self.what}: its metric {name} is no number of each document, expected one such as acc; mend: list "
                "it first in metric_list"
            ) from None
        told = found["results"][self.name].get(f"{name},{samples[0].get('filter', 'none')}")
        if not isinstance(told, (int, float)) or not math.isclose(told, float(values.mean()), abs_tol=1e-6):
            raise SourceError(
                f"{self.what}: its metric {name} is {told}, no mean of its documents' {float(values.mean())}"
            )
        return values, name, bool((found.get("higher_is_better") or {}).get(self.name, {}).get(name, True))


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Keep the libraries of Hugging Face from the network, and what they keep of data sets in a folder of its own."""
    hub, data = extra("huggingface_hub.constants", "eval", "lm-eval"), extra("datasets.config", "eval", "lm-eval")
    places = [(hub, "HF_HUB_OFFLINE"), (data, "HF_HUB_OFFLINE"), (data, "HF_DATASETS_CACHE")]
    before = [getattr(module, name) for module, name in places]
    said = {key: os.environ.get(key) for key in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")}
    with TemporaryDirectory(prefix="lmccheck-") as kept:
        try:
            os.environ.update(dict.fromkeys(said, "1"))
            for (module, name), value in zip(places, (True, True, Path(kept)), strict=True):
                setattr(module, name, value)
            yield
        finally:
            for (module, name), value in zip(places, before, strict=True):
                setattr(module, name, value)
            for key, text in said.items():
                os.environ.pop(key, None) if text is None else os.environ.update({key: text})
