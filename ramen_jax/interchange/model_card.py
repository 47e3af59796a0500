"""The model card of an exported folder: what the weights are, how to run them, what they were trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

USAGE = """```python
from torch_ramen import Band, Sensor, load          # this folder's own file: torch and safetensors, nothing else

model = load("{folder}")
features = model({{"{modality}": pixels_BxTxCxHxW}}, target_gsd={gsd:g}, dates={{"{modality}": day_of_year_BxT}})
features.maps["{modality}"]                          # [B, {width}, rows, columns]
```

With ramen_jax: `rj.load("{folder}").encode(...)`, or
`python -m ramen_jax.embed --checkpoint {folder} --image scene.tif --sensor ... --target-gsd ... --output features.tif`.
"""


def render(
    description: Mapping[str, Any], parity: Mapping[str, Any], results: Mapping[str, Any] | None, folder: str
) -> str:
    """The card as Markdown with the front matter of the Hugging Face hub."""
    model, sensors = description["model"], description["sensors"]
    modality = next(iter(sensors), "s2")
    gsds = [gsd for values in description.get("target_gsds", {}).values() for gsd in values]
    lines = [
        "---",
        "license: mit",
        "library_name: pytorch",
        "pipeline_tag: feature-extraction",
        "tags: [earth-observation, remote-sensing, multimodal, masked-autoencoder]",
        "---",
        "",
        f"# {folder}",
        "",
        "A RAMEN encoder: one transformer for every sensor, whose output resolution is chosen at each call "
        "(Houdré et al., arXiv 2512.05025). Tensor names are those of the official PyTorch code.",
        "",
        USAGE.format(
            folder=folder,
            modality=modality,
            gsd=gsds[len(gsds) // 2] if gsds else 40,
            width=model["embed_dim"],
        ),
        "## Facts",
        "",
        "| | |",
        "|---|---|",
        f"| width, depth, heads | {model['embed_dim']}, {model['depth']}, {model['num_heads']} |",
        f"| recipe | {description.get('recipe', 'unknown')} |",
        f"| sampling, missing pixels | {description['sampling']}, {description['missing']} |",
        *(f"| training steps | {step} |" for step in [description.get("step")] if step is not None),
        *(f"| imported from | {name} |" for name in [description.get("imported_from")] if name),
        *(f"| data, {corpus} | `{mark}` |" for corpus, mark in description.get("fingerprints", {}).items()),
        *(
            f"| target GSDs, {corpus} | {', '.join(f'{gsd:g}' for gsd in values)} m |"
            for corpus, values in description.get("target_gsds", {}).items()
        ),
        f"| PyTorch against JAX | {parity['worst']:.1e}, worst of {len(parity['runs'])} (parity.json) |",
        *(
            f"| the official code runs these weights, but with its own behaviour | {', '.join(others)} |"
            for others in [parity.get("official_code_differs_in")]
            if others
        ),
        f"| written by | {description['written_by']} |",
        "",
        "## Sensors",
        "",
        "input = (stored * scale + offset - mean) / std, per band, in this order (config.json and sensors.yaml).",
        "",
    ]
    if sensors:
        lines += ["| sensor | GSD, m | units | bands |", "|---|---|---|---|"]
        lines += [
            f"| {name} | {entry['gsd']:g} | {entry.get('units') or '-'} | "
            f"{', '.join(f'{band} ({meaning})' for band, meaning in entry['bands'].items())} |"
            for name, entry in sensors.items()
        ]
    else:
        lines.append(
            "None came with these weights: describe yours with `Sensor(...)`, mean and std included."
        )
    if results:
        lines += ["", "## Results", "", "| task | result |", "|---|---|"]
        lines += [f"| {task} | {value} |" for task, value in results.items()]
    return "\n".join(lines) + "\n"
