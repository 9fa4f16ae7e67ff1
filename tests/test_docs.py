"""Every code block, command, option, name, path and link of the documentation works.

Python blocks are executed. A command is read by its own parser, which then stops: nothing is
started. Fences carry a tag that says what their block is.
"""

import argparse
import functools
import importlib
import json
import pkgutil
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor2_0
from PIL import Image
from pydantic import BaseModel

import acontrol
import launch.options
from acontrol.config import AdapterCard
from acontrol.errors import UserError
from acontrol.generation.request import read_requests
from acontrol.interop.ip_adapter import export
from acontrol.method.sga import SemanticAdapter
from acontrol.networks.locate import built_in_adapter
from acontrol.presets import PRESETS, preset
from launch.cli import COMMANDS
from tune import space

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TAGS = {"python", "bash", "jsonl", "text"}
TOP = "acontrol|benchmarks|deploy|docs|examples|launch|tests|tune"
# Files of runs and data sets, which have a dot in their names as modules have.
FILES = {
    *("bmp", "cfg", "csv", "db", "html", "json", "jsonl", "md", "png", "safetensors", "txt"),
    "yaml",
}
EVALUATIONS = ("quality", "localization", "classification", "ablation")
MODULES = {module: name for name, (module, _) in COMMANDS.items()}


@dataclass(frozen=True)
class Block:
    """What stands between two fences."""

    page: str
    line: int
    tag: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(text: str, name: str) -> list[Block]:
    """The fenced blocks of a page."""
    lines = text.splitlines()
    fences = [number for number, line in enumerate(lines) if line.lstrip().startswith("```")]
    assert len(fences) % 2 == 0, f"{name}: a fence is not closed"
    return [
        Block(
            name,
            first + 1,
            lines[first].strip().removeprefix("```"),
            "\n".join(lines[first + 1 : last]) + "\n",
        )
        for first, last in zip(fences[::2], fences[1::2], strict=True)
    ]


def spans(text: str) -> list[str]:
    """Inline code, each on one line."""
    prose = re.sub(r"^\s*```.*?^\s*```", "", text, flags=re.M | re.S)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def command_lines(shell: str) -> list[list[str]]:
    """Words of each command: continued lines joined, [optional parts] taken as given."""
    joined = re.sub(r"\\\n\s*", " ", shell)
    lines = [re.sub(r"\[(-[^\]]*)\]", r"\1", line) for line in joined.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


TEXTS = {name_of(page): page.read_text() for page in PAGES}
BLOCKS = [block for name, text in TEXTS.items() for block in blocks(text, name)]
SPANS = {name: spans(text) for name, text in TEXTS.items()}


class WrongError(Exception):
    """A page says what does not work."""


class Parsed(Exception):  # It is no error: the parser is done.
    """Stops a command once its options are read."""

    def __init__(self, settings: type[BaseModel] | None = None):
        self.settings = settings


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command stops once its options are read; it runs in a folder of its own."""
    parse = launch.options.parse

    def parse_and_stop(settings: type[BaseModel], args: list[str], **how: Any) -> None:
        if "--help" not in args:
            parse(settings, args, **how)
        raise Parsed(settings)

    parse_args = argparse.ArgumentParser.parse_args

    def parse_args_and_stop(parser: argparse.ArgumentParser, args: Any = None) -> None:
        parse_args(parser, args)
        raise Parsed

    for info in pkgutil.iter_modules(launch.__path__):
        module = importlib.import_module(f"launch.{info.name}")
        if getattr(module, "parse", None) is parse:
            monkeypatch.setattr(module, "parse", parse_and_stop)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args_and_stop)
    (tmp_path / "sweeps" / "a").mkdir(parents=True)
    config = preset("tiny").model_dump_json()
    (tmp_path / "sweeps" / "a" / "best.json").write_text(config)
    monkeypatch.chdir(tmp_path)


def check_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise WrongError for a program, command or option that does not exist."""
    while re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    try:
        match words:
            case ["export", *settings]:
                wrong = [setting for setting in settings if "=" not in setting]
            case ["make", *targets]:
                known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
                wrong = [target for target in targets if target not in known]
            case ["pip", "install", "-c", file, *_]:
                wrong = [] if (ROOT / file).is_file() else [file]
            case ["pip", "install", package] if package.startswith("acontrol["):
                extra = package.removeprefix("acontrol[").removesuffix("]")
                known = re.findall(r"^([\w-]+) =$", (ROOT / "setup.cfg").read_text(), re.M)
                wrong = [] if extra in known else [extra]
            case ["ray" | "mlflow" as program, *args]:
                wrong = []
                own, _, inner = " ".join(args).partition(" -- ")
                _check_click(program, own.split())
                if inner:
                    check_command(inner.split(), monkeypatch)
            case ["acontrol", name, *args] if name in COMMANDS:
                wrong = _unread(COMMANDS[name][0], args)
            case ["python", "-m", module, *args] if module in MODULES:
                wrong = _unread(module, args)
            case ["python", "-m", module, *args] if module.startswith("benchmarks."):
                monkeypatch.setattr(sys, "argv", [module, *args])
                importlib.import_module(module).main()
                wrong = words
            case ["python", file, *args] if (ROOT / file).is_file():
                monkeypatch.setattr(sys, "argv", [file, *args])
                runpy.run_path(str(ROOT / file), run_name="__main__")
                wrong = words
            case _:
                wrong = words
    except Parsed:
        return
    except (UserError, click.UsageError, SystemExit, ModuleNotFoundError) as error:
        raise WrongError(f"{shlex.join(words)}: {error}") from error
    if wrong:
        raise WrongError(f"{shlex.join(words)}: {shlex.join(wrong)}")


def _unread(module: str, args: list[str]) -> list[str]:
    importlib.import_module(module).run(args)
    return [module, *args]  # It should have stopped.


def _check_click(program: str, args: list[str]) -> None:
    if program == "ray":
        from ray.scripts.scripts import cli as command
    else:
        from mlflow.cli import cli as command
    while isinstance(command, click.Group):
        name = args[0] if args else ""
        found = command.get_command(click.Context(command), name)
        if found is None:
            raise WrongError(f"{program} has no command {name!r}")
        command, args = found, args[1:]
    command.make_parser(click.Context(command)).parse_args(list(args))


def options_of(module: str) -> set[str]:
    """Every option of a command, its sub-commands' too."""
    # A config's file is taken from the arguments ahead of the parser.
    options = (
        {"--help", "--help-all", "--config"}
        if module in ("launch.train", "tune.search")
        else {"--help"}
    )
    starts = [[name] for name in EVALUATIONS] if module == "launch.evaluate" else [[]]
    for start in starts:
        try:
            importlib.import_module(module).run([*start, "--help"])
        except Parsed as parsed:
            assert parsed.settings is not None
            options |= set(_options(parsed.settings))
    return options


def _options(settings: type[BaseModel], group: str = "") -> Iterator[str]:
    for name, field in settings.model_fields.items():
        option = name.rstrip("_").replace("_", "-")
        yield f"--{group}{option}"
        if field.annotation is bool:
            yield f"--{group}no-{option}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _options(field.annotation, f"{group}{option}.")


def is_name(dotted: str) -> bool:
    """Whether a module of ours or of a library, or what it defines, has this name."""
    parts = dotted.split(".")
    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for package in ("acontrol", "launch", "tune", "benchmarks")
        for file in (ROOT / package).rglob("*.py")
    ]
    for length in range(len(parts), 0, -1):
        head = ".".join(parts[:length])
        homes = [name for name in modules if f".{name}".endswith(f".{head}")]
        if parts[0] in ("acontrol", "mlflow", "torch"):
            homes = [head]
        for home in homes:
            try:
                found = importlib.import_module(home)
                for part in parts[length:]:
                    found = getattr(found, part)
            except (ImportError, AttributeError):
                continue
            return True
    return parts[0] in acontrol.__all__ and hasattr(getattr(acontrol, parts[0]), parts[1])


def missing_paths(text: str) -> list[str]:
    """Paths of this repository that a text names and that do not exist; * may stand in them."""
    named = re.findall(rf"(?<![\w/.:<>-])((?:{TOP})/[\w./*-]*)", text)
    # A file alone, or from its package on.
    files = [span for span in spans(text) if re.fullmatch(r"[\w/]+\.py", span)]
    paths = dict.fromkeys(path.rstrip(".") for path in named)
    ends = [f"/{file}" for file in files if file not in paths]
    missing = [path for path in paths if not list(ROOT.glob(path))]
    return missing + [end[1:] for end in ends if not any(f.endswith(end) for f in sources())]


@functools.cache
def sources() -> list[str]:
    """Our Python files, each with a slash before; not those of a virtual environment."""
    tops = [top for top in ROOT.iterdir() if top.is_dir() and not top.name.startswith(".")]
    files = [file for top in tops for file in top.rglob("*.py")]
    return [f"/{file.relative_to(ROOT).as_posix()}" for file in files]


def missing_links(text: str, page: Path) -> list[str]:
    """Targets of links that do not exist."""
    missing = []
    for target in re.findall(r"\]\(([^)]+)\)", text):
        file, _, anchor = target.partition("#")
        path = page.parent / file if file else page
        if target.startswith(("http:", "https:")):
            continue
        titles = re.findall(r"^#+ (.*)", path.read_text(), re.M) if anchor else []
        slugs = [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]
        if not path.exists() or (anchor and anchor not in slugs):
            missing.append(target)
    return missing


def test_every_fence_says_what_its_block_is() -> None:
    assert [block.where for block in BLOCKS if block.tag not in TAGS] == []


@pytest.mark.parametrize("name", TEXTS)
def test_commands_are_read_to_the_end_by_their_parsers(
    name: str, stopped: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = [block.text for block in BLOCKS if block.tag == "bash" and block.page == name]
    inline = [span for span in SPANS[name] if span.startswith(("python ", "make "))]
    for words in [words for text in [*shell, *inline] for words in command_lines(text)]:
        check_command(words, monkeypatch)


@pytest.mark.parametrize(
    "line",
    [
        "acontrol train tiny --data.shard x --output y",
        "acontrol train tiny --data.shards x --output y --optim.steps few",
        "acontrol train huge --output y",
        "acontrol trane tiny",
        "acontrol evaluate quantity --real x --out y",
        "python -m launch.trane tiny",
        "python -m launch.generate --model x --data y --out z --number 3",
        "python -m benchmarks.gpu --hours 3",
        "python examples/serve.py",
        "make tests",
        "pip install -c constraint.txt torch",
        "ray start --heads",
        "ray job submit --working-dir . -- acontrol train huge",
        "mlflow servers",
        "curl http://127.0.0.1",
    ],
)
def test_a_wrong_command_is_found(
    line: str, stopped: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WrongError):
        check_command(line.split(), monkeypatch)


def test_options_and_settings_in_the_text_exist(stopped: None) -> None:
    options = {module: options_of(module) for module in MODULES}
    anywhere = set().union(*options.values())
    assert {"--data.max-damaged", "--no-composite", "--new-pieces"} <= anywhere
    wrong = [
        f"{name}: {span}"
        for name, page_spans in SPANS.items()
        for span in page_spans
        if not _is_known(span, options, anywhere)
    ]
    assert wrong == []


def _is_known(span: str, options: dict[str, set[str]], anywhere: set[str]) -> bool:
    words = span.split()
    match words:
        case ["acontrol", name, *args] if name.isidentifier():
            if name not in COMMANDS:
                return False
            words, anywhere = args, options[COMMANDS[name][0]]
            if name in ("train", "precompute", "search") and args and args[0].islower():
                return args[0] in PRESETS or args[0].startswith("--")
        case [word, *_] if not word.startswith("--"):
            return True
    used = [word.partition("=")[0].replace("_", "-") for word in words]
    return all(word in anywhere for word in used if word.startswith("--"))


def test_dotted_names_exist(stopped: None) -> None:
    settings = options_of("launch.train") | options_of("tune.search")
    groups = {option.partition(".")[0] for option in settings}
    wrong = []
    for page, page_spans in SPANS.items():
        for span in page_spans:
            name = re.sub(r"\(.*", "", span.split()[0]).removesuffix(".*")
            if not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", name):
                continue
            if name.rpartition(".")[2] in FILES | {"py"}:
                continue
            option = f"--{name.replace('_', '-')}"
            if option not in settings | groups and not is_name(name):
                wrong.append(f"{page}: {span}")
    assert wrong == []


def test_a_wrong_name_is_found() -> None:
    assert is_name("acontrol.load_pipeline")
    assert is_name("csm.CrossModalEncoder")
    assert not is_name("acontrol.generation.sampler.load_pipeline")
    assert not is_name("csm.CrossModalEncoders")


@pytest.mark.parametrize("name", TEXTS)
def test_paths_and_links_exist(name: str) -> None:
    assert missing_paths(TEXTS[name]) == []
    assert missing_links(TEXTS[name], ROOT / name) == []


def test_a_wrong_path_is_found() -> None:
    text = "`acontrol/sga.py`, `pipeline.py`, docs/trainings.md, tests/launch/test_*s.py."
    assert missing_paths(text) == ["acontrol/sga.py", "docs/trainings.md", "pipeline.py"]
    links = "[a](docs/none.md) [b](docs/data.md#before-launchshard) [c](docs/data.md#after)"
    assert missing_links(links, ROOT / "README.md")[0] == "docs/none.md"
    assert missing_links(links, ROOT / "README.md")[-1] == "docs/data.md#after"


def test_requests_are_requests_and_spaces_spaces(tmp_path: Path) -> None:
    requests = [block for block in BLOCKS if block.tag == "jsonl"]
    assert requests
    for block in requests:
        file = tmp_path / "requests.jsonl"
        file.write_text(block.text)
        assert len(read_requests(file)) == len(block.text.splitlines())
    spaces = [span for page in SPANS.values() for span in page if span.startswith("{")]
    assert spaces
    for text in spaces:
        file = tmp_path / "space.json"
        file.write_text(text)
        assert space.read_file(file).keys() == json.loads(text).keys()


def test_python_blocks_run(
    built_in_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the pages; a later one may use README's pipeline."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tile").symlink_to(built_in_adapter())
    data = built_in_data / "wood"
    for name, source in {
        "crack.png": data / "test" / "crack" / "000.png",
        "crack_mask.png": data / "ground_truth" / "crack" / "000_mask.png",
        "normal.png": data / "train" / "good" / "000.png",
        "where.png": data / "ground_truth" / "crack" / "001_mask.png",
    }.items():
        (tmp_path / name).symlink_to(source)
    names: dict[str, Any] = {}
    for block in BLOCKS:
        if block.tag != "python":
            continue
        if block.page == "docs/interop.md" and "ours" not in names:
            names = stock_names(names["pipe"])
        if block.page == "docs/generation.md":
            names["Folder"] = Folder
        exec(compile(block.text, block.where, "exec"), names)
    assert {"image", "ours"} <= names.keys()


class Folder:
    """Takes what ``anomalib.data.Folder`` (anomalib 2) takes first."""

    def __init__(
        self,
        name: str,
        normal_dir: str | Path | list[str | Path],
        root: str | Path | None = None,
        abnormal_dir: str | Path | list[str | Path] | None = None,
        normal_test_dir: str | Path | list[str | Path] | None = None,
        mask_dir: str | Path | list[str | Path] | None = None,
    ): ...


def stock_names(ours: Any) -> dict[str, Any]:
    """What docs/interop.md has at hand: our pipeline, a stock one on its base, a reference."""
    unet = type(ours.unet).from_config(ours.unet.config)
    unet.set_attn_processor(AttnProcessor2_0())
    stock = StableDiffusionPipeline(
        vae=ours.vae,
        text_encoder=ours.text_encoder,
        tokenizer=ours.tokenizer,
        unet=unet,
        scheduler=ours.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    card = AdapterCard.model_validate(ours.adapter.config.card).model_dump(mode="json")
    card["csm"]["mode"] = "pooled"
    export(SemanticAdapter.from_unet(unet, 64, mode="pooled", card=card), "ours.safetensors")
    return {
        "pipe": stock,
        "ours": ours,
        "adapter": ours.adapter,
        "prompt": "a photo of tile with a crack",
        "image": Image.open("crack.png"),
        "mask": Image.open("crack_mask.png").convert("1"),
    }
