"""Zero-shot tasks: minislice's numbers are the harness's, item by item; local copies ask what the originals ask.

Every property is also run against planted mistakes, and must fail there.
"""

import copy
import dataclasses
import json
from pathlib import Path

import datasets
import pytest
import torch
from commands import document

import minislice
from minislice.corpus.text import load_text, sample, tokenize
from minislice.measuring import local_tasks, zero_shot
from minislice.measuring.local_tasks import LOCAL, read_items, write_tasks

lm_eval = pytest.importorskip("lm_eval")
HARNESS = pytest.importorskip("lm_eval.tasks")
NOUNS = ("module", "function", "string", "exception", "value", "method")

# A few items of each task, with the fields of its data set on the hub, and the same items as the harness of 2021 had
# them. The choices differ in length, so that acc and acc_norm differ.
ORIGINAL = {
    "piqa": [
        {"goal": f"How to import a {noun}?", "sol1": f"write import {noun}", "sol2": noun, "label": i % 2}
        for i, noun in enumerate(NOUNS)
    ],
    "winogrande": [
        {
            "sentence": f"The {noun} called the returned list because the _ was empty.",
            "option1": noun,
            "option2": "returned list",
            "answer": str(i % 2 + 1),
        }
        for i, noun in enumerate(NOUNS)
    ],
    "hellaswag": [
        {
            "activity_label": "Programming",
            "ctx_a": f"The {noun} is defined.",
            "ctx_b": "it",
            "endings": ["is called.", f"returns the {noun}.", "raises an error, since it must", "the the"],
            "label": str(i % 4),
        }
        for i, noun in enumerate(NOUNS)
    ],
    "arc_easy": [
        {
            "question": f"What does a {noun} return?",
            "choices": {"text": ["an integer", "the current value", "None"], "label": ["1", "2", "3"]},
            "answerKey": str(i % 3 + 1),
        }
        for i, noun in enumerate(NOUNS)
    ],
}


def converted(task: str, item: dict) -> dict:
    """The item with the fields of the harness of 2021."""
    if task == "piqa":
        query = f"Question: {item['goal']}\n"
        return {"query": query, "choices": [item["sol1"], item["sol2"]], "gold": item["label"]}
    if task == "winogrande":
        start, rest = item["sentence"].split("_")
        options = [start + item[name] for name in ("option1", "option2")]
        return {"context_options": options, "continuation": rest.strip(), "gold": int(item["answer"]) - 1}
    if task == "hellaswag":
        query = f"{item['activity_label']}: {item['ctx_a']} {item['ctx_b'].capitalize()}"
        return {"query": query, "choices": item["endings"], "gold": int(item["label"])}
    gold = item["choices"]["label"].index(item["answerKey"])
    return {"query": f"Question: {item['question']}", "choices": item["choices"]["text"], "gold": gold}


def folder_of(items: dict[str, list[dict]], folder: Path) -> Path:
    folder.mkdir()
    for task, rows in items.items():
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    return folder_of(ORIGINAL, tmp_path_factory.mktemp("tasks") / "originals")


@pytest.fixture(scope="module")
def copies(tmp_path_factory) -> Path:
    rows = {task: [converted(task, item) for item in items] for task, items in ORIGINAL.items()}
    return folder_of(rows, tmp_path_factory.mktemp("tasks") / "copies")


@pytest.fixture(scope="module")
def models():
    """A dense and a sliced model, and their tokenizer; not to be changed."""
    dense, tokenizer = minislice.load("mini-llama", dtype="float32", device="cpu")
    sliced = copy.deepcopy(dense)
    minislice.slice_model(sliced, sample(tokenize(load_text("embedded"), tokenizer), 8, 64), slicing=0.4)
    return {"dense": dense, "sliced": sliced}, tokenizer


def asked(task: str, folder: Path, place: Path) -> list[tuple]:
    """What the harness asks of a model: context and continuation of every choice, and which is right."""
    place.mkdir()
    write_tasks([task], folder, place)
    manager = HARNESS.TaskManager(include_path=str(place), include_defaults=False)
    known = manager.load([task])["tasks"][task]
    found = []
    for doc in known.validation_docs():
        text, choices, target = known.doc_to_text(doc), known.doc_to_choice(doc), known.doc_to_target(doc)
        found.append((text, tuple(choices), target if isinstance(target, (int, str)) else tuple(target)))
    return [(text, choices, int(target) if str(target).isdigit() else target) for text, choices, target in found]


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
    languages = {
        name: HFLM(model, backend="causal", tokenizer=copy.deepcopy(tokenizer), batch_size=1)
        for name, model in both.items()
    }
    return {
        name: lm_eval.simple_evaluate(language, tasks=list(ORIGINAL), task_manager=manager, num_fewshot=0)
        for name, language in languages.items()
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


def test_measuring_changes_neither_model_nor_tokenizer(models, originals):
    (model, tokenizer), generator = (models[0]["sliced"], models[1]), torch.get_rng_state()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
    padding, mode = tokenizer.pad_token, model.train().training
    minislice.zero_shot(model, tokenizer, "piqa", limit=2, tasks_from=originals)
    assert model.training == mode and tokenizer.pad_token == padding
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, before)
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_limit_takes_the_first_items_and_a_loaded_model_answers_alike(models, originals, tmp_path):
    (model, tokenizer), task = (models[0]["sliced"], models[1]), "hellaswag"
    model.save_pretrained(tmp_path / "model", tokenizer=tokenizer)
    whole = minislice.zero_shot(model, tokenizer, task, tasks_from=originals)
    assert minislice.zero_shot(*minislice.load(tmp_path / "model", device="auto"), task, tasks_from=originals) == whole
    part = minislice.zero_shot(model, tokenizer, task, tasks_from=originals, limit=4)[task]
    assert part.correct == whole[task].correct[:4] and part.count == 4


def test_where_memory_is_not_enough_fewer_choices_are_computed_together(models, originals, monkeypatch):
    dense, tokenizer = models[0]["dense"], models[1]
    expected = minislice.zero_shot(dense, tokenizer, "piqa", tasks_from=originals)
    forward, sizes = type(dense).forward, []

    def limited(self, input_ids=None, **kwargs):
        sizes.append(len(input_ids))
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(type(dense), "forward", limited)
    found = minislice.zero_shot(dense, tokenizer, "piqa", tasks_from=originals)
    assert max(sizes) == 8 and found["piqa"].correct == expected["piqa"].correct


# Local copies


def copy_asks_what_the_original_asks(task, originals, copies, place: Path) -> None:
    expected = asked(task, originals, place / "originals")
    assert len(expected) == len(NOUNS)
    assert asked(task, copies, place / "copies") == expected


@pytest.mark.parametrize("task", ORIGINAL)
def test_a_converted_copy_asks_what_the_original_asks(task, originals, copies, tmp_path):
    copy_asks_what_the_original_asks(task, originals, copies, tmp_path)


@pytest.mark.parametrize("task", ORIGINAL)
def test_a_copy_converted_wrongly_is_found(task, originals, copies, tmp_path, monkeypatch):
    read = LOCAL[task].read

    def wrong(item):  # the next choice is the right one
        return read({**item, "gold": (item["gold"] + 1) % len(item.get("choices", "12"))} if "gold" in item else item)

    monkeypatch.setitem(local_tasks.LOCAL, task, dataclasses.replace(LOCAL[task], read=wrong))
    with pytest.raises(AssertionError):
        copy_asks_what_the_original_asks(task, originals, copies, tmp_path)


def test_published_copies_are_read_whole(assets):
    sizes = {"piqa": 1838, "winogrande": 1267, "arc_easy": 2376, "arc_challenge": 1172}
    for task, size in sizes.items():
        items = read_items(task, assets / "zeroshot")
        assert len(items) == size and set(items[0]) == set(LOCAL[task].fields)


# Bad input

NO_TEXT = "what should be a text, or a list of texts, is something else"
BAD_ITEMS = {
    "piqa": [
        ({"label": -1}, r"no right answer \(label -1\); a test split has none, take the validation split"),
        ({"label": 5}, r"no right answer \(label 5\)"),
        ({"label": True}, r"no right answer \(label True\)"),
        ({"sol1": None}, NO_TEXT),
        ({"sol2": " "}, "a choice is empty"),
    ],
    "winogrande": [
        ({"answer": ""}, r"no right answer \(answer ''\)"),
        ({"answer": 0}, r"no right answer \(answer 0\)"),
        ({"sentence": "No gap."}, "the sentence has no _"),
    ],
    "hellaswag": [
        ({"label": ""}, r"no right answer \(label ''\)"),
        ({"endings": "abc"}, NO_TEXT),
        ({"ctx_b": 1}, NO_TEXT),
    ],
    "arc_easy": [
        ({"choices": ["a", "b"]}, "choices must have a text and a label"),
        ({"choices": {"text": ["a"], "label": ["1", "2"]}}, "choices must have a text and a label"),
        ({"answerKey": "E"}, r"no right answer \(answerKey 'E'\)"),
    ],
}


@pytest.mark.parametrize(
    ("task", "change", "message"), [(task, *case) for task, cases in BAD_ITEMS.items() for case in cases]
)
def test_an_item_without_a_right_answer_is_told_by_its_line(task, change, message, tmp_path):
    items = [ORIGINAL[task][0], {**ORIGINAL[task][1], **change}]
    with pytest.raises(ValueError, match=rf"{task}.jsonl, line 2: .*{message}"):
        read_items(task, folder_of({task: items}, tmp_path / "tasks"))


def test_a_converted_item_without_a_right_answer_is_told(tmp_path):
    for task, gold in zip(ORIGINAL, (-1, 9, None, "1.0"), strict=True):
        folder = folder_of({task: [{**converted(task, ORIGINAL[task][0]), "gold": gold}]}, tmp_path / task)
        with pytest.raises(ValueError, match=rf"{task}.jsonl, line 1: "):
            read_items(task, folder)


def test_bad_input_gets_one_clear_error(models, originals, tmp_path):
    dense, tokenizer = models[0]["dense"], models[1]
    (tmp_path / "piqa.jsonl").write_text('{"goal": "a", "sol1": "b", "sol2": "c"}\n')
    (tmp_path / "arc_easy.jsonl").write_text('{"question": \n')
    (tmp_path / "winogrande.jsonl").write_text("\n")
    (tmp_path / "hellaswag.jsonl").write_text('{"query": "no activity", "choices": ["a"], "gold": 3}\n')
    for tasks, folder, message in (
        ("piqa", tmp_path, r"line 1: an item has the fields goal, sol1, sol2, label; it has no 'label'"),
        ("arc_easy", tmp_path, r"arc_easy.jsonl, line 1: .*Expecting value"),
        ("hellaswag", tmp_path, r"hellaswag.jsonl, line 1: "),
        ("winogrande", tmp_path, "winogrande.jsonl has no items in it"),
        ("arc_challenge", originals, r"arc_challenge.jsonl doesn't exist"),
        ("boolq", originals, "no local copy of boolq can be read; there are piqa, winogrande"),
        (["piqa", "piqa"], originals, "each task once"),
        ([], None, "at least one"),
    ):
        with pytest.raises(ValueError, match=message):
            minislice.zero_shot(dense, tokenizer, tasks, tasks_from=folder)
    with pytest.raises(ValueError, match="need the model's tokenizer"):
        minislice.zero_shot(dense, None, "piqa", tasks_from=originals)


def test_labels_may_be_numbers_and_a_mark_of_bytes_is_no_text(tmp_path):
    items = [{**ORIGINAL["winogrande"][1], "answer": 2}]
    folder = folder_of({"winogrande": items}, tmp_path / "tasks")
    (folder / "winogrande.jsonl").write_bytes(b"\xef\xbb\xbf" + (folder / "winogrande.jsonl").read_bytes())
    assert read_items("winogrande", folder) == [ORIGINAL["winogrande"][1]]
    (folder / "piqa.jsonl").write_bytes(b'{"goal": "na\xefve"}')
    with pytest.raises(ValueError, match=r"can't read .*piqa\.jsonl as utf-8 text: .*; save it as utf-8"):
        read_items("piqa", folder)


def test_logits_that_are_no_numbers_have_no_accuracy(models, originals):
    dense, tokenizer = copy.deepcopy(models[0]["dense"]), models[1]
    dense.get_output_embeddings().weight.data[7] = torch.nan
    with pytest.raises(ValueError, match="piqa: the logits have a NaN or an infinity"):
        minislice.zero_shot(dense, tokenizer, "piqa", tasks_from=originals)


def test_what_is_not_there_is_told(models, tmp_path, monkeypatch):
    dense, tokenizer = models[0]["dense"], models[1]
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)  # nothing fetched before
    with pytest.raises(ValueError, match=r"can't get piqa from the hub: .*give a folder of local copies"):
        minislice.zero_shot(dense, tokenizer, "piqa")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[eval\]"'):
        minislice.zero_shot(dense, tokenizer, "piqa")


@pytest.mark.slow
def test_a_task_that_the_harness_has_not_is_told(models):
    """It looks through thousands of others first."""
    with pytest.raises(ValueError, match="the LM Evaluation Harness has no task no_such_task"):
        minislice.zero_shot(models[0]["dense"], models[1], ["piqa", "no_such_task"])


# The command


def test_the_command_prints_what_the_library_measures(models, copies, run):
    command = ["zeroshot", "mini-llama", "--tasks", "piqa,winogrande", "--tasks-from", copies, "--quiet"]
    status, out, err = run(*command, "--json")
    found = document(out)
    expected = minislice.zero_shot(models[0]["dense"], models[1], ["piqa", "winogrande"], tasks_from=copies)
    assert (status, err) == (0, "") and found["tasks"]["piqa"]["accuracy"] == expected["piqa"].accuracy
    assert found["tasks"]["winogrande"] == {
        "metric": "acc",
        "accuracy": expected["winogrande"].accuracy,
        "standard error": expected["winogrande"].stderr,
        "items": len(NOUNS),
    }
    assert found["mean"]["accuracy"] == expected.mean
    lines = run(*command)[1].splitlines()
    assert [line.split()[0] for line in lines] == ["task", "piqa", "winogrande", "mean"]
    assert f"{expected.mean:.2f}" in lines[-1]
