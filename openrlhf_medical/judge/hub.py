"""Whether a model can be had: a folder, one downloaded before, or one that the Hugging Face hub gives us.

Asked before anything heavy starts: vLLM would tell of a missing licence after a minute and in a page of traceback.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from openrlhf_medical.errors import UserError
from openrlhf_medical.models import check_model_folder

_CONFIG = "config.json"


def check_access(model: str) -> None:
    """Raises UserError where ``model`` cannot be had, with what to do about it. May use the network."""
    check_model_folder(model)
    if Path(model).exists() or downloaded(model) is not None:
        return
    import huggingface_hub
    from huggingface_hub import errors

    try:
        huggingface_hub.hf_hub_download(model, _CONFIG, etag_timeout=10)
    except errors.GatedRepoError:
        raise UserError(how_to_unlock(model, has_token=has_token())) from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"the Hugging Face hub has no model {model}, or does not show it to us: correct --model; a "
                        "private one needs a token (`hf auth login`, or HF_TOKEN)") from None  # fmt: skip
    except errors.EntryNotFoundError as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise UserError(f"{model} is not on this machine and the Hugging Face hub cannot be reached: give a "
                            "folder with --model, or download it where there is a network") from None  # fmt: skip
        raise UserError(f"{model} has no {_CONFIG}: it is not a model that vLLM can load") from None
    except (errors.HfHubHTTPError, OSError) as error:
        raise UserError(f"the Hugging Face hub does not give {model} ({type(error).__name__}): try again, or give a "
                        "folder with --model") from None  # fmt: skip


def how_to_unlock(model: str, *, has_token: bool) -> str:
    """The one message on a gated model."""
    token = "" if has_token else "make a token at https://huggingface.co/settings/tokens and give it with " \
        "`hf auth login` or HF_TOKEN, "  # fmt: skip
    page = f"https://huggingface.co/{model}"
    whose = " with the account whose token this machine has" if has_token else ""
    return (
        f"{model} is gated: accept its licence at {page}{whose}, {token}then start again; "
        "or judge with another model (--model)"
    )


def has_token() -> bool:
    import huggingface_hub

    return huggingface_hub.get_token() is not None


def downloaded(model: str) -> Path | None:
    """The folder of a model of the hub on this machine, if it is there."""
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(model, _CONFIG)
    return Path(found).parent if isinstance(found, str) else None


def fingerprint(model: str) -> str:
    """What tells one state of the weights of ``model`` from another: the files of a folder, a commit of the hub."""
    folder = Path(model)
    if not folder.is_dir():
        found = downloaded(model)
        return found.name if found else ""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.blake2b(repr(stats).encode(), digest_size=8).hexdigest()
