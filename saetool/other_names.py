"""What other tools call a setting, and what to write here: nothing that letters alone would tell."""

from typing import NamedTuple


class OtherName(NamedTuple):
    """Our key, an example of what to write, and what differs."""

    key: str
    """Dotted; empty where there is nothing to set."""
    example: str = ""
    """The value, in YAML."""
    note: str = ""

    def sentence(self) -> str:
        """Return what to write, as a hint in a message."""
        note = f" ({self.note})" if self.note else ""
        if not self.key:
            return f"There is no such setting: {self.note}."
        return f"Did you mean {self.key}? Write {self.key}={self.example}{note}."


_TOKENS = OtherName("training.tokens", "1_300_000", "rows to train on: epochs × images × tokens an image")
_STEPS = OtherName("training.tokens", "1_300_000", "rows to train on: steps × batch_size")
_L1 = OtherName("autoencoder.penalty", "{kind: l1, target_l0: 45}", "or {kind: l1, weight: …}")
_K = OtherName("autoencoder.activation", "{kind: topk, k: 32}", "or batch_topk")
_ACTIVATION = OtherName("autoencoder.activation", "{kind: relu}", "topk, batch_topk, jump_relu, gated, …")
_WIDTH = OtherName("autoencoder.n_latents", "12288", "or autoencoder.expansion, a multiple of the input's width")
_EXPANSION = OtherName("autoencoder.expansion", "32")
_BATCH = OtherName("training.batch_size", "2048", "rows")
_LR = OtherName("training.lr", "1e-3")
_WARMUP = OtherName("training.warmup_steps", "1000")
_SCHEDULE = OtherName("training.schedule", "cosine", "constant, linear or cosine")
_DEAD = OtherName("autoencoder.dead", "{kind: resample}", "auxk goes with topk, resample with relu")
_AUX = OtherName("autoencoder.dead", "{kind: auxk}", "its k and weight stand there too")
_RESAMPLE = OtherName("autoencoder.dead", "{kind: resample}", "with relu or gated")
_MODEL = OtherName("backbone.name", "timm/vit_base_patch16_clip_224.openai", "or hf/NAME")
_LAYERS = OtherName("backbone.layers", "[10]", "from 1; or a module's path")
_IMAGES = OtherName("images.source", "path/to/images", "a folder, or hf/NAME")
_LIMIT = OtherName("images.limit", "1000")
_OUT = OtherName("run", "runs/mine", "the folder of everything that a run makes")
_HELD_OUT = OtherName("training.held_out", "0.1", "a share of the images")
_DEVICE = OtherName("", note="the GPU is taken where there is one; CUDA_VISIBLE_DEVICES= hides it")
_WORKERS = OtherName("", note="as many readers run as the machine has cores")
_NORMALIZE = OtherName("autoencoder.normalize", "center_scale", "scale or none")
_WANDB = OtherName("training.wandb", "my-project")
_SEED = OtherName("seed", "0", "of everything; training.seed: of weights and noise alone")
_DTYPE = OtherName("cache.dtype", "bfloat16", "of what is stored; backbone.precision: of the forward pass")
_IMAGE_SIZE = OtherName("backbone.image_size", "224")

OTHER_NAMES: dict[str, OtherName] = {
    **dict.fromkeys(("epochs", "n_epochs", "num_epochs", "max_epochs", "num_train_epochs"), _TOKENS),
    **dict.fromkeys(("training_tokens", "total_training_tokens", "n_tokens", "num_tokens", "max_tokens"), _TOKENS),
    **dict.fromkeys(("steps", "n_steps", "num_steps", "max_steps", "total_steps", "training_steps"), _STEPS),
    **dict.fromkeys(("l1_coefficient", "l1_coeff", "l1_alpha", "l1_lambda", "l1_weight", "l1_penalty", "l1"), _L1),
    **dict.fromkeys(("sparsity_coefficient", "sparsity_coeff", "sparsity_penalty", "sparsity", "lambda_"), _L1),
    **dict.fromkeys(("lambda", "sparsity_weight", "target_sparsity", "target_l0", "l0_target"), _L1),
    **dict.fromkeys(("k", "top_k", "topk", "k_sparse"), _K),
    **dict.fromkeys(("activation_fn", "activation_function", "nonlinearity", "act_fn"), _ACTIVATION),
    **dict.fromkeys(("architecture", "sae_type", "sae_class", "trainer"), _ACTIVATION),
    **dict.fromkeys(("d_sae", "dict_size", "dictionary_size", "n_features", "num_features", "num_latents"), _WIDTH),
    **dict.fromkeys(("n_dict_components", "nb_concepts", "n_components", "d_hidden", "hidden_dim"), _WIDTH),
    **dict.fromkeys(("hidden_size", "d_dict", "n_hidden", "latent_dim", "width", "n_dirs"), _WIDTH),
    **dict.fromkeys(("expansion_factor", "exp_factor", "expansion_ratio", "dict_mult", "multiplier"), _EXPANSION),
    **dict.fromkeys(("batch_size", "train_batch_size", "train_batch_size_tokens", "sae_batch_size", "bs"), _BATCH),
    **dict.fromkeys(("lr", "learning_rate", "base_lr", "max_lr"), _LR),
    **dict.fromkeys(("warmup", "lr_warm_up_steps", "lr_warmup_steps", "num_warmup_steps"), _WARMUP),
    **dict.fromkeys(("lr_scheduler", "scheduler", "lr_schedule", "lr_scheduler_name", "lr_decay"), _SCHEDULE),
    **dict.fromkeys(("dead_feature_window", "dead_feature_threshold", "dead_tokens_threshold"), _DEAD),
    **dict.fromkeys(("auxk", "auxk_alpha", "aux_coeff", "aux_loss", "auxk_coef", "k_aux"), _AUX),
    **dict.fromkeys(("resample", "resample_steps", "dead_feature_resampling", "use_ghost_grads"), _RESAMPLE),
    **dict.fromkeys(("model", "model_name", "model_id", "model_class_name", "arch", "vit", "encoder"), _MODEL),
    **dict.fromkeys(("layer", "layers", "hook_layer", "hook_point", "hook_name", "block", "hookpoints"), _LAYERS),
    **dict.fromkeys(("dataset", "dataset_path", "dataset_name", "data", "data_dir", "data_path"), _IMAGES),
    **dict.fromkeys(("image_dir", "image_folder", "image_path", "img_dir", "root", "path"), _IMAGES),
    **dict.fromkeys(("limit", "max_images", "n_images", "num_images", "max_samples", "n_samples"), _LIMIT),
    **dict.fromkeys(("out", "out_dir", "output", "output_dir", "save_dir", "save_path"), _OUT),
    **dict.fromkeys(("checkpoint_path", "checkpoint_dir", "log_dir", "run_name"), _OUT),
    **dict.fromkeys(("val_split", "test_size", "validation_split", "val_fraction", "held_out_fraction"), _HELD_OUT),
    **dict.fromkeys(("device", "gpu", "gpus", "accelerator", "cuda"), _DEVICE),
    **dict.fromkeys(("num_workers", "n_workers", "workers", "num_proc", "n_jobs"), _WORKERS),
    **dict.fromkeys(("normalize_activations", "normalize_input", "norm", "apply_b_dec_to_input"), _NORMALIZE),
    **dict.fromkeys(("log_to_wandb", "use_wandb", "wandb_project", "wandb_name"), _WANDB),
    **dict.fromkeys(("random_seed", "random_state", "manual_seed"), _SEED),
    **dict.fromkeys(("dtype", "torch_dtype", "autocast"), _DTYPE),
    **dict.fromkeys(("img_size", "resolution", "input_size"), _IMAGE_SIZE),
}
