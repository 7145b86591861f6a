"""aifx: the toolkit of people who operate AI factories.

`import aifx` loads nothing else: a function comes from its module in `aifx.verbs` when it is first used. docs/api.md
documents them. `aifx.extend` has the names for tasks of a project's own. Everything else is private, and may change
without notice. `aifx.commands` is the terminal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aifx.core.version import __version__

if TYPE_CHECKING:
    from aifx.verbs.accounting import kpis
    from aifx.verbs.benchmarks import (
        bench,
        bench_compare,
        bench_gate,
        bench_history,
        bench_ls,
        bench_serve,
        bench_show,
    )
    from aifx.verbs.checkpoints import (
        ckpt_average,
        ckpt_cp,
        ckpt_diff,
        ckpt_ls,
        ckpt_prune,
        ckpt_show,
        ckpt_show_orbax,
        ckpt_verify,
        ckpt_verify_all,
    )
    from aifx.verbs.configuration import config_check, config_keys, config_schema, config_show, config_toml
    from aifx.verbs.data_add import data_add, data_add_plan
    from aifx.verbs.data_classify import data_classify
    from aifx.verbs.data_expect import data_expect, data_expect_history, data_expect_infer
    from aifx.verbs.data_feedback import data_feedback
    from aifx.verbs.data_labels import (
        data_label_agreement,
        data_label_apply,
        data_label_export,
        data_label_import,
        data_label_serve,
        data_label_suspects,
    )
    from aifx.verbs.data_search import data_index, data_search
    from aifx.verbs.data_show import data_show, data_show_batch
    from aifx.verbs.data_steps import (
        data_clean,
        data_compact,
        data_contamination,
        data_decontaminate,
        data_dedupe,
        data_dedupe_audit,
        data_join,
        data_mix,
        data_pii,
        data_split,
    )
    from aifx.verbs.data_versions import (
        data_diff,
        data_erase,
        data_gc,
        data_lineage,
        data_ls,
        data_profile,
        data_push,
        data_query,
        data_query_to_file,
        data_report,
        data_show_version,
        data_verify,
        data_why,
    )
    from aifx.verbs.drills import drill
    from aifx.verbs.evaluation import compare_models, compare_shadow, evaluate, evaluate_benchmark
    from aifx.verbs.exchange import export_model, import_model
    from aifx.verbs.generation import generate
    from aifx.verbs.health import doctor, doctor_diff, doctor_rules, doctor_serve
    from aifx.verbs.health_fleet import doctor_bisect, doctor_fleet
    from aifx.verbs.health_slurm import doctor_slurm_health_check, doctor_slurm_prolog
    from aifx.verbs.kernels import kernels_clear, kernels_explain, kernels_ls, kernels_tune
    from aifx.verbs.launching import (
        launch_follow,
        launch_k8s,
        launch_k8s_check,
        launch_k8s_manifest,
        launch_local,
        launch_local_plan,
        launch_logs,
        launch_ls,
        launch_node,
        launch_slurm,
        launch_slurm_script,
        launch_stop,
    )
    from aifx.verbs.line_decisions import (
        line_approve,
        line_history,
        line_logs,
        line_pause,
        line_resume,
        line_retry,
        line_skip,
    )
    from aifx.verbs.line_files import line_check, line_graph, line_k8s, line_unit
    from aifx.verbs.line_ticks import line_backfill, line_run, line_status, line_watch
    from aifx.verbs.monitoring import monitor
    from aifx.verbs.notifying import notify_ls, notify_replay, notify_run, notify_test
    from aifx.verbs.planning import plan, plan_hardware
    from aifx.verbs.prediction import load, predict, predict_files
    from aifx.verbs.projects import init, init_templates
    from aifx.verbs.recipe_writing import data_recipe
    from aifx.verbs.recipes import data_make, data_make_plan
    from aifx.verbs.registry import (
        registry_at,
        registry_diff,
        registry_head,
        registry_history,
        registry_ls,
        registry_policy,
        registry_pull,
        registry_search,
        registry_show,
        registry_show_version,
        registry_verify,
    )
    from aifx.verbs.registry_acts import (
        registry_approve,
        registry_attest,
        registry_copy,
        registry_init,
        registry_keygen,
        registry_promote,
        registry_push,
        registry_rm,
        registry_rollback,
        registry_tag,
    )
    from aifx.verbs.runs import (
        runs_compare,
        runs_ls,
        runs_metrics,
        runs_rename,
        runs_report,
        runs_rm,
        runs_show,
        runs_tag,
        runs_watch,
    )
    from aifx.verbs.scoring import score
    from aifx.verbs.serving import serve, serve_replay
    from aifx.verbs.sweeps import sweep, sweep_plan, sweep_show
    from aifx.verbs.training import train

_NAMES = {
    "projects": "init init_templates",
    "data_show": "data_show data_show_batch",
    "data_add": "data_add_plan data_add",
    "data_steps": "data_clean data_dedupe_audit data_dedupe data_split data_contamination data_decontaminate data_pii "
    "data_join data_mix data_compact",
    "data_expect": "data_expect_infer data_expect data_expect_history",
    "recipes": "data_make_plan data_make",
    "recipe_writing": "data_recipe",
    "data_versions": "data_ls data_show_version data_verify data_profile data_query data_query_to_file data_diff "
    "data_lineage data_why data_report data_push data_erase data_gc",
    "data_search": "data_index data_search",
    "data_labels": "data_label_serve data_label_import data_label_export data_label_agreement data_label_suspects "
    "data_label_apply",
    "configuration": "config_show config_toml config_check config_keys config_schema",
    "training": "train",
    "registry_acts": "registry_push registry_promote registry_tag registry_init registry_keygen registry_attest "
    "registry_copy registry_approve registry_rollback registry_rm",
    "registry": "registry_policy registry_ls registry_show registry_show_version registry_search registry_diff "
    "registry_pull registry_history registry_at registry_head registry_verify",
    "notifying": "notify_run notify_ls notify_replay notify_test",
    "runs": "runs_ls runs_show runs_metrics runs_compare runs_watch runs_report runs_tag runs_rename runs_rm",
    "checkpoints": "ckpt_ls ckpt_show ckpt_show_orbax ckpt_verify ckpt_verify_all ckpt_diff ckpt_cp ckpt_average "
    "ckpt_prune",
    "evaluation": "compare_models compare_shadow evaluate evaluate_benchmark",
    "prediction": "load predict predict_files",
    "scoring": "score",
    "monitoring": "monitor",
    "accounting": "kpis",
    "data_classify": "data_classify",
    "data_feedback": "data_feedback",
    "generation": "generate",
    "health": "doctor doctor_diff doctor_rules doctor_serve",
    "health_fleet": "doctor_fleet doctor_bisect",
    "health_slurm": "doctor_slurm_health_check doctor_slurm_prolog",
    "exchange": "export_model import_model",
    "serving": "serve serve_replay",
    "sweeps": "sweep_plan sweep sweep_show",
    "drills": "drill",
    "launching": "launch_local launch_local_plan launch_node launch_slurm launch_slurm_script launch_k8s "
    "launch_k8s_manifest launch_k8s_check launch_ls launch_logs launch_follow launch_stop",
    "line_files": "line_check line_graph line_unit line_k8s",
    "line_ticks": "line_run line_status line_backfill line_watch",
    "line_decisions": "line_history line_logs line_approve line_skip line_retry line_pause line_resume",
    "planning": "plan plan_hardware",
    "kernels": "kernels_explain kernels_tune kernels_ls kernels_clear",
    "benchmarks": "bench bench_serve bench_show bench_compare bench_gate bench_ls bench_history",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"aifx.verbs.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
