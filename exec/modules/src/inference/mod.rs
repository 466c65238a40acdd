//! `taskType: inference`: a model behind OpenAI's API, until it is told to stop. What `rag_inference` and `agent` have of
//! it too.
//!
//! | file | holds |
//! |---|---|
//! | `settings` | a task's settings, as what serves has them |
//! | `inner` | the model, asked by what stands in front of it in the same process |

pub mod inner;
mod settings;

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::Request,
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use mloc_core::wire::{Phase, Progress};
use mloc_exec::{DeviceChoice, Module, ModuleError, ModuleOutput, RunContext};
use mloc_openai::{Limits, server::unix_now};
use mloc_serve::{
    Decoder, ServeError, Served,
    listen::{Listening, load_adapters, routes},
};

use serde_json::json;
use tokio::runtime::{Handle, Runtime};

use crate::fatal;

/// Who may do what concerns the machine, as nodes name them.
const ADMIN: &str = "admin";
/// Between looks at whether it is to stop.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Between figures.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// What the first two tokens may take. The slowest model that anyone would serve says a word a minute.
const TRY_OUT: Duration = Duration::from_secs(120);
/// A model is not divided over GPUs.
pub const ONE_GPU: &str =
    "a model is served on one GPU: ask for count: 1, and for more replicas where there are more GPUs";
/// What is under way when it is to stop has had its time: its daemon lets no request in, waits for those there are, and
/// only then asks.
const STOP: Duration = Duration::from_secs(2);

/// The module.
pub struct Inference;

impl Module for Inference {
    fn name(&self) -> &'static str {
        "inference"
    }

    fn run(&self, ctx: &mut RunContext) -> Result<ModuleOutput, ModuleError> {
        let loaded = Loaded::of(ctx)?;
        let listening = listen(ctx, threads()?, loaded.routes.clone())?;
        Err(serve(ctx, &loaded, listening, |_| ()))
    }
}

/// A task's model, loaded, tried out, with its adapters.
pub struct Loaded {
    /// What computes.
    pub served: Served,
    /// OpenAI's API over it.
    pub routes: Router,
    /// Its name at the API.
    pub name: String,
}

impl Loaded {
    /// Loads what the task names.
    ///
    /// # Errors
    /// The model's, the adapter's, the machine's; and that it was asked to stop.
    pub fn of(ctx: &mut RunContext) -> Result<Self, ModuleError> {
        must_be_one_device(ctx)?;
        let path = ctx.run().inputs.model.clone().ok_or_else(|| fatal("model.source: the task names no model"))?;
        let settings = settings::of(ctx.run());
        ctx.log(format_args!("loading {}", settings.root));
        let since = Instant::now();
        let asked = ctx.asked();
        let served = mloc_serve::open(&path, &settings, &|| asked.stop.load(Ordering::Relaxed));
        let served = served.map_err(not_served)?;
        if let Served::Decoder(decoder) = &served {
            tell_facts(ctx, decoder, since.elapsed());
            let took = decoder.try_out(TRY_OUT).map_err(not_served)?;
            ctx.log(format_args!("tried out: two tokens in {:.0} ms", took.as_secs_f64() * 1e3));
        } else {
            if let DeviceChoice::Cuda { .. } = ctx.device() {
                return Err(fatal(
                    "resources.hardware.gpu: an encoder computes on processors, and the GPU would stand idle: leave it out",
                ));
            }
            ctx.log(format_args!("an encoder, loaded in {:.1} s", since.elapsed().as_secs_f64()));
            let of_a_decoder = ctx.run().spec.hyperparameters.keys().filter(|name| *name != "max_model_len");
            let unused: Vec<String> = of_a_decoder.cloned().collect();
            if !unused.is_empty() {
                ctx.warn(format_args!("without effect on an encoder, which computes in f32: {}", unused.join(", ")));
            }
        }
        let model = served.model();
        let adapters = load_adapters(&*model, &settings::adapters(ctx.run())).map_err(fatal)?;
        for adapter in &adapters {
            ctx.log(format_args!("adapter {}:{} is loaded", settings.served_name, adapter.name));
        }
        let routes = routes(model, adapters, Limits::default(), random());
        let routes = routes.layer(middleware::from_fn(adapters_by_the_admin));
        Ok(Self { served, routes, name: settings.served_name })
    }

    /// The language model.
    ///
    /// # Errors
    /// It makes no text.
    pub fn decoder(&self) -> Result<&Decoder, ModuleError> {
        match &self.served {
            Served::Decoder(decoder) => Ok(decoder),
            Served::Encoder(_) => Err(fatal("model.source: this model makes no text: name a language model")),
        }
    }
}

/// A folder of the machine that serves is read by the admin only: others name adapters in tasks.
async fn adapters_by_the_admin(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let changes = path.ends_with("/load_lora_adapter") || path.ends_with("/unload_lora_adapter");
    // Said by the node that took the request; it lets nobody else say it.
    let user = request.headers().get("mloc-user").and_then(|user| user.to_str().ok());
    if changes && user != Some(ADMIN) {
        let text = "adapters are loaded and unloaded by the admin; a task names its own as `model.adapter`";
        let error = json!({"message": text, "type": "invalid_request_error", "param": null, "code": "forbidden"});
        return (StatusCode::FORBIDDEN, Json(json!({ "error": error }))).into_response();
    }
    next.run(request).await
}

/// Unlike that of any other process of this or of a former attempt.
pub fn random() -> u64 {
    unix_now() << 20 ^ u64::from(std::process::id())
}

/// Threads to serve with.
///
/// # Errors
/// The system gives none.
pub fn threads() -> Result<Runtime, ModuleError> {
    Listening::threads().map_err(|e| ModuleError::Retryable(format!("no threads to serve with: {e}")))
}

/// Serves routes where the daemon finds them; what else runs beside them runs on the same threads.
///
/// # Errors
/// The disk's.
pub fn listen(ctx: &mut RunContext, threads: Runtime, routes: Router) -> Result<Listening, ModuleError> {
    let work = ctx.run().work.clone();
    std::fs::create_dir_all(&work).map_err(|e| ModuleError::disk("make", &work, &e))?;
    Listening::start(threads, routes, &work).map_err(|e| ModuleError::disk("listen in", &work, &e))
}

/// Says that it serves, and does until it is to stop or what serves has ended by itself; `before_stop` ends what runs
/// beside it.
pub fn serve(
    ctx: &mut RunContext,
    loaded: &Loaded,
    listening: Listening,
    before_stop: impl FnOnce(&Handle),
) -> ModuleError {
    ctx.serving(None, Some(listening.socket()));
    ctx.phase(Phase::Serving);
    let ended = look_after(ctx, &loaded.served, &listening);
    before_stop(listening.handle());
    listening.stop(STOP);
    if let Served::Decoder(decoder) = &loaded.served {
        decoder.generator.handle().shutdown(STOP);
    }
    ended
}

fn look_after(ctx: &mut RunContext, served: &Served, listening: &Listening) -> ModuleError {
    let mut told = Instant::now();
    let mut tokens = 0;
    loop {
        if let Err(stop) = ctx.check() {
            return stop;
        }
        if listening.has_ended() {
            return ModuleError::Retryable("the server has ended, its socket is gone".to_owned());
        }
        if let Served::Decoder(decoder) = served {
            if let Some(why) = decoder.ended() {
                return ModuleError::Retryable(format!("the engine has ended: {why}"));
            }
            let since = told.elapsed();
            if since >= TELL_EVERY {
                let stats = decoder.generator.handle().stats();
                let all = stats.generation_tokens + stats.prompt_tokens;
                let rate = (all - tokens) as f64 / since.as_secs_f64();
                ctx.progress(Progress { step: stats.steps, tokens_per_second: Some(rate), ..Progress::default() });
                (told, tokens) = (Instant::now(), all);
            }
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn must_be_one_device(ctx: &RunContext) -> Result<(), ModuleError> {
    let task_type = ctx.run().spec.task_type;
    match ctx.device() {
        DeviceChoice::Cpu { .. } | DeviceChoice::Cuda { count: 1 } => Ok(()),
        DeviceChoice::Cuda { count } => Err(fatal(format!("resources.hardware.gpu: {count}: {ONE_GPU}"))),
        DeviceChoice::Simulated { kind } => Err(fatal(format!(
            "{kind} exists in a node's configuration only, and {task_type} computes for real: ask for no GPU"
        ))),
    }
}

fn tell_facts(ctx: &mut RunContext, decoder: &Decoder, took: Duration) {
    let facts = &decoder.facts;
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    ctx.log(format_args!(
        "{} of {:.0} million parameters in {}: {:.2} GiB, loaded in {:.1} s",
        facts.architecture,
        facts.parameters as f64 / 1e6,
        facts.format,
        gib(facts.weight_bytes),
        took.as_secs_f64()
    ));
    let [length, made_for] = facts.max_length;
    if length > made_for {
        ctx.warn(format_args!(
            "max_model_len: {length} tokens, and the model was made for {made_for}: what comes behind those may be nonsense"
        ));
    }
    ctx.log(format_args!(
        "requests of up to {length} tokens{}; {} tokens of all requests together are kept in {:.2} GiB",
        if length < made_for { format!(" (the model was made for {made_for})") } else { String::new() },
        facts.cache_tokens,
        gib(facts.cache_bytes)
    ));
    let less = match ctx.device() {
        DeviceChoice::Cuda { .. } => "quantization: int4, or a smaller kv_cache_memory_bytes",
        _ => "quantization: int8 or int4, or a smaller kv_cache_memory_bytes",
    };
    ctx.needs(facts.weight_bytes + facts.cache_bytes, less);
}

fn not_served(error: ServeError) -> ModuleError {
    match error {
        ServeError::Disk(text) => ModuleError::Retryable(text),
        ServeError::Model(text) => fatal(format!("model.source: {text}")),
        ServeError::Memory(text) => fatal(text),
        ServeError::Stopped => ModuleError::Cancelled,
    }
}
