"""``refine-pl export --push``: an exported folder to the hub, with a model card of the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from refine_pl.errors import ConfigError, DataError, UserError, deepest_reason
from refine_pl.training.record_files import read_record, read_yaml
from refine_pl.training.run_folder import CONFIG, SUMMARY, Summary

CARD = "README.md"
_LOGIN = "`hf auth login`, or a token with the right to write in $HF_TOKEN"


def check_before_export(name: str) -> None:
    """Refuse what can be known before anything is written: the name, the network, the token.

    Raises:
        ConfigError: naming what is missing, and the way out.
    """
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise _malformed(name, " ".join(str(error).split())) from error
    if name.count("/") != 1:
        raise _malformed(name, "it names no owner")
    if huggingface_hub.constants.is_offline_mode():
        raise ConfigError(
            "the hub cannot be reached: HF_HUB_OFFLINE is set",
            where="--push",
            way_out="unset HF_HUB_OFFLINE; or leave --push out, and upload the folder later: hf "
            f"upload {name} FOLDER",
        )
    if huggingface_hub.get_token() is None:
        raise ConfigError("you are not logged in to the hub", where="--push", way_out=_LOGIN)


def push(folder: str, name: str, private: bool) -> str:
    """Upload a folder; the address that it is at.

    Raises:
        UserError: the hub refuses, or cannot be reached; the folder stays.
    """
    from huggingface_hub import HfApi, errors

    api = HfApi()
    again = f"{folder} is whole; when that is mended: hf upload {name} {folder}"
    try:
        url = str(api.create_repo(name, private=private, exist_ok=True))
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="refine-pl export")
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        what = {
            401: f"the hub does not know your token: {_LOGIN}",
            403: f"your token may not write to {name}: {_LOGIN}; or another owner's name",
        }.get(status or 0, f"the hub refuses: {deepest_reason(error)}")
        raise UserError(what, where=f"--push {name}", way_out=again) from error
    except (OSError, errors.HTTPError) as error:
        raise UserError(
            f"the hub cannot be reached: {deepest_reason(error)}",
            where=f"--push {name}",
            way_out=again,
        ) from error
    return url


def write_card(folder: str, name: str, checkpoint: Mapping[str, Any], ckpt_path: str) -> None:
    """Write the model card of a run beside its weights; one that is there stays.

    Its text comes from the checkpoint, and from the run folder around it as far as it is there.
    The license is left to whoever publishes.
    """
    file = Path(folder) / CARD
    if file.exists():
        return
    own = checkpoint.get("refine_pl") or {}
    adapter = (own.get("adapter") or {}).get("base") or {}
    hparams = checkpoint.get("hyper_parameters") or {}
    base = str(adapter.get("path") or hparams.get("pretrained") or "")
    kind = str(own.get("backbone", {}).get("model_type"))
    meta: dict[str, Any] = {"tags": ["refine-pl", kind]}
    if base and not Path(base).exists() and base.count("/") == 1:
        meta["base_model"] = base
    meta["library_name"] = "peft" if adapter else "refine-pl"
    lines = [
        f"---\n{yaml.safe_dump(meta, sort_keys=False)}---\n\n# {name.partition('/')[2]}\n",
        "Trained with refine-pl: ReFINE (arXiv 2602.16704), next-sequence prediction for models "
        "with fast weights.\n",
        f"* iterations: {own.get('iteration', 0):,}, optimizer steps: {own.get('updates', 0):,}",
        f"* tokens read: {own.get('tokens_seen', 0):,}",
        *([f"* base: `{Path(base).name if Path(base).exists() else base}`"] if base else []),
        f"* license: {'that of the base, or ' if base else ''}to be filled in by the publisher\n",
        "## Loading\n",
        _loading(name, kind, base if adapter else None),
        *_of_run_folder(Path(ckpt_path)),
    ]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _loading(name: str, kind: str, base: str | None) -> str:
    if base is None:
        code = f'from refine_pl import load_pretrained\n\npolicy = load_pretrained("{name}")'
        return f"```python\n{code}\n```\n"
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    fla = "" if kind in CONFIG_MAPPING_NAMES else "import fla\n"
    return (
        f"```python\n{fla}from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("{base}")\n'
        f'model = PeftModel.from_pretrained(base, "{name}")\n```\n'
    )


def _of_run_folder(ckpt_path: Path) -> list[str]:
    """The last validation, and the settings of model and data, if the run folder is there."""
    folder = next((f for f in ckpt_path.resolve().parents if (f / CONFIG).is_file()), None)
    if folder is None:
        return []
    found: list[str] = []
    try:
        last = read_record(folder / SUMMARY, Summary).validations[-1:]
    except DataError:
        last = []
    for validation in last:
        found += [
            f"## Validation after {validation.iteration:,} iterations\n",
            "| | |",
            "|---|---|",
        ]
        found += [f"| {name} | {value:.4g} |" for name, value in sorted(validation.metrics.items())]
        found.append("")
    config = read_yaml(folder / CONFIG)
    kept = {key: config[key] for key in ("model", "data", "schedule", "phase") if config.get(key)}
    settings = yaml.safe_dump(kept, sort_keys=False)
    return [*found, "## Settings\n", f"```yaml\n{settings}```"]


def _malformed(name: str, why: str) -> ConfigError:
    return ConfigError(
        f"{name!r} is not the name of a repository: {why}",
        where="--push",
        allowed="OWNER/NAME: letters, digits, -, _ and .",
    )
