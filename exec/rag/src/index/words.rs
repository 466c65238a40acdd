//! BM25 over words, by tantivy. It holds no truth: each commit says up to which version of the store it has come, and what
//! it lacks, or all of it, is written again from there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Mutex,
};

use tantivy::{
    Index, IndexReader, IndexWriter, ReloadPolicy, TantivyDocument, Term,
    collector::{FilterCollector, TopDocs},
    query::{Bm25StatisticsProvider, BooleanQuery, Occur, Query, TermQuery},
    schema::{FAST, Field, INDEXED, IndexRecordOption, Schema, TextFieldIndexing, TextOptions},
    tokenizer::{Language, LowerCaser, RemoveLongFilter, Stemmer, TextAnalyzer, Token, TokenStream, Tokenizer},
};

use super::statistics::Statistics;

/// Bytes of postings in memory before they are written; the least that tantivy takes.
const BUFFER_BYTES: usize = 16 << 20;
/// Words of a query: who pastes a book asks with its beginning.
const QUERY_WORDS: usize = 256;
/// Bytes of a word: longer ones are data.
const WORD_BYTES: usize = 64;
/// The tokenizer's name in the schema.
const TOKENIZER: &str = "mloc";

/// The arm.
pub struct Words {
    index: Index,
    writer: Mutex<IndexWriter>,
    reader: IndexReader,
    fields: Fields,
    analyzer: TextAnalyzer,
}

#[derive(Clone, Copy)]
struct Fields {
    document: Field,
    chunk: Field,
    words: Field,
}

/// A chunk as this arm sees it.
pub struct Posting {
    /// Its document's key.
    pub document: u64,
    /// Its own.
    pub chunk: u64,
    /// What is searched.
    pub text: String,
}

impl Words {
    /// Opens a folder, or begins anew in it where what is there can't be read.
    ///
    /// # Errors
    /// The disk's, or when another process has it.
    pub fn open(folder: &Path, language: Option<Language>) -> tantivy::Result<Self> {
        match Self::open_as_is(folder, language) {
            Err(error) if !matches!(error, tantivy::TantivyError::LockFailure(..)) => {
                tracing::warn!(folder = %folder.display(), %error, "the index of words is written anew");
                match fs::remove_dir_all(folder) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
                    _ => Self::open_as_is(folder, language),
                }
            }
            opened => opened,
        }
    }

    fn open_as_is(folder: &Path, language: Option<Language>) -> tantivy::Result<Self> {
        fs::create_dir_all(folder)?;
        let mut schema = Schema::builder();
        let document = schema.add_u64_field("document", INDEXED);
        let chunk = schema.add_u64_field("chunk", FAST);
        let indexing =
            TextFieldIndexing::default().set_tokenizer(TOKENIZER).set_index_option(IndexRecordOption::WithFreqs);
        let words = schema.add_text_field("words", TextOptions::default().set_indexing_options(indexing));
        let directory = tantivy::directory::MmapDirectory::open(folder)?;
        let index = Index::open_or_create(directory, schema.build())?;
        let analyzer = analyzer(language);
        index.tokenizers().register(TOKENIZER, analyzer.clone());
        let writer = index.writer_with_num_threads(1, BUFFER_BYTES)?;
        let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into()?;
        Ok(Self { index, writer: Mutex::new(writer), reader, fields: Fields { document, chunk, words }, analyzer })
    }

    /// Up to which version of the store it has come; `None` = it doesn't say.
    ///
    /// # Errors
    /// The disk's.
    pub fn version(&self) -> tantivy::Result<Option<u64>> {
        Ok(self.index.load_metas()?.payload.and_then(|payload| payload.parse().ok()))
    }

    /// Takes documents out, puts chunks in and says that it has come to a version. `whole`: nothing of before stays.
    ///
    /// # Errors
    /// The disk's; then it is as it was.
    pub fn apply(
        &self,
        whole: bool,
        gone: &[u64],
        added: impl Iterator<Item = tantivy::Result<Posting>>,
        version: u64,
    ) -> tantivy::Result<()> {
        let mut writer = self.writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let done = self.write(&mut writer, whole, gone, added, version);
        if done.is_err() {
            writer.rollback()?;
        }
        done?;
        drop(writer);
        self.reader.reload()
    }

    fn write(
        &self,
        writer: &mut IndexWriter,
        whole: bool,
        gone: &[u64],
        added: impl Iterator<Item = tantivy::Result<Posting>>,
        version: u64,
    ) -> tantivy::Result<()> {
        if whole {
            writer.delete_all_documents()?;
        }
        for key in gone {
            writer.delete_term(Term::from_field_u64(self.fields.document, *key));
        }
        for posting in added {
            let Posting { document, chunk, text } = posting?;
            let mut row = TantivyDocument::default();
            row.add_u64(self.fields.document, document);
            row.add_u64(self.fields.chunk, chunk);
            row.add_text(self.fields.words, text);
            writer.add_document(row)?;
        }
        let mut commit = writer.prepare_commit()?;
        commit.set_payload(&version.to_string());
        commit.commit()?;
        Ok(())
    }

    fn words_of(&self, text: &str) -> BTreeSet<String> {
        let mut analyzer = self.analyzer.clone();
        let mut words = BTreeSet::new();
        let mut stream = analyzer.token_stream(text);
        while words.len() < QUERY_WORDS && stream.advance() {
            words.insert(stream.token().text.clone());
        }
        words
    }

    /// What BM25 counts here for the words of a question.
    ///
    /// # Errors
    /// The disk's.
    pub fn statistics(&self, text: &str) -> tantivy::Result<Statistics> {
        let searcher = self.reader.searcher();
        let mut words = BTreeMap::new();
        for word in self.words_of(text) {
            let chunks = searcher.doc_freq(&Term::from_field_text(self.fields.words, &word))?;
            words.insert(word, chunks);
        }
        let (chunks, tokens) = (searcher.total_num_docs()?, searcher.total_num_tokens(self.fields.words)?);
        Ok(Statistics { chunks, tokens, words })
    }

    /// The `count` best chunks of those that are accepted, best first, with their BM25: by these statistics, or by this
    /// index's own.
    ///
    /// # Errors
    /// The disk's.
    pub fn search(
        &self,
        text: &str,
        count: usize,
        statistics: Option<&Statistics>,
        accepted: impl Fn(u64) -> bool + Send + Sync + 'static,
    ) -> tantivy::Result<Vec<(u64, f32)>> {
        let words = self.words_of(text);
        if words.is_empty() || count == 0 {
            return Ok(Vec::new());
        }
        let query = words.into_iter().map(|word| {
            let term = Term::from_field_text(self.fields.words, &word);
            (Occur::Should, Box::new(TermQuery::new(term, IndexRecordOption::WithFreqs)) as Box<dyn Query>)
        });
        let query = BooleanQuery::new(query.collect());
        let accepted = std::sync::Arc::new(accepted);
        let accepted = move |chunk| accepted(chunk);
        let top = TopDocs::with_limit(count).order_by_score();
        let searcher = self.reader.searcher();
        let collector = FilterCollector::new("chunk".to_owned(), accepted, top);
        let counted: &dyn Bm25StatisticsProvider = match statistics {
            Some(statistics) => statistics,
            None => &searcher,
        };
        let found = searcher.search_with_statistics_provider(&query, &collector, counted)?;
        let mut hits = Vec::with_capacity(found.len());
        for (score, place) in found {
            let column = searcher.segment_reader(place.segment_ord).fast_fields().u64("chunk")?;
            hits.extend(column.first(place.doc_id).map(|chunk| (chunk, score)));
        }
        Ok(hits)
    }
}

fn analyzer(language: Option<Language>) -> TextAnalyzer {
    let words = TextAnalyzer::builder(Split).filter(RemoveLongFilter::limit(WORD_BYTES)).filter(LowerCaser);
    match language {
        Some(language) => words.filter(Stemmer::new(language)).build(),
        None => words.build(),
    }
}

/// Letters and digits in a row are a word. Chinese and Japanese put no space between words: each two neighbours are one.
#[derive(Clone)]
struct Split;

struct Stream {
    words: std::vec::IntoIter<Token>,
    token: Token,
}

impl Tokenizer for Split {
    type TokenStream<'a> = Stream;

    fn token_stream<'a>(&'a mut self, text: &'a str) -> Stream {
        let mut words = Vec::new();
        for (start, end, pairs) in runs(text) {
            let mut tell = |start: usize, end: usize| {
                let (position, text) = (words.len(), text[start..end].to_owned());
                words.push(Token { offset_from: start, offset_to: end, position, text, position_length: 1 });
            };
            let starts: Vec<usize> = text[start..end].char_indices().map(|(at, _)| start + at).chain([end]).collect();
            if pairs && starts.len() > 2 {
                starts.windows(3).for_each(|places| tell(places[0], places[2]));
            } else {
                tell(start, end);
            }
        }
        Stream { words: words.into_iter(), token: Token::default() }
    }
}

/// From where to where a row of the same sort goes, and whether its sort puts no spaces.
fn runs(text: &str) -> Vec<(usize, usize, bool)> {
    let spaceless = |c: char| matches!(u32::from(c), 0x3040..=0x30ff | 0x3400..=0x4dbf | 0x4e00..=0x9fff | 0xf900..=0xfaff | 0x20000..=0x3ffff);
    let mut runs: Vec<(usize, usize, bool)> = Vec::new();
    for (at, c) in text.char_indices().filter(|(_, c)| c.is_alphanumeric()) {
        let (end, sort) = (at + c.len_utf8(), spaceless(c));
        match runs.last_mut().filter(|run| run.1 == at && run.2 == sort) {
            Some(run) => run.1 = end,
            None => runs.push((at, end, sort)),
        }
    }
    runs
}

impl TokenStream for Stream {
    fn advance(&mut self) -> bool {
        match self.words.next() {
            Some(word) => {
                self.token = word;
                true
            }
            None => false,
        }
    }

    fn token(&self) -> &Token {
        &self.token
    }

    fn token_mut(&mut self) -> &mut Token {
        &mut self.token
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_any_script_are_found() {
        let words = |text: &str, language| {
            let mut analyzer = analyzer(language);
            let mut stream = analyzer.token_stream(text);
            let mut words = Vec::new();
            stream.process(&mut |token: &Token| words.push(token.text.clone()));
            words.join(" ")
        };
        assert_eq!(words("Nodes' NODES, x86_64!", None), "nodes nodes x86 64");
        assert_eq!(words("nodes were failing", Some(Language::English)), "node were fail");
        assert_eq!(words("什么是心跳 ok 心", None), "什么 么是 是心 心跳 ok 心");
    }
}
