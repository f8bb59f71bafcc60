"""What lies beyond the paper, at equal sizes: the README's table of small models, and SmolLM2's.

    python notebooks/measure/beyond.py                     # the embedded models; with MINISLICE_TEST_ASSETS, four more
    python notebooks/measure/beyond.py --own               # the same, calibrated on what they write themselves
    python notebooks/measure/beyond.py --smollm2 wikitext  # SmolLM2, calibrated on WikiText-2: minutes on a large GPU
    python notebooks/measure/beyond.py --smollm2 alpaca    # calibrated on instructions, measured on WikiText-2
    python notebooks/measure/beyond.py --smollm2 own       # calibrated on what it writes itself, measured on WikiText-2
    python notebooks/measure/beyond.py --table
    python notebooks/measure/beyond.py --plot data/results/smollm2-sizes.png

`minislice.compare` measures; rows that are in data/results already are not measured again. MINISLICE_TEST_ASSETS is a
folder with `models` and `text`: TinyStories for stories260K and babyllama-tok361, WikiText-2 for opt-dev, phi-dev and
SmolLM2. Of a text that serves for both the first half calibrates, the second is measured on: all of its windows, unless
--eval-samples asks for a quick look. SmolLM2 is measured on the first 300 TinyStories, too, which no calibration has
seen.
"""

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path

from common import ALPACA, ASSETS, MORE, RESULTS, STORIES, WIKITEXT, models, read

import minislice
from minislice.beyond.compare import SIZES
from minislice.beyond.variants import VARIANTS, Variant, mixed
from minislice.command.output import picture
from minislice.corpus.documents import evaluation_windows
from minislice.corpus.embedded import EMBEDDED, SEQLEN
from minislice.corpus.text import disjoint_streams, is_one_file, sample
from minislice.measuring.tables import markdown
from minislice.teaching import plots

SMALL, SMALL_OWN = RESULTS / "small-models-beyond.jsonl", RESULTS / "small-models-beyond-own.jsonl"
SMOLLM2 = {
    "wikitext": RESULTS / "smollm2-beyond.jsonl",
    "alpaca": RESULTS / "smollm2-beyond-alpaca.jsonl",
    "own": RESULTS / "smollm2-beyond-own.jsonl",
}
EARLIER = {text: RESULTS / f"smollm2-sizes{end}.jsonl" for text, end in (("wikitext", ""), ("alpaca", "-alpaca"))}
# A step of the reconstruction learns from one batch: with 8 sequences in each, SmolLM2 would take hours.
SMOLLM2_VARIANTS = {**VARIANTS, "reconstructed": partial(mixed, reconstruct=True, batch_size=1)}
SAMPLES = 48  # calibration sequences for SmolLM2, each of 512 tokens
SMALL_SAMPLES = 64  # for the small models
SECOND = 300  # stories on which SmolLM2 is measured
SEQLENS = {"opt-dev": 128, "phi-dev": 128}  # of other models 256


def measure(
    name: str,
    source: str,
    texts: tuple[str, str],
    settings: argparse.Namespace,
    out: Path,
    *,
    samples: int,
    seqlen: int,
    own: bool,
    second: str | None = None,
    variants: dict[str, Variant] = VARIANTS,
) -> None:
    """Add what is missing of a model's rows to a results file.

    The first text calibrates, unless `own` asks for what the model writes itself; the others are measured on.
    """

    def load():
        return minislice.load(source, dtype="float32", device="auto")

    model, tokenizer = load()
    if own:
        calibration = minislice.own_text(model, samples, seqlen, vocabulary=len(tokenizer))
    else:
        calibration = sample(disjoint_streams(*texts, tokenizer)[0], samples, seqlen)
    evaluation, second = (
        text and evaluation_windows(text, tokenizer, seqlen, settings.eval_samples, is_one_file(texts[0], text))
        for text in (texts[1], second)
    )
    del model  # every variant loads it again
    chosen = {variant: variants[variant] for variant in settings.variants.split(",")}
    asked = {"variants": chosen, "sizes": [*map(float, settings.sizes.split(","))], "out": out, "name": name}
    say = partial(print, flush=True)
    minislice.compare(lambda: load()[0], calibration, evaluation, second=second, say=say, **asked)


def measure_smollm2(calibration: str, settings: argparse.Namespace) -> None:
    """Calibrated on `wikitext`, `alpaca` or `own`; measured on WikiText-2 and on the first stories."""
    files = {name: str(Path(ASSETS, "text", file)) for name, file in (("wikitext", WIKITEXT), ("alpaca", ALPACA))}
    stories = json.loads(Path(ASSETS, "text", STORIES).read_text("utf-8"))[:SECOND]
    with tempfile.TemporaryDirectory() as folder:
        (second := Path(folder, STORIES)).write_text(json.dumps(stories), "utf-8")
        texts, asked = (files.get(calibration, calibration), files["wikitext"]), {"second": str(second), "seqlen": 512}
        asked |= {"samples": settings.samples, "own": calibration == "own", "variants": SMOLLM2_VARIANTS}
        measure("smollm2", "smollm2", texts, settings, SMOLLM2[calibration], **asked)


def table(title: str, lines: dict[str, list[dict]]) -> str:
    """What each variant multiplies the dense perplexity by, and the size that is left; for each line its name and rows,
    all of one model, text and size.
    """
    return markdown([title, "dense", *VARIANTS], [[name, *_cells(rows)] for name, rows in lines.items()])


def _cells(rows: list[dict]) -> list[str]:
    found = {row["variant"]: row for row in rows}
    cells = [f"{found['dense']['perplexity']:.2f}"]
    for row in map(found.get, VARIANTS):
        if row is None or row["status"] == "failed":
            cells.append("-" if row is None else "can't")
        else:
            share = row["parameters"] / row["dense_parameters"]
            cells.append(f"{_ratio(row)}, {share:.0%}")
    return cells


def tables() -> str:
    """At 80% every model; SmolLM2 on two texts; and by the earlier judge at every size."""
    small, real = read(SMALL), {text: read(path) for text, path in SMOLLM2.items()}
    at_80 = {name: of_size(0.8, of_model(name, small)) for name in dict.fromkeys(row["model"] for row in small)}
    at_80["smollm2"] = of_size(0.8, of_sequences(SAMPLES, real["wikitext"]))
    at_all = {f"{size:.0%}, {text}": of_size(size, read(path)) for text, path in EARLIER.items() for size in SIZES}
    parts = table("at most 80%", at_80), judged_table(real), table("SmolLM2", at_all), texts_table(small, real)
    return "\n\n".join(parts)


def judged_table(real: dict[str, list[dict]]) -> str:
    """SmolLM2 on two texts, one of them of a kind that nothing was calibrated on; and what each method takes."""
    lines = [
        [
            f"{row['variant']}, {row['size']:.0%}",
            f"{text}, {row['calibration']['sequences']}",
            *(f"{of['perplexity']:.2f}, {_ratio(of)}" for of in (row, row["second"])),
            f"{row['seconds'] / 60:.1f}",
            f"{row['peak'] / 2**30:.1f} GiB",
        ]
        for text, rows in real.items()
        for row in rows
    ]
    return markdown(["SmolLM2", "calibrated on", "WikiText-2", "TinyStories", "CPU minutes", "peak"], lines, words=2)


def texts_table(small: list[dict], real: dict[str, list[dict]]) -> str:
    """Calibrated on a text, and on the model's own: what two variants multiply the dense perplexity by, at 80%."""
    pairs = {name: [of_model(name, rows) for rows in (small, read(SMALL_OWN))] for name in (*EMBEDDED, *MORE)}
    pairs["smollm2 (alpaca)"] = [of_sequences(SAMPLES, real[text]) for text in ("alpaca", "own")]
    heads = [f"{variant}, {text}" for variant in ("neurons", "mixed") for text in ("text", "own")]
    lines = []
    for name, pair in pairs.items():
        found = [{row["variant"]: row for row in of_size(0.8, rows)} for rows in pair]
        lines.append([name, *(_ratio(rows.get(variant)) for variant in ("neurons", "mixed") for rows in found)])
    return markdown(["at most 80%, calibrated on", *heads], lines)


def _ratio(row: dict | None) -> str:
    return "-" if row is None else f"{row['ratio']:.3f} ± {row['ratio_error']:.3f}"


def plot(path: Path) -> None:
    """SmolLM2 at every size, by the earlier judge."""
    found = {text: read(results) for text, results in EARLIER.items()}
    order = ["dense", *VARIANTS]
    with picture(path):
        axes = plots.panels(len(found), share_y=True)
        for ax, (text, rows) in zip(axes, found.items(), strict=True):
            plots.by_parameters(sorted(rows, key=lambda row: order.index(row["variant"])), ax=ax)
            ax.set_title(f"SmolLM2, calibrated on {text}")
        axes[0].get_legend().remove()


def of_sequences(samples: int, rows: list[dict]) -> list[dict]:
    return [row for row in rows if row["calibration"]["sequences"] == samples]


def of_model(name: str, rows: list[dict]) -> list[dict]:
    return [row for row in rows if row["model"] == name]


def of_size(size: float, rows: list[dict]) -> list[dict]:
    """These and the dense model's."""
    return [row for row in rows if row["size"] in (1.0, size)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--smollm2", choices=SMOLLM2, help="SmolLM2, and the text that calibrates")
    chosen.add_argument("--own", action="store_true", help="the small models, calibrated on what they write themselves")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--samples", type=int, default=SAMPLES, help="that calibrate SmolLM2 (default: %(default)s)")
    parser.add_argument("--eval-samples", type=int, help="a quick look: measure on the first so many windows")
    parser.add_argument("--table", action="store_true", help="measure nothing, print what is in the results")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="measure nothing, draw what is in SmolLM2's results")
    settings = parser.parse_args()
    if settings.table:
        print(tables())
    elif settings.plot:
        plot(settings.plot)
    elif settings.smollm2:
        if ASSETS is None:
            parser.error("needs MINISLICE_TEST_ASSETS: the folder with `text`")
        measure_smollm2(settings.smollm2, settings)
    else:
        out = SMALL_OWN if settings.own else SMALL
        for name, (source, text) in models().items():
            asked = {"samples": SMALL_SAMPLES, "seqlen": SEQLENS.get(name, SEQLEN), "own": settings.own}
            measure(name, source, (text, text), settings, out, **asked)


if __name__ == "__main__":
    main()
