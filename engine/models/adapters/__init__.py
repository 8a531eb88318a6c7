"""The Stage 2 adapter: found, read as a stranger's files, checked tensor by tensor against the base, then by its effect.

PEFT loads an adapter with half of its keys missing, with keys of another model, with NaN or with nothing but zeros, and
says little or nothing; each of these is refused here, with its own reason.

    source      a folder here or on the Hub      files       what of a folder is read, and how
    settings    adapter_config.json              header      names and shapes, without the numbers
    trainable   what DPO can train               weights     the numbers, read once
    fit         what the base asks for           vocabulary  the tokenizer beside it
    misfit      why it is not that               effect      on and off
    card        the lines that a screen draws
"""
