//! Answers from documents: files to text, text to chunks, chunks into a persistent index of two arms, and answers that cite
//! the document, page and characters they rest on.
//!
//! ```text
//! seams      what models do for it: Embedder, Tokens, Reranker
//!
//! parse      a file's bytes to text with blocks; parse::child: the same in a process with limits
//! chunk      text to chunks by tokens, each a span of the text
//! index      the folder on disk: redb is the truth, tantivy and the graph follow; filter, both arms, fusion
//! answer     hits to what a chat model is told, and its answer to citations
//!
//! service    one service: accept, ingest, retrieve, follow a folder, keep files for other shards
//! watch      a folder's changes      shard  who holds a document, one order out of several
//! measure    recall and reciprocal rank over questions with known answers
//!
//! http       the async shell: routes, streams, other shards, the one who indexes, the one who compares copies
//! span       a stretch of a text
//! ```
//!
//! A span is exact: the text that a citation shows is the document's text from its start to its end, and the document is
//! named with the hash of the file it was read from.
//!
//! Deliberately absent: tensors, which are behind [`seams`]; the chat model, which is behind [`http::Chat`]; the network
//! between shards, which is behind [`http::Peers`]; accounts; OCR; the task that a node runs, which is a module's.

pub mod answer;
pub mod chunk;
pub mod http;
pub mod index;
pub mod measure;
pub mod parse;
pub mod seams;
pub mod service;
pub mod shard;
pub mod span;
pub mod watch;
