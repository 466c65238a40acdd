//! The program that this crate's tests start: `__attempt RUN` as the real one does, with a module made to be broken,
//! and `__daemon DIR NODE` for a whole worker that a test may kill.

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixListener,
    path::Path,
    process::{Command, ExitCode},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use mloc_core::{
    task::hyperparameters::settings::Echo,
    task::spec::Location,
    wire::{Phase, Progress, Report},
};
use mloc_exec::{Module, ModuleError, ModuleOutput, Output, RunContext};

/// By its name.
struct Breakable(&'static str);

impl Module for Breakable {
    fn name(&self) -> &'static str {
        self.0
    }

    fn run(&self, ctx: &mut RunContext) -> Result<ModuleOutput, ModuleError> {
        let mode = std::env::var("MODE").unwrap_or_default();
        ctx.phase(Phase::Training);
        match mode.as_str() {
            "ignore" => loop {
                ctx.progress(Progress { step: 1, ..Default::default() });
                std::thread::sleep(Duration::from_millis(20));
            },
            "family" => {
                // One below it, one in a session of its own whose parent is gone.
                let mut below = Command::new("sleep").arg("1000").spawn().unwrap();
                std::thread::spawn(move || below.wait());
                Command::new("sh").args(["-c", "setsid sleep 1001 & exit 0"]).status().unwrap();
                ctx.progress(Progress { step: 1, ..Default::default() });
                loop {
                    ctx.check()?;
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
            "serve" => {
                let socket = ctx.run().work.with_file_name("socket");
                let answers = serve(&socket);
                ctx.serving(None, Some(&socket));
                while !ctx.stopping() {
                    std::thread::sleep(Duration::from_millis(5));
                }
                println!("asked to stop after {} answers", answers.load(Ordering::SeqCst));
                return Err(ModuleError::Cancelled);
            }
            "die" => {
                nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).unwrap();
            }
            "flood" => {
                let line = "x".repeat(1023) + "\n";
                for _ in 0..40 << 10 {
                    print!("{line}");
                }
                println!("the end of it");
            }
            "long" => return Err(ModuleError::Fatal(format!("begin {} end", "x".repeat(3 << 20)))),
            "fill" => {
                ctx.progress(Progress { step: 1, ..Default::default() });
                fs::write(ctx.artifacts().join("large"), vec![7; 16 << 20]).unwrap();
                loop {
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
            "secret" => {
                println!("secret {} path {}", std::env::var("TOKEN").unwrap(), std::env::var("JOIN_TOKEN").is_ok())
            }
            _ => {}
        }
        let settings = Echo::of(&ctx.run().spec);
        let mut text = match ctx.resume() {
            Some(from) => fs::read_to_string(from.dir.join("text")).unwrap(),
            None => String::new(),
        };
        let slow = mode == "slow";
        let save = |ctx: &mut RunContext, step, text: &str| {
            ctx.checkpoint(step, |dir| {
                let write = || fs::File::create(dir.join("text"))?.write_all(text.as_bytes());
                write().map_err(|e| ModuleError::disk("write", dir, &e))
            })
        };
        for step in ctx.resume_step() + 1..=settings.steps {
            if mode == "saves" && step > 1 {
                // The first step is taken at once; then it waits to be stopped.
                while !ctx.stopping() {
                    std::thread::sleep(Duration::from_millis(5));
                }
                save(ctx, step - 1, &text)?;
            }
            ctx.check()?;
            if slow {
                std::thread::sleep(Duration::from_millis(50));
            }
            text.push_str(&format!("step {step}\n"));
            ctx.progress(Progress { step, total_steps: Some(settings.steps), ..Default::default() });
            if step % settings.save_steps == 0 {
                save(ctx, step, &text)?;
            }
        }
        fs::write(ctx.artifacts().join("text"), &text).unwrap();
        let mut summary: BTreeMap<_, _> = [("steps".to_owned(), settings.steps.into())].into();
        if mode == "large" {
            summary.insert("answers".to_owned(), "x".repeat(3 << 20).into());
        }
        Ok(ModuleOutput { outputs: vec![Output { path: "text".into(), kind: "echo".into() }], summary })
    }
}

/// Answers on a socket, each connection on a thread of its own: `/health` well until `/ill` was asked, `/slow` once the
/// file `go` lies beside the socket. Counts what is neither.
fn serve(socket: &Path) -> Arc<AtomicU64> {
    let (ill, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    // An earlier start's.
    fs::remove_file(socket).ok();
    let listener = UnixListener::bind(socket).unwrap();
    let (go, counted) = (socket.with_file_name("go"), answers.clone());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let (ill, counted, go) = (ill.clone(), counted.clone(), go.clone());
            std::thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                let Some(first) = lines.next() else { return };
                let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
                let status = match first.split(' ').nth(1).unwrap() {
                    "/health" if ill.load(Ordering::SeqCst) => "500 Ill",
                    "/health" => "200 OK",
                    path => {
                        if path == "/ill" {
                            ill.store(true, Ordering::SeqCst);
                        }
                        while path == "/slow" && !go.exists() {
                            std::thread::sleep(Duration::from_millis(5));
                        }
                        counted.fetch_add(1, Ordering::SeqCst);
                        "200 OK"
                    }
                };
                let body = head.join("\n");
                write!(
                    stream,
                    "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                )
                .ok();
            });
        }
    });
    answers
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("__attempt") => {
            mloc_runtime::child::main(Path::new(&args[2]), &[&Breakable("echo"), &Breakable("rag_inference")])
        }
        Some("__daemon") => daemon(Path::new(&args[2]), &args[3]),
        _ => ExitCode::from(64),
    }
}

/// Runs one task of six steps on a node in `dir` to its end; the next attempt when one failed. Exits 0 when it is
/// published.
#[tokio::main]
async fn daemon(dir: &Path, node: &str) -> ExitCode {
    let node = support::Node::start(&dir.join(node), &std::env::current_exe().unwrap()).await;
    let mut spec = support::spec(6, "normal");
    spec.checkpoint = support::shared(&dir.join("shared"));
    spec.output.destination = Some(Location::Local { path: dir.join("out").display().to_string() });
    // The ledger's part: which attempt it is, from one process to the next.
    let number = dir.join("attempt");
    let attempt: u32 = fs::read_to_string(&number).map_or(1, |text| text.parse().unwrap());
    node.assign(support::assign(attempt, spec)).await;
    match node.leader.end_of(&support::attempt(attempt)).await {
        Report::Finished(_) => {
            node.worker.stop().await;
            ExitCode::SUCCESS
        }
        Report::Failed(failure) => {
            eprintln!("{}", failure.message);
            fs::write(number, (attempt + 1).to_string()).unwrap();
            node.worker.stop().await;
            ExitCode::from(3)
        }
        other => panic!("{other:?}"),
    }
}
