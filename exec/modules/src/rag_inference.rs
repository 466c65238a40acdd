//! `taskType: rag_inference`: a model that answers from documents. Each of its replicas is a shard: it has an index of the
//! documents that belong to it, in its folder on the node. Whichever is asked asks all; a document goes to the one it belongs
//! to.
//!
//! Wherever a shard begins anew it reads its share of `dataset.source` again, and takes what came over HTTP from the shard
//! after it, which keeps copies. With one replica there is none: what came over HTTP is lost with its folder. A newer version
//! takes it from the older one, into as many shards as it has.
//!
//! | file | holds |
//! |---|---|
//! | `shards` | which shard a replica is, and its way to the others |

mod shards;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use axum::{
    extract::Request,
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use mloc_burn::{
    device::DeviceChoice,
    embedding::{Embedder, Reranker},
    formats::tokenizer::TextTokenizer,
};
use mloc_core::task::spec::{Retrieval, RetrievalMode};
use mloc_exec::{Module, ModuleError, ModuleOutput, RunContext};
use mloc_openai::server::unix_now;
use mloc_rag::{
    chunk::Chunking,
    http::{App, Limits, keep, router, shard_router, work},
    index::{Arms, Index, Settings as IndexSettings},
    seams,
    service::{Floor, Models, Parser, Service, Settings},
    shard::Sharding,
    span::Span,
    watch::Bounds,
};
use sha2::{Digest, Sha256};

use crate::{
    fatal,
    inference::{self, Loaded, inner::Inner},
};
use shards::Siblings;

/// The private subcommand of the binary that reads one file, within limits.
pub const PARSE: &str = "__parse";
/// The folder of `dataset.source` among those that are followed.
const DATASET: &str = "dataset";

/// Between two comparisons of files with their copies; what comes meanwhile is copied at once.
const COMPARED_EVERY: Duration = Duration::from_secs(5);
/// For so long a shard that began anew is not ready, if it can have its documents meanwhile. Whoever it follows answers.
const TAKES_COPIES_MAX: Duration = Duration::from_secs(120);

/// The module.
pub struct RagInference;

impl Module for RagInference {
    fn name(&self) -> &'static str {
        "rag_inference"
    }

    fn run(&self, ctx: &mut RunContext) -> Result<ModuleOutput, ModuleError> {
        let asked = ctx.run().spec.retrieval.clone().ok_or_else(|| fatal("spec.retrieval: the task has none"))?;
        let loaded = Loaded::of(ctx)?;
        let marks = loaded.decoder()?.generator.special_tokens();
        let run = ctx.run();
        let embedder = run.inputs.embedder.clone().ok_or_else(|| fatal("retrieval.embedder: the task names none"))?;
        let models = open_models(&embedder, run.inputs.reranker.as_deref())?;
        // Beside the checkpoints of other tasks: what is there outlives this attempt.
        let folder = ctx.run().checkpoints.join("index");
        let embedder = &models.embedder;
        let index = Index::open(&folder, embedder.identity(), embedder.dimension(), IndexSettings::default());
        let index = index.map_err(|error| fatal(error.to_string()))?;
        let (documents, chunks) = index.size();
        ctx.log(format_args!("an index of {documents} documents in {chunks} pieces; embedder {}", embedder.identity()));
        let sharding = shards::sharding(&ctx.run().attempt, ctx.run().spec.shards());
        let service = Service::new(&loaded.name, index, models, parser()?, settings(&asked, sharding));
        let service = Arc::new(service.map_err(|error| fatal(error.to_string()))?);
        let first = shards::is_first(&ctx.run().attempt, sharding);
        if service.is_whole().map_err(|error| fatal(error.to_string()))?.is_none() {
            // It begins anew here: there may be an older version, and another shard may keep copies.
            service.set_whole(false).map_err(|error| fatal(error.to_string()))?;
            if !first {
                let copies = match sharding.keeper() {
                    Some(keeper) => format!("it takes what came over HTTP from shard {keeper}, which keeps copies"),
                    None => "what came over HTTP is lost: one replica has no other that keeps copies".to_owned(),
                };
                ctx.warn(format_args!("this shard was elsewhere before, and begins anew here; {copies}"));
            }
        }
        if sharding.count > 1 {
            ctx.log(format_args!("this is shard {} of {}", sharding.index, sharding.count));
        }
        let mut app =
            App::new(service.clone(), Arc::new(Inner(loaded.routes.clone())), Limits::default(), nonce, unix_now);
        if let Some(socket) = ctx.run().siblings.clone() {
            app = app.with_peers(Arc::new(Siblings { socket, service: loaded.name.clone() }));
        }
        let app = Arc::new(app.with_marks(marks));
        // Whatever is not about documents is the model's own.
        let ready = Duration::from_millis(ctx.run().spec.timeouts.ready_ms.unwrap_or(u64::MAX));
        let (begun, within, of_health) = (Instant::now(), TAKES_COPIES_MAX.min(ready / 2), app.clone());
        let model = loaded.routes.clone().layer(middleware::from_fn(move |request: Request, next: Next| {
            let waits = of_health.takes_copies() && begun.elapsed() < within;
            healthy_with_its_documents(waits, request, next)
        }));
        let between_shards = shard_router(app.clone()).layer(middleware::from_fn(shards::shards_alone));
        let routes = router(app.clone()).merge(between_shards).fallback_service(model);
        let listening = inference::listen(ctx, inference::threads()?, routes)?;
        listening.handle().spawn(work(app.clone(), listening.stopping()));
        let keeping = keep(app.clone(), first, COMPARED_EVERY, listening.stopping());
        let folder = ctx.run().inputs.dataset.clone();
        let follower =
            folder.map(|folder| Follower { service, app, folder, every: asked.watch_ms.map(Duration::from_millis) });
        if let Some(follower) = follower {
            let said = follower.look();
            said.into_iter().for_each(|line| ctx.log(line));
            let stopping = listening.stopping();
            listening.handle().spawn(async move {
                let Some(every) = follower.every else { return };
                let follower = Arc::new(follower);
                while tokio::time::timeout(every, stopping.cancelled()).await.is_err() {
                    let follower = follower.clone();
                    // A panic is in the log, and the next look comes.
                    let said = tokio::task::spawn_blocking(move || follower.look()).await.unwrap_or_default();
                    said.into_iter().for_each(|line| println!("{line}"));
                }
            });
        }
        // After the first look: what is to be read of the folder waits to be indexed by now.
        listening.handle().spawn(keeping);
        Err(inference::serve(ctx, &loaded, listening, |_| ()))
    }
}

/// A replica that begins anew is ready once it has its documents: whoever it takes the place of is stopped then.
async fn healthy_with_its_documents(waits: bool, request: Request, next: Next) -> Response {
    if waits && request.uri().path() == "/health" {
        return (StatusCode::SERVICE_UNAVAILABLE, "it takes its documents from their copies\n").into_response();
    }
    next.run(request).await
}

/// A folder that is followed.
struct Follower {
    service: Arc<Service>,
    app: Arc<App>,
    folder: PathBuf,
    every: Option<Duration>,
}

impl Follower {
    /// Looks once; what there is to say of it.
    fn look(&self) -> Vec<String> {
        match self.service.follow(DATASET, &self.folder, &Bounds::default(), SystemTime::now()) {
            Ok(found) => {
                self.app.wake();
                let mut said = Vec::new();
                if !found.accepted.is_empty() || !found.deleted.is_empty() {
                    let (new, gone) = (found.accepted.len(), found.deleted.len());
                    said.push(format!("documents: {new} new or changed, {gone} gone"));
                }
                said.extend(
                    found.skipped.into_iter().map(|(path, why)| format!("documents: {path} is left out: {why}")),
                );
                said
            }
            Err(error) => vec![format!("documents: {error}")],
        }
    }
}

/// Sixteen random bytes of the system's, in hex.
fn nonce() -> String {
    hex::encode(rand::random::<[u8; 16]>())
}

fn arms(asked: &Retrieval) -> Arms {
    let (dense, words) = match asked.mode {
        RetrievalMode::Hybrid => (true, true),
        RetrievalMode::Dense => (true, false),
        RetrievalMode::Bm25 => (false, true),
    };
    Arms { dense, words }
}

fn settings(asked: &Retrieval, sharding: Sharding) -> Settings {
    let floor = asked.score_floor_milli.map(|milli| milli as f32 / 1e3);
    Settings {
        chunking: Chunking { max_tokens: asked.chunk_tokens as usize, overlap: asked.chunk_overlap as usize },
        top_k: asked.top_k as usize,
        depth: asked.candidates as usize,
        arms: arms(asked),
        // Of the reranker where there is one, else of the vectors.
        floor: Floor { cosine: floor, rerank: floor, ..Floor::default() },
        sharding,
        ..Settings::default()
    }
}

fn parser() -> Result<Parser, ModuleError> {
    let exe = std::env::current_exe().map_err(|e| fatal(format!("the path of this program: {e}")))?;
    Ok(Parser::Child { exe, args: vec![PARSE.to_owned()] })
}

/// Reads one document from standard input: the child that [`PARSE`] starts.
pub fn read_document() -> std::process::ExitCode {
    mloc_rag::parse::child::child_main(std::io::stdin().lock(), std::io::stdout().lock())
}

/// What works for an index: an embedder with its tokenizer, and a reranker.
///
/// # Errors
/// Folders that hold none.
pub fn open_models(folder: &Path, reranker: Option<&Path>) -> Result<Models, ModuleError> {
    let device = DeviceChoice::Cpu.open().map_err(fatal)?;
    let embedder = Embedder::open(folder, &device).map_err(|e| fatal(format!("retrieval.embedder: {e}")))?;
    let tokenizer = embedder.tokenizer.clone().uncut().map_err(fatal)?;
    let of_tokenizer = tokenizer.to_json().map_err(fatal)?;
    let identity = format!(
        "{} {:?}{} sha256:{}",
        embedder.backbone.architecture(),
        embedder.pooling,
        if embedder.normalise { " normalised" } else { "" },
        digest_of_weights(folder)?
    );
    let reranker = match reranker {
        None => None,
        Some(folder) => {
            let reranker = Reranker::open(folder, &device).map_err(|e| fatal(format!("retrieval.reranker: {e}")))?;
            Some(Arc::new(Ranks(Mutex::new(reranker))) as Arc<dyn seams::Reranker>)
        }
    };
    let width = embedder.width();
    Ok(Models {
        embedder: Arc::new(Embeds { identity, width, embedder: Mutex::new(embedder) }),
        tokens: Arc::new(Cuts { identity: hex::encode(Sha256::digest(of_tokenizer)), tokenizer }),
        reranker,
    })
}

/// Of all weights below a folder, in the order of their names.
fn digest_of_weights(folder: &Path) -> Result<String, ModuleError> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).map_err(|e| ModuleError::disk("list", &folder, &e))?;
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "safetensors") {
                files.push(path);
            }
        }
    }
    files.sort();
    let mut digest = Sha256::new();
    for path in &files {
        let mut file = std::fs::File::open(path).map_err(|e| ModuleError::disk("read", path, &e))?;
        std::io::copy(&mut file, &mut digest).map_err(|e| ModuleError::disk("read", path, &e))?;
    }
    Ok(hex::encode(digest.finalize()))
}

/// An encoder whose products use all threads: one request at a time.
struct Embeds {
    identity: String,
    width: usize,
    embedder: Mutex<Embedder>,
}

impl seams::Embedder for Embeds {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn dimension(&self) -> usize {
        self.width
    }

    fn embed(&self, texts: &[String], _: seams::Side) -> anyhow::Result<Vec<Vec<f32>>> {
        Ok(self.embedder.lock().unwrap_or_else(PoisonError::into_inner).embed(texts)?)
    }
}

struct Cuts {
    identity: String,
    tokenizer: TextTokenizer,
}

impl seams::Tokens for Cuts {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn spans(&self, text: &str) -> anyhow::Result<Vec<Span>> {
        Ok(self.tokenizer.spans(text)?.into_iter().map(|range| Span::new(range.start, range.end)).collect())
    }
}

struct Ranks(Mutex<Reranker>);

impl seams::Reranker for Ranks {
    fn rank(&self, query: &str, passages: &[String]) -> anyhow::Result<Vec<f32>> {
        let pairs: Vec<(&str, &str)> = passages.iter().map(|passage| (query, passage.as_str())).collect();
        let scores = self.0.lock().unwrap_or_else(PoisonError::into_inner).score(&pairs)?;
        Ok(scores.iter().map(|labels| mloc_serve::relevance(labels)).collect())
    }
}
