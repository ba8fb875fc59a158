"""The model card: what a saved encoder is, in words."""

from __future__ import annotations

from typing import Any

from workbench.export.onnx_graph import ONNX
from workbench.export.saved import CLASSIFIER, ENCODER, SETTINGS, Origin
from workbench.export.source import Source


def model_card(source: Source, onnx: str | None = None) -> str:
    """Markdown. `onnx` is what the numerical check of the ONNX file found; None: there is none."""
    parts = [_opening(source), _use(source), _model(source), _training(source.settings.origin)]
    parts += [_metrics(source.settings.origin), _files(source, onnx), _LICENCE]
    return "\n\n".join(parts) + "\n"


def _opening(source: Source) -> str:
    settings, origin, latent_ms = source.settings, source.settings.origin, _latent_ms(source)
    how = "pre-trained" if origin.stage == "pretrain" else "fine-tuned"
    return f"""# A {how} audio encoder
Sound at {settings.sample_rate} Hz in, a vector of {settings.model.width} numbers each {latent_ms:g} ms out.
Exported by workbench from the stage `{origin.stage}/{origin.id}`, finished {origin.finished}.

**This is no result of the paper** that workbench follows (*Conformer-based self-supervised learning for
non-speech audio tasks*, ICASSP 2022), and its figures do not stand for the paper's. What it was trained on,
and for how long, is below; how it does on other audio is not known."""


_USE = """## Use
With workbench installed (torch, torchaudio and safetensors are what this needs of it):

```python
from workbench.export import load_encoder

encoder = load_encoder("FOLDER")
context = encoder.context(encoder.latents(encoder.front_end(waveform)))
```

`waveform` (B, S) is mono at {rate} Hz, float in [-1, 1] or int16; `context` is (B, T, {width}) with
T = S // {samples}.
`workbench.hear` has the interface of HEAR 2021 over this folder."""

_USE_CLASSIFIER = """

`load_classifier` of the same module gives the classifier: `logits = classifier(context)`, (B, {num}), for a
{function}. {names}"""


def _use(source: Source) -> str:
    settings = source.settings
    samples = settings.front_end.hop_samples * settings.model.frames_per_latent
    text = _USE.format(rate=settings.sample_rate, width=settings.model.width, samples=samples)
    if settings.classifier is None:
        return text
    named = settings.classifier.classes is not None
    return text + _USE_CLASSIFIER.format(
        num=settings.classifier.num_classes,
        function="softmax" if settings.classifier.single_label else "sigmoid each",
        names=f"`{SETTINGS}` names the classes." if named else "The stage did not keep the classes' names.",
    )


def _model(source: Source) -> str:
    front_end, model = source.settings.front_end, source.settings.model
    return _section(
        "Model",
        {
            "front end": f"log-mel, {front_end.num_mels} bands, windows of {front_end.window_ms:g} ms each "
            f"{front_end.hop_ms:g} ms, standardised band by band",
            "latents": f"linear, {model.frames_per_latent} frames to {model.latent_dim} dimensions, each "
            f"{_latent_ms(source):g} ms",
            "context": f"{model.num_blocks} conformer blocks of {model.width} dimensions, {model.num_heads} "
            f"heads, feed-forward {model.ffn_dim}, kernels {model.first_kernel} (first block) and "
            f"{model.kernel}, no positional encoding",
            "parameters": f"{source.encoder.num_parameters():,}"
            + (f", and {_num_head(source):,} of the classifier" if source.classifier else ""),
        },
    )


def _training(origin: Origin) -> str:
    rows = {}
    if origin.data is not None:
        rows["data"] = f"`{origin.data['kind']}`, fingerprint `{origin.data_fingerprint}`"
    if origin.pool is not None:
        rows["audio of the pre-training"] = f"a pool of its own, fingerprint `{origin.pool_fingerprint}`"
    rows["pre-training"] = _pretraining(origin)
    if origin.finetuning is not None:
        clips = f"{origin.labelled_clips:,} labelled clips" if origin.labelled_clips else "labelled clips"
        frozen = ", encoder frozen" if origin.finetuning["freeze_encoder"] else ""
        rows["fine-tuning"] = f"{_updates(origin.finetuning)} of {clips}{frozen}"
    rows |= {"seed": str(origin.seed), "precision asked for": origin.precision}
    return _section("Training", rows) + f"\n\nAll settings are in `{SETTINGS}`."


def _pretraining(origin: Origin) -> str:
    if origin.stage == "finetune" and origin.parent is None:
        return "none; from random weights"
    audio = "audio of unknown length" if origin.pool_hours is None else f"{origin.pool_hours:.2f} h of audio"
    if origin.pretraining is None:
        return f"stage `{origin.parent}` on {audio}; it was deleted, and its settings with it"
    return f"`{origin.pretraining['objective']['kind']}`, {_updates(origin.pretraining)}, on {audio}"


def _updates(settings: dict[str, Any]) -> str:
    return f"{settings['steps']:,} updates, batches of {settings['batch_size']}"


def _metrics(origin: Origin) -> str:
    if not origin.metrics:
        return "## Metrics\nThe stage has none."
    rows = {name: f"{value:.4g}" for name, value in sorted(origin.metrics.items())}
    note = "On the splits of the data above; `pretrain/` are of the last training batches."
    return _section("Metrics", rows) + f"\n\n{note}"


def _files(source: Source, onnx: str | None) -> str:
    rows = {
        ENCODER: "weights, and the statistics of the front end and of the batch norms",
        SETTINGS: "front end, model, and where the weights come from",
    }
    if source.classifier is not None:
        rows[CLASSIFIER] = "weights of the classifier"
    if onnx is not None:
        rows[ONNX] = f"`waveform` (B, S) float32 -> `context` (B, T, D), front end included; {onnx}"
    return _section("Files", {f"`{name}`": text for name, text in rows.items()})


_LICENCE = """## Licence
Unknown. What may be done with these weights depends on the audio that they were trained on, of which
workbench does not know the licence; whoever passes them on should say it here."""


def _section(title: str, rows: dict[str, str]) -> str:
    lines = [f"| {name} | {text.replace('|', chr(92) + '|')} |" for name, text in rows.items()]
    return "\n".join([f"## {title}", "| | |", "| --- | --- |", *lines])


def _latent_ms(source: Source) -> float:
    return source.settings.front_end.hop_ms * source.settings.model.frames_per_latent


def _num_head(source: Source) -> int:
    assert source.classifier is not None
    return sum(parameter.numel() for parameter in source.classifier.parameters())
