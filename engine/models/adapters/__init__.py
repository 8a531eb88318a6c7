"""The Stage 2 adapter: located, read as untrusted files, checked tensor by tensor against the base model, then by its effect.

PEFT loads an adapter with half of its keys missing, with another model's keys, with NaN or with nothing but zeros, almost
silently. Each of these is refused here with its own reason.

    source            a local folder, or a commit on the Hub    folder            which files are read, and how
    settings          adapter_config.json                       header            names and shapes only
    trainable         what DPO can train                        weights           the numbers
    expected_tensors  the tensors for this base model           vocabulary        the tokenizer beside the adapter
    tensor_mismatch   why the tensors differ                    effect            logits with the adapter on and off
    summary           the lines on the screen
"""
