"""The plugin's options as data. It imports next to nothing, because pytest always loads it."""

from __future__ import annotations

from typing import Any, Final, NamedTuple


class Option(NamedTuple):
    """One setting, by its ini name; option (dashes) and variable (capitals) derive from it."""

    name: str
    metavar: str
    help: str

    @property
    def flag(self) -> str:
        """The command-line option."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable."""
        return self.name.upper()


class Flag(NamedTuple):
    """An option of the command line alone; ``arguments`` are argparse's."""

    flag: str
    name: str
    help: str
    arguments: dict[str, Any]


OPTIONS: Final = (
    Option("chaos_seed", "SEED", "Seed of everything random (default: drawn, and shown)."),
    Option("chaos_iterations", "N", "Runs of each scenario's quick form, as separate tests (default: 1)."),
    Option(
        "chaos_min_pass_rate", "P", "Least share of runs that hold, 0 to 1 (default: 1.0; for several iterations 0.98)."
    ),
    Option("chaos_confirm", "N", "Replays of a violation before it is reported (default: 2; 0: none)."),
    Option("chaos_results", "DIR", "Folder for records, reports and evidence (default: chaos-results)."),
    Option(
        "chaos_report",
        "FORMATS",
        "Formats of the matrix, separated by commas: md, html, json, ctrf (default: md,html,json).",
    ),
    Option(
        "chaos_scratch", "DIR", "Folder for the files of runs, removed afterwards (default: /dev/shm if there is one)."
    ),
    Option(
        "chaos_prove",
        "P",
        "Run each scenario until a sequential test has proved or refuted this pass rate (0.98), or the iterations end.",
    ),
    Option("chaos_budget", "TIME", "Begin no run after this time: 90s, 10m, 2h. Early iterations come first."),
    Option(
        "chaos_shard",
        "I/N",
        "Only the I-th of N parts of the runs, by a hash: one a machine. All need the same --chaos-seed.",
    ),
    Option(
        "chaos_cluster",
        "ADDRESS",
        "Workers of Dask that judge the states of explorations: local:N, tcp://HOST:PORT, slurm:N (default: none).",
    ),
)

FLAGS: Final = (
    Flag(
        "--chaos-quick",
        "chaos_quick",
        "Same as 10 iterations with a least pass rate of 0.95.",
        {"action": "store_true"},
    ),
    Flag(
        "--chaos-quick-forms",
        "chaos_quick_forms",
        "Only one quick run of each scenario: its first test in the file that is not chaos_deep.",
        {"action": "store_true"},
    ),
    Flag(
        "--chaos-all-iterations",
        "chaos_all_iterations",
        "Repeat runs marked chaos_once, too, which come out the same in each iteration.",
        {"action": "store_true"},
    ),
    Flag(
        "--chaos-all-points",
        "chaos_all_points",
        "Execute a test with at_every_point at all points, also where it asks for a sample.",
        {"action": "store_true"},
    ),
    Flag(
        "--chaos-watch",
        "chaos_watch",
        "Watch what the agents of each run do to SQLite databases; without it, a test calls chaos.watch_sqlite().",
        {"choices": ["sqlite"], "default": None},
    ),
    Flag(
        "--chaos-scenario",
        "chaos_scenario",
        "Only the scenario with this id; may be given again. 'chaos list' shows them.",
        {"action": "append", "metavar": "ID", "default": None},
    ),
    Flag(
        "--chaos-steps",
        "chaos_steps",
        "Watch durable steps and program lines of all agents, and join them with what a finding says is lost. Slow.",
        {"action": "store_true"},
    ),
    Flag(
        "--chaos-resume",
        "chaos_resume",
        "Go on with a session that ended early: 'latest', or its folder. What was run is not run again.",
        {"metavar": "SESSION", "default": None},
    ),
    Flag(
        "--chaos-shrink",
        "chaos_shrink",
        "Shrink the first violation of each cause: the least plan with the same finding, and a test to paste.",
        {"action": "store_true"},
    ),
    Flag(
        "--chaos-explain",
        "chaos_explain",
        "Run the first violation of each cause with its fault at every step: when is it fatal, and when not?",
        {"action": "store_true"},
    ),
    Flag("--chaos-replay", "chaos_replay", "Only the run in this evidence pack.", {"metavar": "PACK", "default": None}),
    Flag(
        "--chaos-list-json",
        "chaos_list_json",
        "Write the collected scenarios to a file as JSON and run nothing.",
        {"metavar": "FILE", "default": None},
    ),
)
