//! How passages of documents are found, and which documents.

use super::Validation;
use crate::{
    quantity,
    task::{
        kind::{TaskType, TaskTypeRow},
        problem::{At, Problem, nearest},
        raw::{RawDataset, RawRetrieval, RawSpec, Text},
        spec::{Retrieval, RetrievalMode},
    },
};

const TOP_K: u32 = 5;
/// A model reads no more than some of them with care.
const TOP_K_MAX: u32 = 100;
const CANDIDATES: u32 = 50;
/// A reranker reads each of them.
const CANDIDATES_MAX: u32 = 1_000;
const CHUNK_TOKENS: u32 = 256;
/// Longer than any embedder reads.
const CHUNK_TOKENS_MAX: u32 = 8_192;
const CHUNK_OVERLAP: u32 = 32;
/// A folder is listed and its files are looked at each time.
const WATCH_MIN_MS: u64 = 1_000;

impl Validation<'_> {
    pub(super) fn retrieval(&mut self, spec: &RawSpec, row: Option<&TaskTypeRow>) -> Option<Retrieval> {
        let row = row?;
        match (&spec.retrieval, row.task_type == TaskType::RagInference) {
            (Some(raw), true) => {
                if let Some(dataset) = &spec.dataset {
                    self.documents(dataset);
                }
                let retrieval = self.passages(raw);
                if let Some(watch) = &raw.watch {
                    self.watched(spec, watch.at, &watch.path);
                }
                retrieval
            }
            (Some(raw), false) => {
                let expected = format!("no retrieval with {}, which has no documents", row.name);
                let problem = Problem::new("spec.retrieval", raw.at, "the key `retrieval`", expected);
                self.problems.push(problem.hint(match row.task_type {
                    TaskType::Agent => "its tools find passages: one of `agent.tools` with `type: retrieve`",
                    _ => "write `taskType: rag_inference`",
                }));
                None
            }
            (None, true) if !spec.has("retrieval") => {
                let at = spec.at.unwrap_or(At::START);
                let expected = format!("a map with `embedder`, for {} answers from passages that it finds", row.name);
                self.problems.push(Problem::new("spec.retrieval", at, "nothing", expected));
                None
            }
            (None, _) => None,
        }
    }

    fn passages(&mut self, raw: &RawRetrieval) -> Option<Retrieval> {
        let embedder = raw.embedder.as_ref().and_then(|embedder| self.source(&embedder.source));
        let reranker = raw.reranker.as_ref().and_then(|reranker| self.source(&reranker.source));
        let mode = self.mode(&raw.mode);
        let top_k = self.count(&raw.top_k, 1, TOP_K_MAX.into()).unwrap_or(TOP_K);
        let candidates = self.count(&raw.candidates, 1, CANDIDATES_MAX.into());
        if let (Some(given), Some(fewer)) = (&raw.candidates, candidates.filter(|candidates| *candidates < top_k)) {
            let expected = format!("no fewer than `topK`, {top_k}");
            self.problems.push(Problem::new(&given.path, given.at, format!("`{fewer}`"), expected));
        }
        let chunk_tokens = self.count(&raw.chunk_tokens, 16, CHUNK_TOKENS_MAX.into()).unwrap_or(CHUNK_TOKENS);
        let chunk_overlap = self.count(&raw.chunk_overlap, 0, CHUNK_TOKENS_MAX.into());
        if let (Some(given), Some(more)) = (&raw.chunk_overlap, chunk_overlap.filter(|tokens| *tokens >= chunk_tokens))
        {
            let expected = format!("fewer than `chunkTokens`, {chunk_tokens}");
            let problem = Problem::new(&given.path, given.at, format!("`{more}`"), expected);
            self.problems
                .push(problem.hint("it is what a passage shares with the one before: an eighth of it is much"));
        }
        let score_floor = raw.score_floor.as_ref().map(|floor| {
            let expected = "a number from 0 to 1 with at most 3 digits after the point";
            self.fixed(floor, 1e3, 0.0..=1e3, expected)
        });
        let watch_ms = self.often(&raw.watch);
        Some(Retrieval {
            embedder: embedder?,
            reranker,
            mode,
            top_k,
            candidates: candidates.unwrap_or(CANDIDATES.max(top_k)),
            chunk_tokens,
            chunk_overlap: chunk_overlap.unwrap_or(CHUNK_OVERLAP.min(chunk_tokens / 8)),
            score_floor_milli: score_floor.and_then(|floor| u32::try_from(floor).ok()),
            watch_ms,
        })
    }

    fn mode(&mut self, text: &Text) -> RetrievalMode {
        let Some(text) = text else { return RetrievalMode::Hybrid };
        RetrievalMode::named(&text.value).unwrap_or_else(|| {
            let problem = text.problem(format!("one of {}", RetrievalMode::NAMES.join(", ")));
            let habit = match text.value.to_ascii_lowercase().as_str() {
                "vector" | "semantic" | "embedding" | "similarity" => Some("dense"),
                "sparse" | "keyword" | "lexical" | "fulltext" => Some("bm25"),
                "mixed" | "both" | "rrf" => Some("hybrid"),
                _ => None,
            };
            self.problems.push(match habit.or_else(|| nearest(&text.value, RetrievalMode::NAMES)) {
                Some(near) => problem.hint(format!("did you mean `{near}`?")),
                None => problem,
            });
            RetrievalMode::Hybrid
        })
    }

    fn often(&mut self, text: &Text) -> Option<u64> {
        let every = self.amount(text, quantity::duration_ms)?;
        if every < WATCH_MIN_MS
            && let Some(text) = text
        {
            let hint = "leave the key out to have the documents read once";
            self.problems.push(text.problem("a time of at least 1s").hint(hint));
        }
        Some(every)
    }

    /// Only what is used where it lies can be seen to change.
    fn watched(&mut self, spec: &RawSpec, at: At, path: &str) {
        match spec.dataset.as_ref().map(|dataset| &dataset.source) {
            None => self.note(path, at, "has no effect without `dataset.source`, the folder to look at"),
            Some(Some(source)) if source.kind.as_ref().is_some_and(|kind| kind.value != "local") => {
                self.note(path, at, "has no effect: documents that are not `local` are pulled once, as they are then");
            }
            Some(_) => {}
        }
    }

    /// Documents are read as they are: what is said of rows has no meaning for them.
    fn documents(&mut self, raw: &RawDataset) {
        let text = |text: &Text| text.as_ref().map(|text| (text.path.clone(), text.at));
        let rows = [
            raw.eval.as_ref().map(|eval| ("spec.dataset.eval".to_owned(), eval.at)),
            raw.test_size.as_ref().map(|size| (size.path.clone(), size.at)),
            text(&raw.prompt_template),
            text(&raw.chat_template),
            raw.columns.first().map(|(name, _)| ("spec.dataset.preprocessing.columns".to_owned(), name.at)),
            raw.max_seq_length.as_ref().map(|length| (length.path.clone(), length.at)),
        ];
        for (path, at) in rows.into_iter().flatten() {
            let key = path.rsplit('.').next().unwrap_or(&path).to_owned();
            let expected = "only a `source` with rag_inference, whose data are documents and no rows";
            let problem = Problem::new(path, at, format!("the key `{key}`"), expected);
            self.problems.push(problem.hint(match key.as_str() {
                "max_seq_length" => {
                    "`retrieval.chunkTokens` bounds a passage, `hyperparameters.max_model_len` the prompt"
                }
                "chat_template" => "a served model has `hyperparameters.chat_template`",
                _ => "leave the key out: documents are read whole and cut as `retrieval.chunkTokens` says",
            }));
        }
    }
}
