//! Real documents in five formats, questions whose answers' places are known, and both arms and their fusion measured on
//! them. [`measure_all`] takes any embedder: who has a real model measures it so, with
//! `#[path = "../../rag/tests/support/mod.rs"] mod support;`.

use std::{collections::BTreeMap, fs, path::PathBuf, sync::Arc};

use mloc_rag::{
    index::{Arms, Index, Settings as IndexSettings},
    measure::{Measured, Question, measured},
    parse::Source,
    seams::{Embedder, Tokens},
    service::{Ask, Models, Parser, Service, Settings, Upload},
    shard::{Sharding, merge, shard_of},
    span::Span,
};
use serde_json::Value;

use super::{Hashed, WordTokens, docx, escaped, ingest_all, pdf};

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

/// A page's paragraphs: level of its heading or 0, and words.
fn paragraphs(markdown: &str) -> Vec<(u8, String)> {
    let mut made = Vec::new();
    for paragraph in markdown.split("\n\n") {
        let level = paragraph.bytes().take_while(|byte| *byte == b'#').count();
        made.push((level as u8, paragraph.trim_start_matches('#').trim().replace('\n', " ")));
    }
    made
}

fn as_html(markdown: &str) -> Vec<u8> {
    let body: String = paragraphs(markdown)
        .into_iter()
        .map(|(level, words)| match level {
            0 => format!("<p>{}</p>\n", escaped(&words)),
            level => format!("<h{level}>{}</h{level}>\n", escaped(&words)),
        })
        .collect();
    format!("<!doctype html><html><body>{body}</body></html>").into_bytes()
}

/// Lines of at most 95 chars, 52 a page, in the only letters the font has.
fn as_pdf(markdown: &str) -> Vec<u8> {
    let mut lines = Vec::new();
    for (level, words) in paragraphs(markdown) {
        let words: String = words.chars().map(|c| if c.is_ascii() { c } else { '.' }).collect();
        let mut line = String::new();
        for word in words.split(' ') {
            if line.len() + word.len() > 95 {
                lines.push((if level > 0 { 14.0 } else { 10.0 }, std::mem::take(&mut line)));
            }
            line.push_str(if line.is_empty() { "" } else { " " });
            line.push_str(word);
        }
        lines.push((if level > 0 { 14.0 } else { 10.0 }, line));
        lines.push((10.0, String::new()));
    }
    pdf(&lines.chunks(52).map(<[_]>::to_vec).collect::<Vec<_>>())
}

/// The pages, in as many formats as there are.
pub fn pages() -> Vec<Upload> {
    let page = |id: &str, name: &str, make: &dyn Fn(&str) -> Vec<u8>| {
        let text = fs::read_to_string(fixtures().join("rag").join(format!("{id}.md"))).unwrap();
        let source = Source { name: name.into(), ..Source::default() };
        Upload { id: Some(id.into()), source, bytes: make(&text), ..Upload::default() }
    };
    let as_is = |text: &str| text.as_bytes().to_vec();
    vec![
        page("command", "command.md", &as_is),
        page("mloc", "mloc.txt", &as_is),
        page("rewards", "rewards.docx", &|text| docx(&paragraphs(text))),
        page("quickstart", "quickstart.html", &as_html),
        page("deployment", "deployment.pdf", &as_pdf),
    ]
}

/// A line's end counts as a space, in the page and in the answer: chars stay where they are.
fn flat(text: &str) -> String {
    text.replace(['\n', '\t'], " ")
}

/// Questions about the pages, with the places of their answers.
pub fn questions(service: &Service) -> Vec<Question> {
    let lines = fs::read_to_string(fixtures().join("rag/questions.jsonl")).unwrap();
    let rows = lines.lines().map(|line| serde_json::from_str::<BTreeMap<String, String>>(line).unwrap());
    let question = |row: BTreeMap<String, String>| {
        let text = flat(&service.index().text(&row["document"]).unwrap().unwrap());
        let at = text.find(&row["answer"]).unwrap_or_else(|| panic!("{} is not in {}", row["answer"], row["document"]));
        let start = text[..at].chars().count();
        let answer = Span::new(start, start + row["answer"].chars().count());
        Question { question: row["question"].clone(), document: row["document"].clone(), answer }
    };
    rows.map(question).collect()
}

/// Answers of the project's own questions and answers, a record each; the question is what is asked.
pub fn records() -> (Upload, Vec<(String, String)>) {
    let lines = fs::read_to_string(fixtures().join("data/mloc_qa.jsonl")).unwrap();
    let mut bytes = Vec::new();
    let mut asked = Vec::new();
    for line in lines.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let said = |at: usize| row["messages"][at]["content"].as_str().unwrap().to_owned();
        if row["messages"].as_array().unwrap().len() != 2 || said(1).split_whitespace().count() < 4 {
            continue;
        }
        bytes.extend(serde_json::to_vec(&serde_json::json!({ "text": said(1), "n": asked.len() })).unwrap());
        bytes.push(b'\n');
        asked.push((said(0), said(1).trim().to_owned()));
    }
    let source = Source { name: "answers.jsonl".into(), ..Source::default() };
    (Upload { id: Some("answers".into()), source, bytes, ..Upload::default() }, asked)
}

fn ranks(service: &Service, questions: &[Question], arms: Arms) -> Vec<Option<usize>> {
    let rows = service.index().documents("", 100).unwrap();
    let text = |id: &str| service.index().text(id).unwrap().unwrap();
    let texts: BTreeMap<String, (String, Vec<char>)> =
        rows.into_iter().map(|row| (row.id.clone(), (text(&row.id), text(&row.id).chars().collect()))).collect();
    let rank = |question: &Question| {
        let ask = Ask { arms: Some(arms), top_k: Some(20), ..Ask::new(&question.question) };
        let found = service.retrieve(&ask).unwrap();
        // Every span is exact, or the figures mean nothing.
        for hit in &found.hits {
            let (text, chars) = &texts[&hit.document_id];
            let by_chars: String = chars[hit.chars.start..hit.chars.end].iter().collect();
            assert_eq!((by_chars.as_str(), hit.bytes.of(text)), (hit.text.as_str(), hit.text.as_str()));
        }
        question.rank(&found.hits)
    };
    questions.iter().map(rank).collect()
}

/// Words, vectors and both, on the pages and on the records.
pub struct Compared {
    /// Of pages.
    pub pages: [Measured; 3],
    /// Of records.
    pub records: [Measured; 3],
}

/// Builds an index over the pages and one over the records, and asks all questions of each arm and of both.
pub fn measure_all(embedder: Arc<dyn Embedder>, tokens: Arc<dyn Tokens>, settings: IndexSettings) -> Compared {
    let compare = |uploads: Vec<Upload>, questions: &dyn Fn(&Service) -> Vec<Question>| {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(dir.path(), embedder.identity(), embedder.dimension(), settings).unwrap();
        let models = Models { embedder: embedder.clone(), tokens: tokens.clone(), reranker: None };
        let service = Service::new("docs", index, models, Parser::Here, Settings::default()).unwrap();
        for upload in uploads {
            service.accept(upload, 1).unwrap();
        }
        ingest_all(&service);
        let questions = questions(&service);
        println!("{} documents, {} chunks", service.index().size().0, service.index().size().1);
        let names = [("BM25", Arms::WORDS), ("dense", Arms::DENSE), ("fusion", Arms::default())];
        names.map(|(name, arms)| {
            let ranks = ranks(&service, &questions, arms);
            let measured = measured(&ranks);
            println!("{name:8} {measured}");
            let missed = questions.iter().zip(&ranks).filter(|(_, rank)| rank.is_none_or(|rank| rank > 5));
            // Of hundreds nobody reads them all.
            for (question, _) in missed.take(12) {
                println!("         not among the first five: {}", question.question);
            }
            measured
        })
    };
    let (upload, asked) = records();
    let of_records = move |service: &Service| {
        let text = service.index().text("answers").unwrap().unwrap();
        let question = |(question, answer): &(String, String)| {
            let start = text[..text.find(answer.as_str()).unwrap()].chars().count();
            let answer = Span::new(start, start + answer.chars().count());
            Question { question: question.clone(), document: "answers".into(), answer }
        };
        asked.iter().map(question).collect()
    };
    Compared { pages: compare(pages(), &questions), records: compare(vec![upload], &of_records) }
}

/// Whose statistics BM25 goes by, where an index is cut into shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    /// Each shard's own.
    Own,
    /// Those of all together.
    All,
}

/// The project's questions and answers, each answer a document, dealt out to so many shards.
pub struct Dealt {
    _dir: tempfile::TempDir,
    shards: Vec<Service>,
    questions: Vec<Question>,
}

impl Dealt {
    /// Over functions in place of models.
    pub fn to(count: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let shard = |index: u32| {
            let folder = dir.path().join(index.to_string());
            let index_of =
                Index::open(&folder, Hashed.identity(), Hashed.dimension(), IndexSettings::default()).unwrap();
            let models = Models { embedder: Arc::new(Hashed), tokens: Arc::new(WordTokens), reranker: None };
            let settings = Settings { sharding: Sharding { index, count }, ..Settings::default() };
            Service::new("docs", index_of, models, Parser::Here, settings).unwrap()
        };
        let shards: Vec<Service> = (0..count).map(shard).collect();
        let mut questions = Vec::new();
        for (n, (question, answer)) in records().1.into_iter().enumerate() {
            let id = format!("answer-{n}");
            let source = Source { name: format!("{id}.txt"), ..Source::default() };
            let answer_is = Span::new(0, answer.chars().count());
            let upload = Upload { id: Some(id.clone()), source, bytes: answer.into_bytes(), ..Upload::default() };
            shards[shard_of(&id, count) as usize].accept(upload, 1).unwrap();
            questions.push(Question { question, document: id, answer: answer_is });
        }
        shards.iter().for_each(ingest_all);
        // A third of them says as much, in a third of the time.
        let questions = questions.into_iter().step_by(3).collect();
        Self { _dir: dir, shards, questions }
    }

    /// What BM25 says of the best five of each question, and how well all answer.
    pub fn measure(&self, arms: Arms, counts: Counts) -> (Vec<Vec<f32>>, Measured) {
        let answered = |question: &Question| {
            let asked = Ask { arms: Some(arms), top_k: Some(20), ..Ask::new(&question.question) };
            let prepared: Vec<Ask> = self.shards.iter().map(|shard| shard.counted(asked.clone()).unwrap()).collect();
            let mut all = prepared[0].clone();
            for other in &prepared[1..] {
                if let (Some(sum), Some(more)) = (&mut all.statistics, other.statistics.clone()) {
                    sum.add(more);
                }
            }
            let of = |(shard, own): (&Service, &Ask)| {
                shard.candidates(if counts == Counts::All { &all } else { own }).unwrap()
            };
            let found = self.shards.iter().zip(&prepared).map(of).map(Some);
            let merged = merge((0..).zip(found).collect(), self.shards[0].depth(&asked));
            let mut scores: Vec<f32> = merged.hits.iter().filter_map(|hit| Some(hit.words?.score)).collect();
            scores.sort_by(|one, other| other.total_cmp(one));
            scores.truncate(5);
            (scores, self.shards[0].finish(&asked, merged.hits).hits)
        };
        let (scores, hits): (Vec<Vec<f32>>, Vec<_>) = self.questions.iter().map(answered).unzip();
        let ranks: Vec<_> = self.questions.iter().zip(&hits).map(|(question, hits)| question.rank(hits)).collect();
        (scores, measured(&ranks))
    }
}
