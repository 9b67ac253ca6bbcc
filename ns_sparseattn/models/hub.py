# SPDX-License-Identifier: Apache-2.0
"""Downloads from the Hugging Face hub, with errors that say what to do."""

from __future__ import annotations

from pathlib import Path

# Names under which repositories keep the weights of one model, most wanted first.
_COMMON_NAMES = ("model.safetensors", "model.pt", "pytorch_model.bin")


def fetch_weights(repo_id: str, filename: str | None = None, cache_dir: Path | None = None) -> Path:
    """Return a weights file of a repository, downloaded if the local cache lacks it.

    Downloads show a progress bar and go on where they stopped. With ``HF_HUB_OFFLINE=1``, or
    without a network, only the cache is used.

    Args:
        repo_id: Repository, ``owner/name``.
        filename: File in it; ``None`` tries the usual names.
        cache_dir: Cache to use instead of the hub's own.

    Returns:
        Path in the cache.

    Raises:
        ValueError: If the file cannot be had; the message says how to get it.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    candidates = _COMMON_NAMES if filename is None else (filename,)
    page = f"https://huggingface.co/{repo_id}"
    unreachable: Exception | None = None
    for name in candidates:
        try:
            return Path(hf_hub_download(repo_id, name, cache_dir=cache_dir))
        except LocalEntryNotFoundError as error:
            # Not in the cache and the hub is out of reach; another name may be in the cache.
            unreachable = error
        except EntryNotFoundError:
            continue
        except GatedRepoError as error:
            raise ValueError(
                f"The weights {repo_id} are gated: accept their licence at {page} and log in with "
                "`hf auth login`."
            ) from error
        except RepositoryNotFoundError as error:
            raise ValueError(
                f"There is no repository {repo_id} on the Hugging Face hub, or it is private; "
                "`hf auth login` gives access to your own."
            ) from error
        except (HfHubHTTPError, OSError) as error:
            raise ValueError(f"The download of {repo_id}/{name} failed: {error}") from error
    if unreachable is not None:
        raise ValueError(
            f"The weights {repo_id} are not in the local cache and the hub cannot be reached: on "
            f"a machine with a network run `hf download {repo_id} {candidates[0]}`, or get the "
            f"file from {page}, and give its path as the weights."
        ) from unreachable
    raise ValueError(
        f"{repo_id} holds none of {', '.join(candidates)}; download a file and give its path."
    )


def cached_weights(repo_id: str, filename: str, cache_dir: Path | None = None) -> Path | None:
    """Return a weights file of a repository that is on this machine, without asking the hub.

    Args:
        repo_id: Repository, ``owner/name``.
        filename: File in it.
        cache_dir: Cache to look in instead of the hub's own.

    Returns:
        Path in the cache, or ``None`` if the file was not downloaded, or not completely.
    """
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo_id, filename, cache_dir=cache_dir)
    return Path(found) if isinstance(found, str) else None
