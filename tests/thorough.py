"""What takes long and is seldom red: tests that ``pytest`` leaves to ``pytest -m thorough``.

Whole matrices of which some rows stay in the daily run, corpora that are expanded, the documents'
build, the wheel. ``.ci/run`` runs both. Each entry is the beginning of tests' names.
``pytest -m "not slow"`` leaves out these, what is marked slow, and the files in ``SLOW``.
"""

TESTS = (
    "tests/embedded/test_mini_esc50.py",
    "tests/embedded/test_mini_vctk.py",
    "tests/faults/test_faults.py::test_the_harm_is_done",
    "tests/faults/test_twice.py",
    "tests/fuzz/test_fuzz.py::test_five_hundred",
    "tests/test_diffs.py::test_the_recipe_trains_and_resumes[librispeech",
    "tests/test_docs.py::test_the_documentation_builds",
    "tests/test_esc50_recipe.py::test_resumed_in_the_middle",
    "tests/test_esc50_recipe.py::test_two_ranks",
    "tests/test_esc50_recipe.py::test_zero_shot[pretrained",
    "tests/test_esc50_recipe.py::test_zero_shot[untouched",
    "tests/test_export.py::test_a_classifier_hears_what_its_run_heard[mam_zeroshot",
    "tests/test_fresh.py::test_arms_of_a_comparison",
    "tests/test_fresh.py::test_it_is_resumed",
    "tests/test_half_precision.py",
    "tests/test_head.py::test_resumed_and_exported",
    "tests/test_live_modules.py::test_a_saved_model",
    "tests/test_packaging.py::test_the_metadata",
    "tests/test_packaging.py::test_the_wheel",
    "tests/test_recipe.py::test_one_random_draw",
    "tests/test_recipe.py::test_real_speech",
    "tests/test_recipe_table.py::test_a_row_runs_and_leaves_its_files",
    "tests/test_recordings.py",
    "tests/test_report_folds.py::test_confusions_are_drawn",
    "tests/test_seeds.py::test_the_same_by_the_command_on_several",
    "tests/test_trainer.py::test_the_core_needs",
    "tests/test_units.py::test_an_exported_recogniser_is_a_target",
    "tests/test_units.py::test_vctk_on_two_ranks",
    "tests/test_whole_checkpoints.py::test_a_rank_that_is_late",
)
"""Where a whole file is named, its tests that are marked slow."""

NIGHTLY = (
    "tests/embedded/test_beats_mini.py::test_a_probe_hears",
    "tests/embedded/test_corpora.py::test_two_processes_at_once",
    "tests/test_architectures.py::test_each_family_learns",
    "tests/test_benchmarks.py::test_",
    "tests/test_brain_features.py::test_compile",
    "tests/test_diffs.py::test_the_recipe_trains_and_resumes[iemocap",
    "tests/test_head.py::test_the_encoder_and_lam_wait",
    "tests/test_live_modules.py::test_compiled",
    "tests/test_packaging.py::test_the_source_distribution",
    "tests/test_proof.py::test_the_recipe_learns",
    "tests/test_reads_weight.py::test_a_compiler",
    "tests/test_recipe.py::test_two_ranks_equal",
    "tests/test_recipe_table.py::test_a_row_runs_and_leaves_its_files[ESC50 hparams/esc50_mam",
    "tests/test_recipe_table.py::test_a_row_runs_and_leaves_its_files[VCTK hparams/mam",
    "tests/test_rewrite.py::test_large_models",
    "tests/test_tutorial.py::test_it_runs",
    "tests/test_units.py::test_trained_resumed_exported",
    "tests/test_vit_donors.py::test_base_shapes",
)
"""Of TESTS' kind, but once a night: compilers, large shapes, benchmarks, SpeechBrain's recipes.

The rest of the matrix of ``tests/test_conformance.py`` is marked there.
"""

SLOW = (
    "tests/test_before_the_move.py",
    "tests/test_clusters.py",
    "tests/test_contest.py",
    "tests/test_ctc_folders.py",
    "tests/test_esc50_download.py",
    "tests/test_esc50_prepare.py",
    "tests/test_export.py",
    "tests/test_family.py",
    "tests/test_fresh.py",
    "tests/test_lambda_map.py",
    "tests/test_only_donors.py",
    "tests/test_option_checks.py",
    "tests/test_prefix_caches.py",
    "tests/test_processes.py",
    "tests/test_proof.py",
    "tests/test_push.py",
    "tests/test_race.py",
    "tests/test_report.py",
    "tests/test_report_folds.py",
    "tests/test_seeds.py",
    "tests/test_stored.py",
    "tests/test_trainer.py",
    "tests/test_vctk_prepare.py",
    "tests/test_weight_files.py",
    "tests/test_whole_checkpoints.py",
)
"""Files that are slow as a whole: many small runs, servers, pictures."""
