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
from minislice.corpus.text import load_text, sample, tokenize
from minislice.measuring import zero_shot
from minislice.measuring.local_tasks import LOCAL, read_items, write_tasks

lm_eval = pytest.importorskip("lm_eval")
HARNESS = pytest.importorskip("lm_eval.tasks")
NOUNS = ("module", "function", "string", "exception", "value", "method")

ENDINGS, ANSWERS = ["is called.", "has a value.", "raises an error", "the the"], ["an integer", "the value", "None"]

# A few items of each task, with the fields of its data set on the hub; the choices differ in length, so that acc and
# acc_norm differ.
ITEMS = {
    "piqa": lambda noun, i: {
        "goal": f"How to import a {noun}?",
        "sol1": f"write import {noun}",
        "sol2": noun,
        "label": i % 2,
    },
    "winogrande": lambda noun, i: {
        **{"sentence": f"The {noun} called the returned list because the _ was empty.", "option1": noun},
        **{"option2": "returned list", "answer": str(i % 2 + 1)},
    },
    "hellaswag": lambda noun, i: {
        **{"activity_label": "Programming", "ctx_a": f"The {noun} is defined.", "ctx_b": "it"},
        **{"endings": ENDINGS, "label": str(i % 4)},
    },
    "arc_easy": lambda noun, i: {
        **{"question": f"What does a {noun} return?", "choices": {"text": ANSWERS, "label": ["1", "2", "3"]}},
        **{"answerKey": str(i % 3 + 1)},
    },
}
ORIGINAL = {task: [item(noun, i) for i, noun in enumerate(NOUNS)] for task, item in ITEMS.items()}
STEM = "The function called the returned list because the"
OF_2021 = {  # the second item of each task, as the harness of 2021 had it
    "piqa": {"query": "Question: How to import a function?\n", "choices": ["write import function", "function"]},
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
def models():
    """A dense and a sliced model, and their tokenizer; not to be changed."""
    dense, tokenizer = minislice.load("mini-llama", dtype="float32", device="cpu")
    sliced = copy.deepcopy(dense)
    minislice.slice_model(sliced, sample(tokenize(load_text("embedded"), tokenizer), 8, 64), slicing=0.4)
    return {"dense": dense, "sliced": sliced}, tokenizer


# The harness's numbers


@pytest.fixture(scope="module")
def direct(models, originals, tmp_path_factory):
    """What the harness gives when it is called directly, as its guide says, with hand-written tasks; by model."""
    from lm_eval.models.huggingface import HFLM

    place = tmp_path_factory.mktemp("direct")
    for task in ORIGINAL:
        lines = [
            f"include: {Path(HARNESS.__file__).parent / LOCAL[task].file}",
            *("dataset_path: json", "dataset_name: null", "training_split: null", "test_split: null"),
            f"dataset_kwargs: {{data_files: {{validation: {originals / task}.jsonl}}, cache_dir: {place / 'cache'}}}",
            f"task: {task}",
        ]
        (place / f"{task}.yaml").write_text("\n".join(lines))
    manager, (both, tokenizer) = HARNESS.TaskManager(include_path=str(place), include_defaults=False), models
    asked = {"tasks": list(ORIGINAL), "task_manager": manager, "num_fewshot": 0}
    return {
        name: lm_eval.simple_evaluate(HFLM(model, tokenizer=copy.deepcopy(tokenizer), batch_size=1), **asked)
        for name, model in both.items()
    }


def numbers_are_the_harness_own(direct: dict, model, tokenizer, folder: Path) -> None:
    """Accuracy, standard error and every single item."""
    ours = minislice.zero_shot(model, tokenizer, list(ORIGINAL), tasks_from=folder)
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


@pytest.mark.parametrize("which", ["dense", "sliced"])
def test_numbers_are_the_harness_own_item_by_item(which, models, originals, direct):
    numbers_are_the_harness_own(direct[which], models[0][which], models[1], originals)


MISTAKES = {
    "another metric": lambda score, found: {"accuracy": 100 * found["acc,none"]},
    "another order": lambda score, found: {"correct": score.correct[1:] + score.correct[:1]},
    "a share for a percentage": lambda score, found: {"stderr": score.stderr / 100},
}
RIGHT = zero_shot._score


@pytest.mark.parametrize("mistake", MISTAKES)
def test_other_numbers_are_found(mistake, models, originals, direct, monkeypatch):
    def wrong(task, results):
        score = RIGHT(task, results)
        return dataclasses.replace(score, **MISTAKES[mistake](score, results["results"][task]))

    monkeypatch.setattr(zero_shot, "_score", wrong)
    with pytest.raises(AssertionError):
        numbers_are_the_harness_own(direct["dense"], models[0]["dense"], models[1], originals)


def test_measuring_changes_nothing_and_a_loaded_model_answers_alike(models, originals, tmp_path):
    model, tokenizer, generator = models[0]["sliced"], models[1], torch.get_rng_state()
    before, padding = copy.deepcopy(model.state_dict()), tokenizer.pad_token
    model.train()
    whole = minislice.zero_shot(model, tokenizer, "hellaswag", tasks_from=originals)
    assert model.training and tokenizer.pad_token == padding and torch.equal(torch.get_rng_state(), generator)
    model.eval().save_pretrained(tmp_path / "model", tokenizer=tokenizer)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    loaded = minislice.load(tmp_path / "model", device="auto")
    assert minislice.zero_shot(*loaded, "hellaswag", tasks_from=originals) == whole
    part = minislice.zero_shot(model, tokenizer, "hellaswag", tasks_from=originals, limit=4)["hellaswag"]
    assert part.correct == whole["hellaswag"].correct[:4] and part.count == 4


# Items in the form of 2021


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


def test_published_copies_are_rewritten_whole(assets, tmp_path):
    tasks_of_2021.rewrite(assets / "zeroshot", tmp_path)
    sizes = {"piqa": 1838, "winogrande": 1267, "arc_easy": 2376, "arc_challenge": 1172}
    assert {task: len(read_items(task, tmp_path)) for task in sizes} == sizes


# Bad input


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("piqa", {"label": -1}, r"no right answer \(label -1\); a test split has none, take the validation split"),
        ("piqa", {"label": True}, r"no right answer \(label True\)"),
        ("piqa", {"sol1": None}, "what should be a text is something else"),
        ("piqa", {"sol2": " "}, "a choice is empty"),
        ("winogrande", {"sentence": "No gap."}, "the sentence has no _"),
        ("arc_easy", {"choices": ["a", "b"]}, "an item has the fields question, choices, answerKey, as on the hub"),
        ("arc_easy", {"choices": {"text": ["a"], "label": ["1", "2"]}}, "an item has the fields question, choices"),
        ("arc_easy", {"answerKey": "E"}, r"no right answer \(answerKey 'E'\)"),
    ],
)
def test_an_item_that_can_not_be_asked_is_told_by_its_line(task, change, message, tmp_path):
    items = [ORIGINAL[task][0], {**ORIGINAL[task][1], **change}]
    with pytest.raises(ValueError, match=rf"{task}.jsonl, line 2: .*{message}"):
        read_items(task, folder_of({task: items}, tmp_path / "tasks"))


@pytest.mark.parametrize(
    ("tasks", "content", "message"),
    [
        ("piqa", b'{"goal": "a", "sol1": "b", "sol2": "c"}\n', "line 1: an item has .*; it has no 'label'"),
        ("piqa", b'{"goal": \n', r"piqa\.jsonl, line 1: .*Expecting value"),
        ("piqa", b"\n", r"piqa\.jsonl has no items in it"),
        ("piqa", b'{"goal": "na\xefve"}', r"can't read .*piqa\.jsonl as utf-8 text: .*; save it as utf-8"),
        ("arc_challenge", b"", r"arc_challenge\.jsonl doesn't exist"),
        ("boolq", b"", "no local copy of boolq can be read; there are piqa, winogrande"),
        (["piqa", "piqa"], b"", "each task once"),
        ([], b"", "at least one"),
    ],
)
def test_tasks_that_can_not_be_measured_are_refused(tasks, content, message, models, tmp_path):
    (tmp_path / "piqa.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        minislice.zero_shot(models[0]["dense"], models[1], tasks, tasks_from=tmp_path)


def test_labels_may_be_numbers_and_a_mark_of_bytes_is_no_text(tmp_path):
    item = ORIGINAL["winogrande"][1]
    (tmp_path / "winogrande.jsonl").write_text(json.dumps({**item, "answer": 2}), encoding="utf-8-sig")
    assert read_items("winogrande", tmp_path) == [item]


def test_logits_that_are_no_numbers_have_no_accuracy(models, originals):
    dense, tokenizer = copy.deepcopy(models[0]["dense"]), models[1]
    dense.get_output_embeddings().weight.data[7] = torch.nan
    with pytest.raises(ValueError, match="piqa: the logits aren't numbers"):
        minislice.zero_shot(dense, tokenizer, "piqa", tasks_from=originals)


def test_what_is_not_there_is_told(models, tmp_path, monkeypatch):
    dense, tokenizer = models[0]["dense"], models[1]
    with pytest.raises(ValueError, match="need the model's tokenizer"):
        minislice.zero_shot(dense, None, "piqa")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)  # nothing fetched before
    with pytest.raises(ValueError, match=r"can't get piqa from the hub: .*give a folder of local copies"):
        minislice.zero_shot(dense, tokenizer, "piqa")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[eval\]"'):
        minislice.zero_shot(dense, tokenizer, "piqa")


@pytest.mark.slow  # the harness looks through thousands of other tasks first
def test_a_task_that_the_harness_has_not_is_told(models):
    with pytest.raises(ValueError, match="the LM Evaluation Harness has no task no_such_task"):
        minislice.zero_shot(models[0]["dense"], models[1], ["piqa", "no_such_task"])


def test_the_command_prints_what_the_library_measures(models, originals, run):
    command = ["zeroshot", "mini-llama", "--tasks", "piqa,winogrande", "--tasks-from", originals, "--quiet"]
    found = document(run(*command, "--json")[1])
    expected = minislice.zero_shot(models[0]["dense"], models[1], ["piqa", "winogrande"], tasks_from=originals)
    for score in expected.scores:
        numbers = {"accuracy": score.accuracy, "standard error": score.stderr, "items": score.count}
        assert found["tasks"][score.task] == {"metric": score.metric, **numbers}
    assert found["mean"]["accuracy"] == expected.mean
    lines = run(*command)[1].splitlines()
    assert [line.split()[0] for line in lines] == ["task", "piqa", "winogrande", "mean"]
    assert f"{expected.mean:.2f}" in lines[-1]
