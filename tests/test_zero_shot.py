"""Zero-shot tasks: minislice's numbers are the harness's, item by item; local copies ask what the originals ask."""

import copy
import dataclasses
import json
from pathlib import Path

import datasets
import pytest
import tasks_of_2021
import torch
from commands import document

import minislice
from minislice.measuring import zero_shot
from minislice.measuring.local_tasks import definition, read_items, write_tasks

lm_eval = pytest.importorskip("lm_eval")
HARNESS = pytest.importorskip("lm_eval.tasks")
NOUNS = ("module", "function", "string", "exception", "value", "method")

# A few items of each task, with the fields of its data set on the hub; the choices differ in length, so that acc and
# acc_norm differ.
SENTENCE = "The {} called the returned list because the _ was empty."
ENDINGS, ANSWERS = ["is called.", "has a value.", "raises an error", "the the"], ["an integer", "the value", "None"]
CHOICES = {"text": ANSWERS, "label": ["1", "2", "3"]}
ITEMS = {
    "piqa": lambda noun, i: {"goal": f"How to import a {noun}?", "sol1": f"write {noun}", "sol2": noun, "label": i % 2},
    "winogrande": lambda noun, i: {
        **{"sentence": SENTENCE.format(noun), "option1": noun, "option2": "returned list", "answer": str(i % 2 + 1)}
    },
    "hellaswag": lambda noun, i: {
        **{"activity_label": "Programming", "ctx_a": f"The {noun} is defined.", "ctx_b": "it"},
        **{"endings": ENDINGS, "label": str(i % 4)},
    },
    "arc_easy": lambda noun, i: {
        **{"question": f"What does a {noun} return?", "choices": CHOICES, "answerKey": str(i % 3 + 1)}
    },
}
ORIGINAL = {task: [item(noun, i) for i, noun in enumerate(NOUNS)] for task, item in ITEMS.items()}
STEM = "The function called the returned list because the"
OF_2021 = {  # the second item of each task, as the harness of 2021 had it
    "piqa": {"query": "Question: How to import a function?\n", "choices": ["write function", "function"]},
    "winogrande": {"context_options": [f"{STEM} function", f"{STEM} returned list"], "continuation": "was empty."},
    "hellaswag": {"query": "Programming: The function is defined. It", "choices": ENDINGS},
    "arc_easy": {"query": "Question: What does a function return?", "choices": ANSWERS},
}


def folder_of(items: dict[str, list[dict]], folder: Path) -> Path:
    folder.mkdir()
    for task, rows in items.items():
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    return folder_of(ORIGINAL, tmp_path_factory.mktemp("tasks") / "originals")


@pytest.fixture(scope="module")
def model() -> tuple:
    """A sliced model and its tokenizer; not to be changed."""
    model, tokenizer = minislice.load("mini-llama", dtype="float32", device="cpu")
    return minislice.slice_model(model, torch.arange(3, 243).view(8, 30), slicing=0.4), tokenizer


def by_the_harness(model, originals, folder) -> dict:
    """What the harness gives when it is called directly, as its guide says."""
    from lm_eval.models.huggingface import HFLM

    write_tasks(list(ORIGINAL), originals, folder)
    language = HFLM(model[0], tokenizer=copy.deepcopy(model[1]), batch_size=1)
    manager = HARNESS.TaskManager(include_path=str(folder), include_defaults=False)
    return lm_eval.simple_evaluate(language, tasks=list(ORIGINAL), task_manager=manager, num_fewshot=0)


def numbers_are_the_harness_own(direct, model, originals) -> None:
    """Accuracy, standard error and every single item."""
    ours = minislice.zero_shot(*model, list(ORIGINAL), tasks_from=originals)
    assert [score.task for score in ours.scores] == list(ORIGINAL)
    differ = 0
    for score in ours.scores:
        theirs, samples = direct["results"][score.task], direct["samples"][score.task]
        metric = "acc" if score.task == "winogrande" else "acc_norm"
        assert score.metric == metric and score.count == len(samples) == len(NOUNS)
        assert score.accuracy == pytest.approx(100 * theirs[f"{metric},none"], abs=1e-9)
        assert score.stderr == pytest.approx(100 * theirs[f"{metric}_stderr,none"], abs=1e-9)
        assert score.correct == tuple(sample[metric] == 1.0 for sample in samples)
        differ += [sample["acc"] for sample in samples] != [sample[metric] for sample in samples]
    assert differ  # or the metrics could have been mixed up unseen
    assert ours.mean == pytest.approx(sum(score.accuracy for score in ours.scores) / len(ours.scores))
    assert ours.stderr == pytest.approx(sum(s.stderr**2 for s in ours.scores) ** 0.5 / len(ours.scores))


MISTAKES = [
    lambda score, found: {"accuracy": 100 * found["acc,none"]},  # another metric
    lambda score, found: {"correct": score.correct[1:] + score.correct[:1]},  # another order
    lambda score, found: {"stderr": score.stderr / 100},  # a share for a percentage
]


def test_numbers_are_the_harness_own_item_by_item_and_others_are_found(model, originals, tmp_path, monkeypatch):
    direct, right = by_the_harness(model, originals, tmp_path), zero_shot._score
    numbers_are_the_harness_own(direct, model, originals)
    for mistake in MISTAKES:

        def wrong(task, results, mistake=mistake):
            score = right(task, results)
            return dataclasses.replace(score, **mistake(score, results["results"][task]))

        monkeypatch.setattr(zero_shot, "_score", wrong)
        with pytest.raises(AssertionError):
            numbers_are_the_harness_own(direct, model, originals)


def test_measuring_changes_nothing_and_a_limit_takes_the_first_items(model, originals):
    sliced, tokenizer = model
    before, padding, generator = copy.deepcopy(sliced.state_dict()), tokenizer.pad_token, torch.get_rng_state()
    sliced.train()
    whole = minislice.zero_shot(sliced, tokenizer, "hellaswag", tasks_from=originals)
    assert sliced.training and tokenizer.pad_token == padding and torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(weight, before[name]) for name, weight in sliced.state_dict().items())
    part = minislice.zero_shot(sliced.eval(), tokenizer, "hellaswag", tasks_from=originals, limit=4)["hellaswag"]
    assert part.correct == whole["hellaswag"].correct[:4] and part.count == 4


def asked(task: str, item: dict, place: Path) -> tuple:
    """What the harness asks of a model: the context, the continuation of every choice, and which is right."""
    (place / "tasks").mkdir(parents=True)
    write_tasks([task], folder_of({task: [item]}, place / "items"), place / "tasks")
    known = HARNESS.TaskManager(include_path=str(place / "tasks"), include_defaults=False).load([task])["tasks"][task]
    (doc,) = known.validation_docs()
    return known.doc_to_text(doc), tuple(known.doc_to_choice(doc)), str(known.doc_to_target(doc))


@pytest.mark.parametrize("task", ORIGINAL)
def test_an_item_of_2021_is_refused_and_rewritten_it_asks_what_the_original_asks(task, tmp_path):
    old = folder_of({task: [{**OF_2021[task], "gold": 1}]}, tmp_path / "old")
    with pytest.raises(ValueError, match=r"line 1: .*form of 2021; python notebooks/measure/tasks_of_2021\.py OLD NEW"):
        read_items(task, old)
    tasks_of_2021.rewrite(old, tmp_path / "new")
    (item,) = read_items(task, tmp_path / "new")
    expected = asked(task, ORIGINAL[task][1], tmp_path / "original")
    assert asked(task, item, tmp_path / "copy") == expected
    wrong = tasks_of_2021.rewritten(task, {**OF_2021[task], "gold": 0})
    assert asked(task, wrong, tmp_path / "wrong") != expected


NO_ITEMS = {  # a task, its file's content, and the message
    "test split": ("piqa", {"label": -1}, r"line 2: .*no right answer \(label -1\); .* take the validation split"),
    "no gap": ("winogrande", {"sentence": "No gap."}, "line 2: .*the sentence has no _"),
    "an empty choice": ("hellaswag", {"endings": ["is called.", " "]}, "line 2: .*a choice is empty"),
    "fields": ("arc_easy", {"choices": ["a", "b"]}, "line 2: .*an item has the fields question, choices, answer"),
    "no JSON": ("piqa", '{"goal": \n', r"piqa\.jsonl, line 1, column 10: Expecting value"),
    "no file": ("arc_challenge", None, r"arc_challenge\.jsonl doesn't exist"),
    "no such task": ("boolq", None, "no local copy of boolq can be read; there are piqa, winogrande"),
}


@pytest.mark.parametrize("case", NO_ITEMS)
def test_items_that_can_not_be_asked_are_told_by_their_file_and_line(case, tmp_path):
    task, content, message = NO_ITEMS[case]
    if isinstance(content, dict):  # a change of the second item
        content = "".join(json.dumps(row) + "\n" for row in (ORIGINAL[task][0], {**ORIGINAL[task][1], **content}))
    if content is not None:
        (tmp_path / f"{task}.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_items(task, tmp_path)


def test_logits_that_are_no_numbers_have_no_accuracy(model, originals):
    broken = copy.deepcopy(model[0])
    broken.get_output_embeddings().weight.data[7] = torch.nan
    with pytest.raises(ValueError, match="piqa: the logits aren't numbers"):
        minislice.zero_shot(broken, model[1], "piqa", tasks_from=originals)


def test_what_is_not_there_is_told(model, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="need the model's tokenizer"):
        minislice.zero_shot(model[0], None, "piqa")
    with pytest.raises(ValueError, match="each task once"):
        minislice.zero_shot(*model, ["piqa", "piqa"])
    few = HARNESS.TaskManager(include_path=str(definition("piqa").parent), include_defaults=False)
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="Harness has no task no_such_task"):
        patch.setattr(HARNESS, "TaskManager", lambda **_: few)  # to look through thousands of tasks takes long
        minislice.zero_shot(*model, ["piqa", "no_such_task"])
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)  # nothing fetched before
    with pytest.raises(ValueError, match=r"can't get piqa from the hub: .*give a folder of local copies"):
        minislice.zero_shot(*model, "piqa")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[eval\]"'):
        minislice.zero_shot(*model, "piqa")


def test_the_command_prints_what_the_library_measures_also_of_a_saved_model(model, originals, run, tmp_path):
    minislice.save(model[0], tmp_path / "sliced", tokenizer=model[1])
    command = ["zeroshot", tmp_path / "sliced", "--tasks", "piqa,winogrande", "--tasks-from", originals, "--quiet"]
    found = document(run(*command, "--json")[1])
    expected = minislice.zero_shot(*model, ["piqa", "winogrande"], tasks_from=originals)
    for score in expected.scores:
        numbers = {"accuracy": score.accuracy, "standard error": score.stderr, "items": score.count}
        assert found["tasks"][score.task] == {"metric": score.metric, **numbers}
    assert found["mean"]["accuracy"] == expected.mean
    lines = run(*command)[1].splitlines()
    assert [line.split()[0] for line in lines] == ["task", "piqa", "winogrande", "mean"]
    assert f"{expected.mean:.2f}" in lines[-1]
