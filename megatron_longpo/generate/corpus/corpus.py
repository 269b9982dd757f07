"""The documents of a run as long contexts, in order: what `run` and `estimate` draw from."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_longpo.data.tokenise import codec_of
from megatron_longpo.data.tokenizer import chat_template_of
from megatron_longpo.errors import UserError
from megatron_longpo.generate.corpus.contexts import ContextShape, LongContext, long_contexts
from megatron_longpo.generate.corpus.document_groups import SAMPLE_CHARACTERS, Short, Unit, units
from megatron_longpo.generate.corpus.documents import Counts, Document, find_sources, read_documents
from megatron_longpo.generate.corpus.domains import Domain
from megatron_longpo.generate.corpus.given_questions import GivenQuestions, by_chunk
from megatron_longpo.generate.corpus.sentences import Sentences, corpus_sample
from megatron_longpo.generate.corpus.token_count import TokenCounter
from megatron_longpo.generate.journal import Position, Shard
from megatron_longpo.generate.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusOptions:
    """Where the documents are and how they are read."""

    paths: tuple[str, ...]
    """Files, folders, globs."""
    text_field: str = "text"
    domain: Domain | None = None
    """Domain of all documents; None: it is found out for each."""
    short: Short = "join"
    max_duplicate: float = 0.5
    max_contexts: int | None = None
    """Limit for a shard, for a trial."""
    questions: Path | None = None
    """File of given questions (given_questions.py); None: the model writes them."""


class Corpus:
    """Documents found, none read yet."""

    def __init__(self, options: CorpusOptions, settings: Settings, tokenizer: "PreTrainedTokenizerFast") -> None:
        """Find the files.

        Raises:
            UserError: see `documents.find_sources` and `contexts.ContextShape.check`.
        """
        if not 0 <= options.max_duplicate <= 1:
            raise UserError(f"--max-duplicate {options.max_duplicate}: needs 0 to 1")
        if options.max_contexts is not None and options.max_contexts < 1:
            raise UserError(f"--max-contexts {options.max_contexts}: needs at least 1")
        self.options, self.settings = options, settings
        self._found = Counts()
        self._sources = find_sources(options.paths, self._found)
        self.count = TokenCounter(tokenizer.backend_tokenizer)
        self.control_token = codec_of(tokenizer, chat_template_of(tokenizer)).control_token
        """Matches the tokenizer's control tokens."""
        self._shape = ContextShape(
            num_chunks=settings.num_chunks,
            min_tokens=settings.min_chunk_tokens,
            max_tokens=settings.max_chunk_tokens,
            context_tokens=settings.context_tokens,
        )
        self._shape.check()
        self._questions = GivenQuestions(options.questions) if options.questions else None

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the contexts beside the settings, for the journal: no path of a machine."""
        options = asdict(self.options)
        del options["paths"], options["max_contexts"]
        options["questions"] = self._questions and self._questions.sha256
        sizes = {source.name: source.path.stat().st_size for source in self._sources}
        return {**options, "files": sizes}

    def contexts(
        self, shard: Shard, counts: Counts, at_most: int | None = None
    ) -> Iterator[tuple[Position, LongContext]]:
        """Yield this shard's contexts, and count what becomes of the documents.

        Args:
            at_most: stop after so many; None: after ``max_contexts``.

        Raises:
            UserError: a document cannot be read; with file and line.
        """
        sentences = Sentences(self._sample)
        contexts = (
            (Position(unit.index, part), self._with_questions(context, unit, counts))
            for unit in self._units(shard, counts)
            for part, context in enumerate(
                long_contexts(unit, self._shape, count=self.count, sentences=sentences, counts=counts)
            )
        )
        limits = [limit for limit in (at_most, self.options.max_contexts) if limit is not None]
        return islice(contexts, min(limits, default=None))

    def expected_contexts(self, shard: Shard) -> int:
        """About how many contexts a shard has, from the characters of its units alone."""
        shape, num_contexts, ratio = self._shape, 0, 0.0
        for unit in self._units(shard, Counts()):
            if not ratio:
                sample = unit.text[:SAMPLE_CHARACTERS]
                ratio = self.count(sample) / len(sample)
            whole, left = divmod(len(unit.text) * ratio, shape.num_chunks * shape.max_tokens)
            num_contexts += int(whole) + (left >= shape.num_chunks * shape.min_tokens)
        return min(num_contexts, self.options.max_contexts or num_contexts)

    def _with_questions(self, context: LongContext, unit: Unit, counts: Counts) -> LongContext:
        if self._questions is None:
            return context
        chunks = [context.chunk_text(number) for number in range(len(context.chunks))]
        questions = by_chunk(self._questions.about(unit.documents), chunks)
        counts.questions += sum(map(len, questions))
        return replace(context, questions=questions)

    def _units(self, shard: Shard, counts: Counts) -> Iterator[Unit]:
        counts.ignored_files = self._found.ignored_files
        return units(
            self._documents(counts),
            min_tokens=self.settings.min_length,
            short=self.options.short,
            shard=(shard.number - 1, shard.of),
            count_tokens=self.count,
            counts=counts,
            max_duplicate=self.options.max_duplicate,
        )

    def _documents(self, counts: Counts) -> Iterator[Document]:
        options = self.options
        return read_documents(self._sources, text_field=options.text_field, domain=options.domain, counts=counts)

    def _sample(self) -> str:
        """A text from the corpus's beginning, the same in every shard."""
        return corpus_sample(document.text for document in self._documents(Counts()))
