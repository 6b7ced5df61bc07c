"""The core's own commands, declared as a plugin declares its: names and target strings, nothing imported."""

from typing import Final

from apt.plugins.records import CommandRecord

#: Sections of ``--help``, in order; what plugins bring comes under the last.
SECTIONS: Final = ("Main job", "Models", "Training", "Plugins", "Shell")

CORE_COMMANDS: Final = (
    CommandRecord(
        "quickstart",
        "apt.cli.quickstart:quickstart",
        "Prune, recover, prove, export and back up a model: the whole main job.",
        section="Main job",
    ),
    CommandRecord("run", "apt.cli.run:run", "Run a recipe; unchanged steps are not run again.", section="Main job"),
    CommandRecord(
        "info",
        "apt.cli.info:info",
        "Architecture, parameters, dtypes, context and KV cache of a model.",
        section="Models",
    ),
    CommandRecord(
        "list", "apt.cli.list:list_models", "Models of the store, of caches and of directories.", section="Models"
    ),
    CommandRecord("size", "apt.cli.size:size", "Bytes of a model by component and dtype.", section="Models"),
    CommandRecord(
        "test", "apt.cli.test:test", "Check that a model is whole and measure its perplexity.", section="Models"
    ),
    CommandRecord(
        "compare", "apt.cli.compare:compare", "Compare models: size, speed, perplexity, divergence.", section="Models"
    ),
    CommandRecord(
        "debug", "apt.cli.debug:debug", "Find faults of the environment or of a checkpoint.", section="Models"
    ),
    CommandRecord(
        "visualize",
        "apt.cli.visualize:visualize",
        "Charts of a model, a training run or a result on one offline page.",
        section="Models",
    ),
    CommandRecord(
        "train", "apt.cli.train:train", "Train a model as a config says; a killed run goes on.", section="Training"
    ),
    CommandRecord("config", "apt.cli.config:app", "Training configs: list, copy, show, validate.", section="Training"),
    CommandRecord(
        "plugin", "apt.cli.plugin:app", "Plugins: list, install, write, try, lock, disable, remove.", section="Plugins"
    ),
    CommandRecord(
        "completion",
        "apt.cli.completion:completion",
        "Completion of commands, options and models for bash, zsh, fish.",
        section="Shell",
    ),
)

#: The names in :mod:`apt.plugins.hookspecs`, for those who need only these: pluggy costs 20 ms.
HOOKS: Final = (
    "register_commands",
    "register_components",
    "before_operation",
    "after_operation",
    "checkpoint_written",
    "on_training_start",
    "on_training_step",
    "on_training_end",
    "diagnostics",
    "model_diagnostics",
    "model_checks",
    "information",
)

#: Hooks that are called while commands run; the others declare.
EVENTS: Final = HOOKS[2:]

#: Commands of the documents that this project grew from → the plugin and the words that stand for them now.
LEGACY_COMMANDS: Final = {
    "train-hf": ("huggingface-integration", ("huggingface", "train")),
    "backup": ("cloud-storage", ("cloud-storage", "backup")),
    "upload": ("cloud-storage", ("cloud-storage", "upload")),
    "export-ollama": ("ollama-export", ("ollama", "export")),
    "process-data": ("data-processors", ("process-data",)),
    "train-multimodal": ("multimodal-training", ("multimodal", "train")),
    "train-reasoning": ("reasoning-training", ("reasoning", "train")),
}

#: Plugins that the documents name and that this version does not have: a name of theirs is never given to pip, since
#: the package that bears it on an index is somebody else's.
PLANNED: Final = {
    "multimodal-training": ("multimodal",),
    "data-processors": ("process-data",),
    "advanced-debugging": ("debugging", "monitor"),
    "advanced-visualization": ("visualization", "dashboard"),
    "reasoning-training": ("reasoning",),
}
