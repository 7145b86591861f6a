"""Names that other training tools use for what a key or section of `aifx.toml` says."""

from __future__ import annotations

from collections.abc import Collection, Mapping

_KEYS: dict[str, str] = {  # "section.key" is a name that means this in that section only
    "optimizer.learning_rate": "lr base_lr init_lr initial_lr max_lr peak_lr learningrate",
    "schedule.final_fraction": "min_lr end_lr final_lr min_learning_rate lr_min",
    "train.num_steps": (
        "epochs epoch num_epochs n_epochs max_epochs num_train_epochs nb_epoch train_epochs "
        "steps max_steps total_steps train_steps num_train_steps training_steps n_steps "
        "iters iterations max_iters max_iterations num_iterations num_iters train_iters"
    ),
    "train.global_batch_size": (
        "batch_size batchsize bs batch train_batch_size total_batch_size per_device_batch_size "
        "per_device_train_batch_size per_gpu_train_batch_size mini_batch_size minibatch_size samples_per_batch"
    ),
    "train.gradient_accumulation": (
        "gradient_accumulation_steps grad_accumulation_steps grad_accumulation grad_accum grad_accum_steps "
        "accumulation_steps accumulate_grad_batches update_freq micro_batches num_microbatches"
    ),
    "eval.batch_size": "eval_batch_size per_device_eval_batch_size val_batch_size test_batch_size",
    "schedule.warmup_steps": "warmup warmup_iters num_warmup_steps lr_warmup_steps lr_warmup_iters warmup_updates",
    "task.kind": "task.name task.type task.task",
    "schedule.kind": (
        "schedule.name schedule.type lr_scheduler lr_scheduler_type lr_schedule lr_decay_style scheduler decay_lr"
    ),
    "optimizer.kind": "optimizer.name optimizer.type optim optimizer optimizer_name optimizer_type",
    "optimizer.weight_decay": "wd l2 weightdecay",
    "optimizer.clip_norm": (
        "grad_clip gradient_clip gradient_clipping gradient_clip_val clip_grad clip_grad_norm max_grad_norm "
        "grad_norm_clip clip"
    ),
    "optimizer.beta1": "adam_beta1 beta_1 betas b1",
    "optimizer.beta2": "adam_beta2 beta_2 b2",
    "optimizer.epsilon": "eps adam_eps adam_epsilon",
    "model.num_layers": "n_layer n_layers num_hidden_layers layers depth num_blocks n_blocks num_transformer_layers",
    "model.num_heads": "n_head n_heads num_attention_heads heads nhead num_query_heads attention_heads",
    "model.num_kv_heads": "n_kv_head n_kv_heads num_key_value_heads num_query_groups kv_heads",
    "model.embed_dim": (
        "n_embd n_embed d_model hidden_size hidden_dim emb_dim embedding_dim embedding_size model_dim dim"
    ),
    "model.mlp_dim": "n_inner d_ff ff_dim ffn_dim ffn_hidden_size intermediate_size feedforward_dim dim_feedforward",
    "model.max_seq_len": "n_positions max_position_embeddings",
    "model.norm_epsilon": "rms_norm_eps layer_norm_eps layer_norm_epsilon norm_eps",
    "model.tie_embeddings": "tie_word_embeddings weight_tying tied_embeddings",
    "model.activation": "hidden_act activation_function act_fn",
    "model.rope_theta": "rope_base rotary_base",
    "model.remat": "gradient_checkpointing activation_checkpointing checkpoint_activations",
    "finetune.base": (
        "init_from pretrained pretrained_run pretrained_model_path load_from base_model model_name model_name_or_path "
        "base_model_name_or_path pretrained_model_name_or_path"
    ),
    "finetune.freeze": "freeze_backbone freeze_encoder",
    "finetune.adapter": "peft peft_type use_lora adapter_type",
    "finetune.base_quantize": "load_in_8bit quantize_base",
    "lora.rank": "lora.r lora_r lora_rank",
    "lora.alpha": "lora_alpha",
    "lora.targets": "target_modules lora_targets lora_target_modules",
    "lora.dropout": "lora_dropout",
    "model.dropout": "dropout_rate drop_rate attn_pdrop embd_pdrop resid_pdrop attention_dropout hidden_dropout_prob",
    "model.qk_norm": "use_qk_norm qk_layernorm",
    "optimizer.ema_decay": "ema ema_rate ema_momentum",
    "data.seq_len": (
        "block_size context_length context_len context_size ctx_len n_ctx sequence_length seq_length "
        "max_length max_seq_length maxlen"
    ),
    "data.train": "datasets dataset_name data_dir data_file data_files train_data train_file train_files",
    "data.path": "data_path dataset_path",
    "data.validation": "val_data val_file val_files valid_file validation_file validation_files eval_file",
    "data.tokenizer": "tokenizer_path tokenizer_file tokenizer_name tokenizer_name_or_path",
    "data.validation_fraction": "val_split val_fraction val_size validation_split validation_size",
    "data.test_fraction": "test_split test_size",
    "data.classes": "class_names labels num_classes",
    "train.precision": "dtype torch_dtype fp16 bf16 amp mixed_precision autocast",
    "train.parameter_dtype": "weight_dtype param_dtype params_dtype",
    "train.seed": "random_seed manual_seed global_seed rng_seed",
    "train.devices": "gpus num_gpus n_gpu n_gpus ngpus num_devices devices_per_node",
    "train.validate_every": (
        "eval.every eval.interval eval.steps eval_every eval_interval eval_steps eval_freq val_every val_interval "
        "val_check_interval"
    ),
    "train.validation_batches": "eval_iters eval_batches limit_val_batches",
    "train.early_stopping": "patience early_stopping_patience early_stop",
    "checkpoint.every": (
        "checkpoint.steps checkpoint.interval save_every save_interval save_steps save_freq checkpoint_every "
        "checkpoint_interval ckpt_interval"
    ),
    "checkpoint.keep_last": "save_total_limit max_to_keep keep_checkpoints keep_last_n",
    "checkpoint.keep_best": "save_top_k",
    "log.every": (
        "log.steps log.interval log.freq log_every log_interval log_steps logging_steps log_every_n_steps log_freq "
        "print_every"
    ),
    "log.trackers": "report_to logger loggers tracker sinks log.sinks log_with",
    "generate.max_tokens": "max_new_tokens generate.max_length generate.length",
    "generate.temperature": "temp",
}

_SECTIONS: dict[str, str] = {
    "train": "trainer training train_config training_args fit",
    "model": "network net architecture arch model_config transformer",
    "data": "dataset dataloader data_loader datamodule corpus",
    "optimizer": "optim optimiser adam adamw sgd",
    "schedule": "scheduler lr_scheduler lr_schedule",
    "checkpoint": "checkpoints checkpointing ckpt saving",
    "eval": "evaluation evaluate validation test metrics",
    "log": "logging logger wandb tensorboard mlflow tracking",
    "generate": "generation sampling sample inference",
}

_REMARKS: dict[str, str] = {  # by our key, or by a part of the other tool's
    "epoch": "It counts steps: epochs x training examples / train.global_batch_size",
    "per_device": "It counts the rows of all devices together",
    "per_gpu": "It counts the rows of all devices together",
    "schedule.final_fraction": "It is a fraction of the peak learning rate",
    "betas": "optimizer.beta2 is the second of them",
    "num_classes": "It names each class; the number of labels follows from the data",
    "save_top_k": "It keeps the checkpoints with the best validation",
}


def _inverted(table: Mapping[str, str]) -> dict[str, str]:
    return {name: ours for ours, names in table.items() for name in names.split()}


FOREIGN_KEYS = _inverted(_KEYS)
FOREIGN_SECTIONS = _inverted(_SECTIONS)


def own_key(section: str, key: str, known: Collection[str]) -> str | None:
    """The key of `aifx.toml` ("train.num_steps") that another tool calls `key`, if it is among `known`."""
    plain = _plain(key)
    ours = FOREIGN_KEYS.get(f"{section}.{plain}", FOREIGN_KEYS.get(plain))
    return ours if ours in known else None


def own_section(section: str) -> str | None:
    """The section of `aifx.toml` that another tool calls `section`."""
    return FOREIGN_SECTIONS.get(_plain(section))


def suggestion(key: str, ours: str) -> str:
    """ "did you mean optimizer.learning_rate?", with a remark if the two count differently."""
    remarks = (f" {remark}" for part, remark in _REMARKS.items() if part == ours or part in _plain(key))
    return f"did you mean {ours}?{next(remarks, '')}"


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
