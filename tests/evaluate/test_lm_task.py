"""A task of lm-eval, offline: its accuracy against log-likelihoods added up by hand in float64."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from networks.tokens import LINES, byte_tokenizer, write_rows, write_tokenizer

from lmccheck import SourceError
from lmccheck.evaluate.evaluator import Evaluator
from lmccheck.evaluate.lm_task import Task
from lmccheck.evaluate.metrics import metric
from lmccheck.network.network import load_network

CHOICES = ("mat", "cat", "are")
QUESTIONS = [("the cat sat on the", 0), ("a dog ran to the", 1), ("two and two", 2), ("the dog sat and the", 1)]
TASK = """\
task: tiny
dataset_path: json
dataset_kwargs:
  data_files:
    test: tasks/tiny.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["mat", "cat", "are"]
doc_to_target: label
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.mark.slow
def test_a_task_is_run_offline_on_the_weights_that_are_asked_about(tmp_path: Path) -> None:
    """A point for each document whose choice is the likeliest; nothing is left behind, and no draw is made."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("lm_eval")
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        use_cache=False,
    )  # fmt: skip

    def build():
        return transformers.LlamaForCausalLM(config)

    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiny.yaml").write_text(TASK)
    rows = [json.dumps({"question": question, "label": label}) for question, label in QUESTIONS]
    (tmp_path / "tasks" / "tiny.jsonl").write_text("\n".join(rows))
    write_tokenizer(tmp_path / "tok", byte_tokenizer())
    write_rows(tmp_path / "t.jsonl", [{"text": line} for line in LINES])
    data = {"jsonl": "t.jsonl", "tokenizer": "tok"}
    network = load_network(name="n", model=build, data=data, loss="next_token", device="cpu", base=tmp_path)
    made, values = metric({"lm_eval": "tasks/tiny.yaml"}, tmp_path), []
    tokens = byte_tokenizer()
    for seed in range(3):
        torch.manual_seed(seed)
        module = build()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(8)
        theta = dict(module.state_dict())
        before = torch.get_rng_state()
        evaluator = Evaluator(network, theta)
        found = evaluator.measure(evaluator.weights(theta), reestimate=False, label="a")
        scores = made.scores(evaluator, theta, found)
        right = []
        for question, label in QUESTIONS:
            sums = []
            for choice in CHOICES:
                context, whole = tokens.encode(question).ids, tokens.encode(f"{question} {choice}").ids
                with torch.no_grad():
                    logits = module.double()(torch.tensor([whole])).logits[0].log_softmax(-1)
                sums.append(sum(float(logits[t - 1, whole[t]]) for t in range(len(context), len(whole))))
            right.append(100.0 * (max(range(3), key=sums.__getitem__) == label))
        assert scores.values.tolist() == right
        assert torch.equal(before, torch.get_rng_state())
        values.append(tuple(right))
    assert len(set(values)) > 1
    assert (made.unit, made.higher_is_better, made.on_data) == ("points", True, False)


def test_a_task_that_is_none_is_one_line(tmp_path: Path) -> None:
    """A file that is not there, or that names no task."""
    with pytest.raises(SourceError, match=r"^metric lm_eval 'no.yaml': no such file, expected the YAML of a task"):
        Task("no.yaml", tmp_path)
    (tmp_path / "no.yaml").write_text("group: x\n")
    with pytest.raises(SourceError, match=r"no.yaml has no line 'task: NAME'; mend: name it"):
        Task("no.yaml", tmp_path)
    with pytest.raises(SourceError, match=r"^metric lm_eval: got 3, expected the name of a task"):
        Task(3, tmp_path)
