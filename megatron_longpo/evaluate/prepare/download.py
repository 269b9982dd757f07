"""Files from the Hugging Face Hub and from NLTK's server, whole or with one line that says why not."""

import hashlib
import io
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from megatron_longpo.errors import UserError, import_optional, one_line


def from_hub(repo: str, revision: str, patterns: Sequence[str], folder: Path, say: Callable[[str], None]) -> None:
    """Bring files of a dataset repository into a folder; those that are there and whole are not brought again.

    Args:
        repo: like ``cais/mmlu``.
        revision: a commit.
        patterns: which files, as shell patterns.
        folder: gets them under their paths in the repository.
        say: is told how many there are.

    Raises:
        UserError: the Hub cannot be reached, has no such repository, commit or files, or broke off.
    """
    # Imported here: it takes a second that --help should not.
    from huggingface_hub import HfApi, RepoFile
    from huggingface_hub.utils import filter_repo_objects, logging

    logging.set_verbosity_error()  # it retries, and warns of each time
    api: Any = HfApi()
    try:
        # Asked first: without network, snapshot_download itself takes what lies in the folder for the whole.
        tree = api.list_repo_tree(repo, recursive=True, revision=revision, repo_type="dataset")
        files = list(
            filter_repo_objects(
                (entry for entry in tree if isinstance(entry, RepoFile)),
                allow_patterns=list(patterns),
                key=lambda file: file.path,
            )
        )
        say(f"{len(files):,} files, {sum(file.size for file in files) / 1e6:,.1f} MB of {repo}@{revision}")
        api.snapshot_download(
            repo, revision=revision, repo_type="dataset", allow_patterns=list(patterns), local_dir=folder
        )
    except Exception as error:  # a dozen classes of three libraries
        raise UserError(f"{repo}@{revision} cannot be had: {one_line(error)}") from error
    if not files:
        raise UserError(f"{repo}@{revision} has none of {', '.join(patterns)}; give another --revision")
    for file in files:
        path = folder / file.path
        if not path.is_file() or path.stat().st_size != file.size:
            raise UserError(f"{repo}@{revision}: {file.path} did not arrive whole; run again to go on")


def from_nltk(package: str, sha256: str, folder: Path, say: Callable[[str], None]) -> None:
    """Bring a package of NLTK's data, archive and what is in it, into a folder as into one of nltk.data.path.

    Args:
        package: a tokenizer's, like ``punkt_tab``.
        sha256: of its archive, in hexadecimal digits.
        folder: gets ``tokenizers/PACKAGE`` and ``tokenizers/PACKAGE.zip``.
        say: is told what is brought.

    Raises:
        UserError: the server cannot be reached, or has the package with another digest.
    """
    downloader = import_optional("nltk.downloader", f"{package} is brought by NLTK", extra="evaluate")
    say(f"{package} of NLTK's data, by its own downloader")
    try:
        downloader.Downloader().download(
            package, download_dir=str(folder), quiet=True, raise_on_error=True, print_error_to=io.StringIO()
        )
    except (ValueError, OSError) as error:
        raise UserError(f"{package} cannot be had from NLTK's server: {one_line(error)}") from error
    archive = folder / "tokenizers" / f"{package}.zip"
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        shutil.rmtree(folder)
        raise UserError(
            f"NLTK's server has another {package}.zip: of sha256 {found}, pinned is {sha256}; if that is to be taken, "
            f"add --revision {package}={found}"
        )
